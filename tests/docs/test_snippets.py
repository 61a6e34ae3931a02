"""The snippets of the guides run, and those that people copy do what ours beside them do."""

import io
import json
import math
import re
import shlex
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from unfreeze.cli.parser import parse

DOCS = Path(__file__).parents[2] / "docs"
MARKED = re.compile(r"<!-- test: (.*?) -->\n```python\n(.*?)```", re.DOTALL)
SNIPPETS = {
    name: code
    for page in sorted((DOCS / "guides").glob("*.md"))
    for name, code in MARKED.findall(page.read_text(encoding="utf-8"))
}
HEAD = {
    "projection_head.0.weight": (2048, 2048),
    "projection_head.0.bias": (2048,),
    "projection_head.3.weight": (128, 2048),
    "prototypes.weight": (3000, 128),
}


def ran(name, **names):
    """What a snippet leaves behind; it runs as it stands in the page, offline."""
    code = SNIPPETS[name].replace('weights="IMAGENET1K_V1"', "weights=None")
    space = {"__name__": "snippet", **names}
    exec(compile(code, name, "exec"), space)
    return space


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reference_state(prefix="module."):
    """A ResNet-50's state dict as the reference writes it; each tensor is one number, so small."""
    with torch.device("meta"):
        state = torchvision.models.resnet50().state_dict()
    shapes = {k: (v.shape, v.dtype) for k, v in state.items() if not k.startswith("fc.")}
    shapes.update({k: (torch.Size(v), torch.float32) for k, v in HEAD.items()})
    return OrderedDict(
        (prefix + name, torch.tensor(1 + number / 512, dtype=dtype).expand(shape))
        for number, (name, (shape, dtype)) in enumerate(shapes.items())
    )


def backbone(model):
    return {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}


@pytest.mark.parametrize(
    ("name", "file", "container"),
    [
        ("module", "checkpoint.pth.tar", lambda s: {"epoch": 3, "state_dict": s}),
        ("published", "swav_800ep_pretrain.pth.tar", lambda s: s),
    ],
)
def test_a_checkpoint_of_the_reference_loads_the_same(folder, name, file, container):
    torch.save(container(reference_state()), file)
    theirs, ours = ran(f"{name} theirs"), ran(f"{name} ours")
    expected, found = backbone(theirs["model"]), backbone(ours["model"])
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[k], found[k]) for k in expected)
    assert expected["conv1.weight"].unique().numel() == 1  # it was loaded: not random
    assert theirs["model"].fc.weight.shape == ours["model"].fc.weight.shape
    assert ours["loaded"].share == 1
    assert ours["loaded"].prefix == "module."


def test_another_prefix_is_where_they_differ(folder):
    """What the page says of `strict=False`: nothing is loaded, in silence; ours finds the names."""
    torch.save({"state_dict": reference_state("encoder.")}, "checkpoint.pth.tar")
    theirs, ours = ran("module theirs"), ran("module ours")
    assert theirs["model"].conv1.weight.unique().numel() > 1
    assert ours["model"].conv1.weight.unique().numel() == 1


def commands(page):
    return re.findall(r"^(.*(?:main_swav\.py|unfreeze swav) .*)$", page, re.MULTILINE)


def test_the_command_of_the_reference_means_the_same():
    page = (DOCS / "guides/coming-from-swav.md").read_text(encoding="utf-8")
    theirs, ours = (shlex.split(line) for line in commands(page))
    flags = [
        words[words.index(end) + 1 :] for words, end in ((theirs, "main_swav.py"), (ours, "swav"))
    ]
    assert flags[0] == flags[1]
    settings = parse("swav", flags[0])
    assert (settings.nmb_crops, settings.base_lr, settings.queue_length) == ((2, 6), 0.6, 3840)


def test_freezing_leaves_the_same_layers_to_train():
    model = ran("freeze theirs")["model"]
    trainable = {n.rpartition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert set(ran("freeze ours")["trainable"]) == trainable == {"fc"}


def test_frozen_batch_norm_drifts_and_is_kept():
    space = ran("freeze-batch-norm")
    assert (space["drifted"], space["kept"]) == (True, True)


def test_the_tables_of_layers_count_the_same():
    theirs, ours = ran("summary theirs")["table"], ran("summary ours")["table"]
    assert ours.parameters_total == theirs.total_params == 11_689_512
    assert ours.parameters_trainable == theirs.trainable_params


def test_scan_finds_what_deleting_misses(folder):
    image = io.BytesIO()
    noise = torch.randint(0, 255, (48, 48, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.to(torch.uint8).numpy()).save(image, "JPEG")
    good = image.getvalue()
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.writestr("a/good.jpg", good)
        archive.writestr("a/truncated.jpg", good[: len(good) // 2])
        archive.writestr("b/page.jpg", b"<html>404</html>")
        archive.writestr("b/empty.png", b"")
    found = set(ran("broken ours")["broken"])
    assert found == {"a/truncated.jpg", "b/page.jpg", "b/empty.png"}
    ran("broken theirs")
    left = {p.relative_to("photos").as_posix() for p in Path("photos").rglob("*.*")}
    assert left == {"a/good.jpg", "a/truncated.jpg"}  # verify() does not decode


def test_the_name_of_a_checkpoint_says_its_loss_and_accuracy(folder):
    ran("names ours")
    written = sorted(p.name for p in Path("runs/kept/checkpoints").glob("epoch-*"))
    lines = [json.loads(line) for line in Path("runs/kept/metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line.get("split") == "val"]
    for number, (name, line) in enumerate(zip(written, epochs, strict=True), 1):
        said = re.fullmatch(r"epoch-(\d{4})_loss-(\d+\.\d{3})_acc-(\d\.\d{3})\.ckpt", name)
        assert int(said[1]) == number
        assert float(said[3]) == pytest.approx(line["accuracy"], abs=5e-4)
        state = torch.load(f"runs/kept/checkpoints/{name}", weights_only=True)
        assert float(said[2]) == pytest.approx(state["loss"], abs=5e-4)
    model = torch.nn.Linear(2, 2)
    results = iter([(2.5, 0.25), (1.25, 0.5)])
    ran("names theirs", model=model, train_one_epoch=lambda _: next(results))
    assert len(list(folder.glob("model_epoch*_loss*_acc*.pth"))) == len(written) == 2


def test_the_loop_of_the_guide_learns():
    losses = ran("swav-loop")["losses"]
    assert sum(losses[-8:]) / 8 < math.log(20) - 0.2 < sum(losses[:8]) / 8


def test_every_snippet_is_tested():
    """A marker that no test reads is one that nobody runs."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in SNIPPETS if name.split()[0] not in text] == []
    assert len(SNIPPETS) == 14
    assert sys.version_info >= (3, 11)
