"""Starts from others' weights, as `pretrain --init` and `finetune --weights` take them."""

import functools
import gc
import http.server
import json
import threading
import tomllib

import numpy as np
import pytest
import torch

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.errors import WeightsError
from unfreeze.models import weight_sources
from unfreeze.models.build import build
from unfreeze.models.head import remove_head
from unfreeze.models.identify_file import KnownArchitecture, arch_of_weights
from unfreeze.swav.model import SwAV

# torch.hub leaves its connection to the garbage collector, which `swav` calls at its end
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
TINY = "unfreeze/tiny"
ASKED = []  # what the server was asked for
QUICK = {"epochs": 0, "limit": 64, "device": "cpu"}
FILE = "swav_800ep_pretrain.pth.tar"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A server with a small SwAV file, named and written as the published one; its address."""
    folder = tmp_path_factory.mktemp("zoo")
    torch.manual_seed(3)
    backbone = build(TINY)
    model = SwAV(backbone, remove_head(backbone), hidden=512, feat_dim=128, prototypes=16)
    state = {f"module.{n}".replace("backbone.", ""): t for n, t in model.state_dict().items()}
    torch.save(state, folder / FILE)
    (folder / "page.pth").write_text("<html>moved</html>")
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", state
    server.shutdown()
    server.server_close()
    thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        ASKED.append(self.path)


@pytest.fixture
def swav(zoo, tmp_path, monkeypatch):
    """The name `swav` leads to the small file; torch's cache is empty."""
    address, state = zoo
    ASKED.clear()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setitem(
        weight_sources.PUBLISHED, "swav", weight_sources.PublishedWeights(address + FILE, TINY)
    )
    yield state
    gc.collect()


def reasons_of(run):
    return tomllib.loads((run / "config.toml").read_text())["reasons"]


def test_t13_pretraining_goes_on_from_published_weights_head_and_prototypes_too(swav, tmp_path):
    made = unfreeze.pretrain(
        "digits", out=str(tmp_path / "run"), init="swav", nmb_prototypes=16, **QUICK
    )
    assert made.arch == TINY
    tensors, card = load_model(made.run)
    assert all(torch.equal(tensors[name], swav[f"module.{name}"]) for name in tensors)
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["model"]
    for name in state:
        assert torch.equal(state[name], swav["module." + name.removeprefix("backbone.")]), name
    # fetched once, by torch's own code, into its cache under the name it has there
    assert len(ASKED) == 1 and ASKED[0] == f"/{FILE}"
    assert (tmp_path / "hub/checkpoints" / FILE).exists()
    reasons = reasons_of(tmp_path / "run")
    assert reasons["swav_head"] == "Projection head and prototypes loaded."
    assert reasons["arch"] == "architecture of the weights"
    # whoever uses them is told the terms, in the log, in the plan and in what travels
    assert "no commercial use" in (tmp_path / "run/log.txt").read_text()
    assert reasons["licence"] == card.provenance["licence"] == weight_sources.LICENCE


def test_t13_another_number_of_prototypes_keeps_the_head(swav, tmp_path):
    run = tmp_path / "run"
    unfreeze.pretrain("digits", out=str(run), init="swav", nmb_prototypes=9, **QUICK)
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["model"]
    assert torch.equal(state["projection_head.3.weight"], swav["module.projection_head.3.weight"])
    assert "(--nmb-prototypes 16 loads them)" in reasons_of(run)["swav_head"]


def test_t13_pretraining_goes_on_from_our_own_run_whole(tmp_path):
    first, more = tmp_path / "first", tmp_path / "more"
    options = {**QUICK, "epochs": 1, "nmb_prototypes": 8}
    unfreeze.pretrain("digits", out=str(first), **options)
    theirs = torch.load(first / "checkpoints/last.ckpt", weights_only=True)["model"]
    for start in (first, first / "checkpoints/last.ckpt"):
        unfreeze.pretrain(
            "digits",
            out=str(more),
            init=str(start),
            overwrite=True,
            **{**options, "epochs": 0},
        )
        mine = torch.load(more / "checkpoints/last.ckpt", weights_only=True)["model"]
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert "loaded" in reasons_of(more)["swav_head"]


