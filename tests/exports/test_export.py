"""Every format is loaded by its own tool and computes what the run computes; or it is refused."""

import io
import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import unfreeze
from unfreeze.cli.main import main
from unfreeze.commands.export import export
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import UsageError, WeightsError
from unfreeze.exports.exported_model import load_exported_model
from unfreeze.exports.format import export_format
from unfreeze.exports.verify import verify_export
from unfreeze.exports.write import timm_crop_pct
from unfreeze.runtime.terminal import Environment
from unfreeze.transfer.predictor import load_classifier, load_features

FIELDS = {"out", "to", "arch", "kind", "classes", "matched", "max_difference", "tolerance"}
SQUEEZENET = "torchvision/squeezenet1_1"
CASES = [
    *(
        (arch, to, size, head)
        for head in (True, False)
        for arch, to, size in [
            ("torchvision/resnet18", "torchvision", 32),
            ("torchvision/resnet18", "timm", 32),
            (SQUEEZENET, "torchvision", 48),
            (SQUEEZENET, "safetensors", 48),
            (SQUEEZENET, "torchscript", 48),
            ("timm/mobilenetv3_small_050", "timm", 48),
            ("timm/mobilenetv3_small_050", "safetensors", 48),
            ("unfreeze/tiny", "safetensors", 16),
            ("unfreeze/tiny", "torchscript", 16),
        ]
    ),
    ("torchvision/googlenet", "torchvision", 48, True),
    ("timm/resnet18", "torchvision", 32, True),
]


def images(size, count=5):
    draw = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, size, size, generator=draw)


def run_readme(folder, photo, monkeypatch):
    """What the README's own lines leave behind, run where it lies beside an image."""
    text = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    shutil.copy(photo, folder / "image.jpg")  # Pillow goes by content
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)  # as for a script that lies there
    monkeypatch.delitem(sys.modules, "prepare", raising=False)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", said)
    scope = {}
    exec(code, scope)
    monkeypatch.undo()
    sys.modules.pop("prepare", None)
    assert len(code.splitlines()) <= 22
    return scope, said.getvalue()


@pytest.mark.parametrize(("arch", "to", "size", "head"), CASES)
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")  # in the README
def test_the_readme_alone_gives_what_the_run_gives(
    arch, to, size, head, untrained, photo, tmp_path, monkeypatch
):
    run = untrained(arch, head=head, size=size, resize=size + 4)
    found = export(str(run), to, str(tmp_path / "out"))
    assert found.matched and found.max_difference <= found.tolerance < 0.01
    assert set(vars(found)) >= FIELDS and found.files == sorted(
        path.name for path in (tmp_path / "out").iterdir()
    )
    scope, said = run_readme(tmp_path / "out", photo, monkeypatch)
    ours = load_classifier(run) if head else load_features(run)
    x = images(size)
    with torch.inference_mode():
        assert torch.allclose(scope["model"](x), ours(x), atol=found.tolerance)
    if head:
        (expected,) = ours.predict([photo])
        label, chance = said.split()
        assert label == expected.label
        assert float(chance) == pytest.approx(expected.probability, abs=1e-4)
    else:
        assert said.strip() == f"torch.Size([1, {ours(x).shape[1]}])"


def test_torchvision_loads_it_strictly_and_without_pickled_code(untrained, tmp_path):
    run = untrained("torchvision/resnet18")
    export(str(run), "torchvision", str(tmp_path / "out"))
    tensors = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    assert type(tensors) is dict and all(type(t) is torch.Tensor for t in tensors.values())
    network = torchvision.models.resnet18(num_classes=3)
    assert str(network.load_state_dict(tensors, strict=True)) == "<All keys matched successfully>"
    x, ours = images(32), load_classifier(run)
    with torch.inference_mode():
        assert torch.equal(network.eval()(x), ours(x))


def test_a_swav_run_becomes_a_resnet_without_fc(untrained, tmp_path):
    run = untrained("torchvision/resnet18", head=False)
    export(str(run), "torchvision", str(tmp_path / "out"))
    tensors = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    report = torchvision.models.resnet18().load_state_dict(tensors, strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["fc.weight", "fc.bias"], [])


def test_timm_opens_the_folder_with_classes_and_preprocessing(untrained, photo, tmp_path):
    run = untrained("timm/resnet18", size=40, resize=47)
    out = tmp_path / "out"
    export(str(run), "timm", str(out))
    network = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert network.pretrained_cfg["label_names"] == ["cat", "dog", "owl"]
    assert network.num_classes == 3
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    image = Image.open(photo)
    ours = load_classifier(run)
    assert torch.allclose(prepare(image), ours.preprocess.apply(np.asarray(image)), atol=1e-5)
    plain = timm.create_model("resnet18", num_classes=3)
    plain.load_state_dict(load_file(out / "model.safetensors"), strict=True)


