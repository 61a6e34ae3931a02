"""`export --to hub` with the Hub's own client against a stand-in on this machine."""

import io
import json
import re
import shutil
import socket

import pytest
import timm
import torch
from PIL import Image
from tests.exports.hub_stand_in import TOKEN, HubStandIn

from unfreeze.cli.main import main
from unfreeze.runtime.terminal import Environment
from unfreeze.transfer.predictor import load_classifier, load_features

pytest.importorskip("pytest_httpserver")
# of the Hub's client, which still calls its HTTP library by an old keyword
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "ada/parts"


def call(*words):
    out, err = io.StringIO(), io.StringIO()
    code = main(list(map(str, words)), Environment(out, err))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def hub(httpserver, monkeypatch, tmp_path):
    """The stand-in, a token for it, and no cache or login of this machine."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    stand_in = HubStandIn(httpserver)
    monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
    # read once, when the library is imported
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stand_in.url)
    template = stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    # the stand-in understands LFS, not Xet, the client's other way of sending large files
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return stand_in


def upload(run, *more):
    return call("export", run, "--to", "hub", "--repo", REPO, *more)


def downloaded(hub, tmp_path):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url).snapshot_download(REPO, cache_dir=tmp_path / "downloads")


@pytest.mark.slow
def test_what_is_uploaded_loads_and_predicts_the_same(
    hub, untrained, photo, tmp_path, monkeypatch, capsys
):
    run = untrained("timm/mobilenetv3_small_050", size=48, resize=52)
    code, out, err = upload(run, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["hub"]["repo"], result["hub"]["private"], result["out"]) == (REPO, False, None)
    files = hub.repos[REPO]["files"]
    names = {"README.md", "config.json", "export.json", "model.json", "model.safetensors"}
    assert set(files) - {".gitattributes"} == names | {"prepare.py"} == {*result["hub"]["files"]}
    assert result["hub"]["commit"] == hub.repos[REPO]["commits"][-1]
    assert len(hub.repos[REPO]["commits"]) == 2  # the first is the creation: one commit, not six
    assert files["model.safetensors"][1] and hub.asked["PUT", "store"] == 1  # through LFS
    folder = downloaded(hub, tmp_path)
    ours, theirs = load_classifier(run), load_classifier(folder)
    assert theirs.predict([photo]) == ours.predict([photo])
    network = timm.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=tmp_path / "t").eval()
    assert network.pretrained_cfg["label_names"] == ["cat", "dog", "owl"]
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    with torch.inference_mode():
        scores = network(prepare(Image.open(photo).convert("RGB"))[None])
    label = network.pretrained_cfg["label_names"][int(scores.argmax())]
    assert label == ours.predict([photo])[0].label
    # the lines of the model card, which download it with the Hub's own functions
    (code,) = re.findall(r"```python\n(.*?)```", files["README.md"][0].decode(), flags=re.DOTALL)
    shutil.copy(photo, tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(code, scope)
    assert f"label='{label}'" in capsys.readouterr().out
    assert isinstance(scope["model"], type(network))  # the last lines are those with timm


def test_a_backbone_is_uploaded_too_and_a_copy_kept(hub, untrained, tmp_path):
    run = untrained("unfreeze/tiny", head=False, size=16)
    code, out, err = upload(run, "--private", "--out", tmp_path / "copy")
    assert code == 0, err
    assert hub.repos[REPO]["private"] and "(private)" in out
    files = {name: content for name, (content, _) in hub.repos[REPO]["files"].items()}
    here = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert {name: files[name] for name in here} == here and "config.json" not in files
    x = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        theirs = load_features(downloaded(hub, tmp_path))
        assert torch.equal(theirs(x), load_features(run)(x))


def test_nothing_about_this_machine_or_the_training_images_is_uploaded(hub, untrained, tmp_path):
    where = str(tmp_path / "secret" / "swav")
    about = {"verb": "finetune", "weights": f"{where} (unfreeze/tiny)", "seed": 0}
    run = untrained("unfreeze/tiny", size=16, provenance=about)
    (run / "model" / "seen_images.npz").write_bytes(b"thumbnails")
    assert upload(run)[0] == 0
    for name, (content, _) in hub.repos[REPO]["files"].items():
        assert b"secret" not in content and str(run.parent).encode() not in content, name
    assert "seen_images.npz" not in hub.repos[REPO]["files"]
    card = json.loads(hub.repos[REPO]["files"]["model.json"][0])
    assert card["provenance"]["weights"] == "swav (unfreeze/tiny)"


def test_files_that_are_there_are_replaced_only_when_asked(hub, untrained):
    run = untrained("unfreeze/tiny", size=16)
    assert upload(run)[0] == 0
    files = hub.repos[REPO]["files"]
    names, readme = set(files), files["README.md"]
    files["README.md"] = (b"mine", False)
    code, _, err = upload(run)
    assert code == 2 and "already has files" in err and "--overwrite" in err
    assert files["README.md"] == (b"mine", False)
    assert upload(run, "--overwrite")[0] == 0
    assert files["README.md"] == readme and set(files) == names
    code, _, err = upload(run, "--overwrite", "--private")
    assert code == 2 and "is public" in err


def test_an_empty_repository_that_exists_is_used(hub, untrained):
    made = {"private": True, "files": {".gitattributes": (b"", False)}, "commits": ["0" * 40]}
    hub.repos[REPO] = made
    assert upload(untrained("unfreeze/tiny", size=16))[0] == 0
    assert made["private"] and hub.asked["POST", "create"] == 0


def test_a_file_that_arrives_damaged_is_named(hub, untrained):
    for name in ("model.json", "model.safetensors"):
        hub.damage = name
        code, _, err = upload(untrained("unfreeze/tiny", size=16), "--overwrite")
        assert code == 4 and f"{name} in {REPO} is not the file" in err


@pytest.mark.parametrize(
    ("fail", "code", "words"),
    [
        ({"whoami": 401}, 2, "does not accept the token"),
        ({"repos/create": 403}, 2, "may not write to ada/parts"),
        ({"repos/create": 404}, 2, "no such user or organisation"),
        ({"preupload": 403}, 2, "may not write"),
        ({"POST .*commit": 400}, 6, "The Hub failed"),
        ({"PUT /stored": 403}, 2, "Nothing was committed there"),
    ],
)
def test_refusals_are_one_sentence_and_leave_no_file(hub, untrained, fail, code, words):
    hub.fail = fail
    found, out, err = upload(untrained("unfreeze/tiny", size=16))
    assert (found, out) == (code, ""), err
    lines = [line for line in err.splitlines() if line]
    assert words in err and lines[-2].startswith("error: ") and "Traceback" not in err
    assert set(hub.repos.get(REPO, {"files": {}})["files"]) <= {".gitattributes"}


def test_no_token_no_connection_and_offline(hub, untrained, monkeypatch):
    run = untrained("unfreeze/tiny", size=16)
    monkeypatch.delenv("HF_TOKEN")
    code, _, err = upload(run)
    assert code == 2 and "there is none" in err and "hf auth login" in err
    assert not hub.asked
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        code, _, err = upload(run)
    assert code == 6 and "could not be reached" in err and "Nothing was uploaded" in err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = upload(run)
    assert code in (2, 6) and not hub.asked


@pytest.mark.parametrize("repo", ["parts", "ada/", "ada/pa rts", "a/b/c", "../x", ""])
def test_a_name_that_cannot_be_one_is_refused_before_anything(hub, untrained, repo):
    run = untrained("unfreeze/tiny", size=16)
    code, _, err = call("export", run, "--to", "hub", "--repo", repo)
    assert code == 2 and "USER/NAME" in err and not hub.asked


def test_what_belongs_to_the_hub_alone_is_refused_elsewhere(untrained, tmp_path):
    run, out = untrained("unfreeze/tiny", size=16), tmp_path / "out"
    for more in (["--repo", REPO], ["--private"]):
        code, _, err = call("export", run, "--to", "safetensors", "--out", out, *more)
        assert code == 2 and "--to hub" in err and not out.exists()