@pytest.mark.slow
def test_published_weights_serve_finetune_and_embed(swav, tmp_path, coloured):
    data = coloured("data", {"red": 6, "blue": 6})
    made = unfreeze.finetune(
        str(data), out=str(tmp_path / "run"), weights="swav", epochs=1, device="cpu"
    )
    assert (made.arch, made.weights_matched) == (TINY, 1.0)
    _, card = load_model(made.run)
    assert card.provenance["licence"] == weight_sources.LICENCE
    # the published networks saw 0.228 where ImageNet has 0.229
    assert card.preprocess["std"] == [0.228, 0.224, 0.225]
    assert "no commercial use" in (tmp_path / "run/log.txt").read_text()
    unfreeze.embed("swav", str(data), str(tmp_path / "f.npz"), device="cpu")
    assert np.load(tmp_path / "f.npz")["features"].shape == (12, 128)


def test_the_published_names_say_their_network():
    assert arch_of_weights("swav") == KnownArchitecture("torchvision/resnet50", "imagenet")
    assert arch_of_weights("swav-w5") == KnownArchitecture("unfreeze/resnet50w5", "imagenet")
    assert arch_of_weights("imagenet") is None
    for there in weight_sources.PUBLISHED.values():
        assert there.url.startswith("https://dl.fbaipublicfiles.com/deepcluster/swav_")
    assert weight_sources.licence_of(f"/somewhere/{FILE}") == weight_sources.LICENCE
    assert weight_sources.licence_of("/somewhere/mine.pth") == ""


def test_another_network_is_refused_before_the_download(swav, tmp_path):
    with pytest.raises(WeightsError, match="are for tiny, not for small"):
        unfreeze.pretrain(
            "digits", out=str(tmp_path / "run"), init="swav", arch="unfreeze/small", **QUICK
        )
    assert not ASKED


def test_two_files_of_one_name_are_two_files_and_a_page_is_not_kept(zoo, swav, tmp_path):
    address, _ = zoo
    from_here = unfreeze.pretrain(
        "digits", out=str(tmp_path / "a"), init=f"{address}{FILE}?2", arch=TINY, **QUICK
    )
    assert from_here.arch == TINY
    kept = [path.name for path in (tmp_path / "hub/checkpoints").iterdir()]
    assert len(kept) == 1 and kept[0].endswith(f"_{FILE}")
    for _ in range(2):  # the second time, too: what is no checkpoint is not left in the cache
        with pytest.raises(WeightsError, match="is a web page"):
            unfreeze.pretrain(
                "digits", out=str(tmp_path / "b"), init=f"{address}page.pth", arch=TINY, **QUICK
            )
    with pytest.raises(WeightsError, match="could not be downloaded") as refused:
        unfreeze.pretrain(
            "digits", out=str(tmp_path / "b"), init=f"{address}absent.pth", arch=TINY, **QUICK
        )
    assert "404" in refused.value.sentence
    assert ASKED.count("/page.pth") == 2


def test_t9_a_partial_start_is_refused_or_said(tmp_path, coloured):
    data = coloured("data", {"red": 6, "blue": 6})
    state = {k: v for k, v in build(TINY).state_dict().items() if not k.startswith("stage3")}
    torch.save(state, tmp_path / "part.pth")
    options = {"weights": str(tmp_path / "part.pth"), "arch": TINY, "epochs": 1, "device": "cpu"}
    with pytest.raises(WeightsError, match="holds"):
        unfreeze.finetune(str(data), out=str(tmp_path / "no"), **options)
    made = unfreeze.finetune(str(data), out=str(tmp_path / "f"), allow_partial=True, **options)
    assert 0 < made.weights_matched < 0.9
    assert "NOT LOADED (random): stage3" in (tmp_path / "f/log.txt").read_text()
    begun = {**QUICK, "init": str(tmp_path / "part.pth"), "arch": TINY}
    with pytest.raises(WeightsError, match="holds"):
        unfreeze.pretrain("digits", out=str(tmp_path / "no"), **begun)
    unfreeze.pretrain("digits", out=str(tmp_path / "p"), allow_partial=True, **begun)
    assert "NOT LOADED (random): stage3" in reasons_of(tmp_path / "p")["init"]
    card = json.loads((tmp_path / "f/model/model.json").read_text())
    assert card["provenance"]["weights_matched"] == made.weights_matched


def test_a_run_that_has_not_ended_names_its_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"x")
    with pytest.raises(WeightsError, match="without a model") as refused:
        unfreeze.pretrain("digits", out=str(tmp_path / "o"), init=str(tmp_path), arch=TINY, **QUICK)
    assert "last.ckpt" in refused.value.next_step