def test_the_crop_that_timm_computes_is_ours():
    for size in range(16, 400, 7):
        for resize in range(size, size + 60):
            share = timm_crop_pct(Preprocess(size, resize))
            assert int(np.floor(size / share)) == resize and share == pytest.approx(size / resize)


def test_what_safetensors_holds_opens_here_too(untrained, tmp_path):
    run = untrained("unfreeze/tiny")
    out = tmp_path / "out"
    export(str(run), "safetensors", str(out))
    again = load_exported_model(out)
    assert again.card == load_exported_model(run).card
    assert all(
        torch.equal(t, again.tensors()[n]) for n, t in load_exported_model(run).tensors().items()
    )


@pytest.mark.parametrize("name", ["alpha", "sixteen"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")  # in the README
def test_the_readme_answers_as_predict_does_on_alpha_and_sixteen_bits(
    name, untrained, tmp_path, monkeypatch
):
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (40, 60, 4)).astype(np.uint8)
    if name == "sixteen":
        image = draw.integers(0, 4096, (40, 60)).astype(np.uint16)
    Image.fromarray(image).save(tmp_path / "image.png")
    run = untrained("unfreeze/tiny", size=16, resize=20, temperature=1.7)
    export(str(run), "torchscript", str(tmp_path / "out"))
    _, said = run_readme(tmp_path / "out", tmp_path / "image.png", monkeypatch)
    (expected,) = load_classifier(run).predict([tmp_path / "image.png"])
    label, chance = said.split()
    assert (label, float(chance)) == (expected.label, pytest.approx(expected.probability, abs=1e-4))


@pytest.mark.parametrize("to", ["timm", "safetensors", "torchscript"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")  # in the README
def test_a_vision_transformer_at_another_size_is_exported(
    to, untrained, photo, tmp_path, monkeypatch
):
    run = untrained("timm/vit_tiny_patch16_224", size=48, resize=52)
    export(str(run), to, str(tmp_path / "out"))
    scope, said = run_readme(tmp_path / "out", photo, monkeypatch)
    x, ours = images(48), load_classifier(run)
    with torch.inference_mode():
        assert torch.allclose(scope["model"](x), ours(x), atol=1e-4)
    assert said.split()[0] == ours.predict([photo])[0].label


@pytest.mark.parametrize("head", [True, False])
def test_the_small_stem_is_no_librarys_and_its_readme_says_what_to_change(
    untrained, photo, tmp_path, monkeypatch, head
):
    run = untrained("torchvision/resnet18", stem="small", head=head)
    for to in ("torchvision", "timm"):
        with pytest.raises(UsageError, match="small stem") as caught:
            export(str(run), to, str(tmp_path / "out"))
        assert "to='safetensors'" in caught.value.next_step
    assert not (tmp_path / "out").exists()
    export(str(run), "safetensors", str(tmp_path / "out"))
    scope, _ = run_readme(tmp_path / "out", photo, monkeypatch)
    assert type(scope["model"]) is torchvision.models.ResNet
    x, ours = images(32), load_classifier(run) if head else load_features(run)
    with torch.inference_mode():
        assert torch.allclose(scope["model"](x), ours(x), atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "to"),
    [
        ("unfreeze/tiny", "timm"),
        ("unfreeze/tiny", "torchvision"),
        ("torchvision/squeezenet1_1", "timm"),
        ("timm/mobilenetv3_small_050", "torchvision"),
        ("torchvision/efficientnet_b0", "timm"),
        ("torchvision/inception_v3", "timm"),
    ],
)
def test_a_network_that_the_target_has_not_is_refused_before_anything_is_written(
    arch, to, untrained, tmp_path
):
    run = untrained(arch, size=32)
    with pytest.raises(UsageError) as caught:
        export(str(run), to, str(tmp_path / "out"))
    assert to in caught.value.sentence and "safetensors" in caught.value.next_step
    assert not list(tmp_path.iterdir())


def change_one_weight(folder):
    """The smallest damage: one weight, by little."""
    path = folder / "model.pth"
    tensors = torch.load(path, weights_only=True)
    tensors["features.3.squeeze.weight"][0, 0, 0, 0] += 1e-7
    torch.save(tensors, path)


def test_what_is_written_is_what_is_judged(untrained, tmp_path):
    subject = load_exported_model(untrained(SQUEEZENET))
    chosen, x = export_format("torchvision"), images(32)
    chosen.write(subject, tmp_path)
    assert verify_export(chosen, subject, tmp_path, x).matched
    change_one_weight(tmp_path)
    found = verify_export(chosen, subject, tmp_path, x)
    assert not found.matched and found.differing == ("features.3.squeeze.weight",)


@pytest.mark.parametrize(
    ("arch", "name", "to"),
    [
        ("unfreeze/tiny", "head.bias", "torchscript"),
        ("unfreeze/tiny", "stem.1.running_var", "torchscript"),
        ("torchvision/resnet18", "bn1.running_var", "timm"),
    ],
)
def test_a_program_or_a_folder_with_other_weights_is_seen(arch, name, to, untrained, tmp_path):
    subject, other = load_exported_model(untrained(arch)), load_exported_model(untrained(arch))
    other.network.state_dict()[name].add_(0.5)
    chosen, x = export_format(to), images(32)
    chosen.write(other, tmp_path)
    found = verify_export(chosen, subject, tmp_path, x)
    assert not found.matched and found.max_difference > found.tolerance


def test_nan_never_matches(untrained, tmp_path):
    subject = load_exported_model(untrained("unfreeze/tiny"))
    other = load_exported_model(untrained("unfreeze/tiny"))
    other.network.head.bias.data[0] = float("nan")
    chosen = export_format("torchscript")
    chosen.write(other, tmp_path)
    assert not verify_export(chosen, subject, tmp_path, images(32)).matched


class ForTwo(nn.Module):
    """A network whose forward pass takes the size of its first batch for granted."""

    def forward(self, x):
        return torch.zeros(len(x), 3) + x.flatten(1)[:, :3].reshape(int(x.shape[0]), 3)


def test_a_program_recorded_for_one_size_of_batch_is_seen(untrained, tmp_path):
    subject = replace(load_exported_model(untrained("unfreeze/tiny")), network=ForTwo())
    chosen = export_format("torchscript")
    chosen.write(subject, tmp_path)
    with pytest.raises(WeightsError, match="does not run"):
        verify_export(chosen, subject, tmp_path, images(32))


def test_a_mismatch_is_an_error_and_leaves_nothing(untrained, tmp_path, monkeypatch):
    from unfreeze.exports.to_torchvision import Torchvision

    whole = Torchvision.write

    def broken(self, subject, folder):
        whole(self, subject, folder)
        change_one_weight(folder)

    run = untrained(SQUEEZENET)
    export(str(run), "torchvision", str(tmp_path / "out"))
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(Torchvision, "write", broken)
    for out, more in (("new", []), ("out", ["--overwrite"])):
        world = Environment(io.StringIO(), io.StringIO())
        words = ["export", str(run), "--to", "torchvision", "--out", str(tmp_path / out), *more]
        assert main(words, world) == WeightsError.exit_code
        assert (
            "in 1 tensors, the first is" in world.stderr.getvalue() and not world.stdout.getvalue()
        )
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_the_folder_is_new_or_an_exports(untrained, tmp_path):
    run, out = untrained("unfreeze/tiny"), tmp_path / "out"
    export(str(run), "safetensors", str(out))
    with pytest.raises(UsageError, match="not empty"):
        export(str(run), "safetensors", str(out))
    export(str(run), "safetensors", str(out), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (out / "left over").touch()
    with pytest.raises(UsageError, match="holds left over, which was not written by an export"):
        export(str(run), "safetensors", str(out), overwrite=True)
    (out / "left over").unlink()
    (out / "export.json").unlink()
    with pytest.raises(UsageError, match="not written by an export"):
        export(str(run), "safetensors", str(out), overwrite=True)
    with pytest.raises(UsageError, match="export needs an output folder"):
        export(str(run), "safetensors", "")
    with pytest.raises(UsageError, match="torchvision, timm"):
        unfreeze.export(str(run), None, str(out))


def test_classes_preprocessing_licence_and_origin_go_along(untrained, tmp_path):
    export(str(untrained(SQUEEZENET)), "torchvision", str(tmp_path / "out"))
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["classes"] == ["cat", "dog", "owl"] and about["matched"] is True
    assert about["preprocess"]["resize"] == 36 and about["preprocess"]["mean"] == [0.4, 0.5, 0.6]
    assert about["provenance"]["verb"] == "finetune" and about["provenance"]["run"] == "swav"
    assert set(about["files"]) == {"README.md", "model.pth", "prepare.py"}
    assert "**For these tests alone.**" in (tmp_path / "out" / "README.md").read_text()


def test_a_real_run_is_compared_on_its_own_views_or_on_named_images(coloured, tmp_path):
    data = str(coloured("colours", {"red": 8, "green": 8}))
    made = unfreeze.finetune(
        data, out=str(tmp_path / "run"), arch="unfreeze/tiny", weights="none", epochs=1
    )
    found = export(made.run, "safetensors", str(tmp_path / "a"))
    assert found.matched and found.compared_on == "8 views of the run's training images"
    found = export(made.run, "torchscript", str(tmp_path / "b"), data=data)
    assert found.matched and found.compared_on == "16 images of colours"
    found = export(made.model, "torchscript", str(tmp_path / "c"))
    assert found.matched and "noise" in found.compared_on
    known = unfreeze.evaluate(str(tmp_path / "a"), data, split="all")
    assert (known.n, known.seen_in_training) == (16, made.images)


def test_onnx_asks_for_its_packages(untrained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match="needs the package onnx") as caught:
        export(str(untrained("unfreeze/tiny")), "onnx", str(tmp_path / "out"))
    assert "unfreeze[onnx]" in caught.value.next_step
