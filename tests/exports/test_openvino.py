"""OpenVINO, proved with OpenVINO; needs the extra `openvino`."""

import errno
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import unfreeze
from unfreeze.errors import ResourceError, UsageError, WeightsError
from unfreeze.exports import to_openvino
from unfreeze.exports.to_onnx import Onnx
from unfreeze.transfer.predictor import load_classifier, load_features

pytest.importorskip("onnxscript")
openvino = pytest.importorskip("openvino")
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.mark.parametrize("head", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_openvino_gives_what_the_run_gives(head, untrained, tmp_path):
    run, out = untrained("unfreeze/tiny", head=head), tmp_path / "out"
    found = unfreeze.export(str(run), "openvino", str(out))
    assert found.matched and {"model.xml", "model.bin"} <= set(found.files)
    assert not (out / "model.onnx").exists()
    model = openvino.Core().compile_model(str(out / "model.xml"), "CPU", FLOAT32)
    x = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = load_classifier(run) if head else load_features(run)
    with torch.inference_mode():
        given = torch.from_numpy(model(x.numpy())["scores" if head else "features"].copy())
        assert torch.allclose(given, ours(x), atol=found.tolerance)


def test_the_readme_runs_without_unfreeze(untrained, tmp_path):
    run, out = untrained("unfreeze/tiny", temperature=1.5), tmp_path / "out"
    unfreeze.export(run, "openvino", out)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(out / "image.png")
    (out / "image.png").rename(out / "image.jpg")  # Pillow goes by content
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.DOTALL)
    blocked = "import sys\n" + "".join(
        f"sys.modules[{name!r}] = None\n" for name in ("torch", "timm", "unfreeze", "onnx")
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked + code], cwd=out, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (expected,) = load_classifier(run).predict([pixels])
    label, chance = done.stdout.split()
    assert (label, float(chance)) == (expected.label, pytest.approx(expected.probability, abs=1e-4))


@pytest.mark.slow
def test_an_onnx_file_with_preprocessing_runs_in_openvino(untrained, tmp_path):
    run = untrained("unfreeze/tiny")
    unfreeze.export(run, "onnx", tmp_path / "out", with_preprocessing=True)
    program = openvino.Core().compile_model(str(tmp_path / "out/model.onnx"), "CPU", FLOAT32)
    rng = np.random.default_rng(0)
    sizes = ((9, 31), (64, 20), (301, 402))
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    expected = load_classifier(run).predict(images, probabilities=True)
    for image, one in zip(images, expected, strict=True):
        assert program(image)[0] == pytest.approx(list(one.probabilities.values()), abs=1e-3)


def test_preprocessing_inside_is_refused(untrained, tmp_path):
    with pytest.raises(UsageError, match="with_preprocessing"):
        unfreeze.export(
            untrained("unfreeze/tiny"), "openvino", tmp_path / "out", with_preprocessing=True
        )


def test_weights_that_differ_are_seen(untrained, tmp_path, monkeypatch):
    right = Onnx.write

    def wrong(self, subject, folder):
        with torch.no_grad():
            next(subject.network.parameters()).mul_(1.5)
        right(self, subject, folder)
        with torch.no_grad():
            next(subject.network.parameters()).div_(1.5)

    monkeypatch.setattr(Onnx, "write", wrong)
    with pytest.raises(WeightsError, match="differs from the run's model"):
        unfreeze.export(untrained("unfreeze/tiny"), "openvino", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(untrained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match="needs the package openvino") as caught:
        unfreeze.export(untrained("unfreeze/tiny"), "openvino", tmp_path / "out")
    assert "unfreeze[openvino]" in caught.value.next_step


def test_a_full_disk_is_named_and_nothing_is_left(untrained, tmp_path, monkeypatch):
    def full(*given, **more):
        raise RuntimeError("basic_ios::clear: iostream error")

    run, out = untrained("unfreeze/tiny"), tmp_path / "out"
    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(ResourceError, match="could not write the model to"):
        unfreeze.export(run, "openvino", out)
    monkeypatch.undo()

    def no_space(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(to_openvino, "write_bytes", no_space)
    with pytest.raises((ResourceError, OSError)) as caught:
        unfreeze.export(run, "openvino", out)
    assert "model.xml" in str(caught.value) and not out.exists()
