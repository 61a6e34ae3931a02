"""ONNX, proved with ONNX Runtime; needs the extra `onnx`."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import unfreeze
from unfreeze.commands.export import export
from unfreeze.exports.exported_model import load_exported_model
from unfreeze.exports.format import export_format
from unfreeze.exports.verify import verify_export
from unfreeze.transfer.predictor import load_classifier, load_features

pytest.importorskip("onnxscript")
pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("head", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("arch", ["unfreeze/tiny", "torchvision/resnet18"])
def test_onnx_runtime_gives_what_the_run_gives(arch, head, untrained, tmp_path):
    run = untrained(arch, head=head)
    found = export(str(run), "onnx", str(tmp_path / "out"))
    assert found.matched
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    x = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (scores,) = session.run(None, {"images": x.numpy()})
    ours = load_classifier(run) if head else load_features(run)
    with torch.inference_mode():
        assert torch.allclose(torch.from_numpy(scores), ours(x), atol=found.tolerance)
    assert [o.name for o in session.get_outputs()] == ["scores" if head else "features"]


@pytest.mark.parametrize("head", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_readme_needs_numpy_pillow_and_onnxruntime_alone(head, untrained, tmp_path):
    run = (
        untrained("unfreeze/tiny", head=head, temperature=1.5)
        if head
        else untrained("unfreeze/tiny", head=False)
    )
    out = tmp_path / "out"
    export(str(run), "onnx", str(out))
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (40, 60, 4)).astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(out / "image.jpg")  # Pillow goes by content
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.DOTALL)
    blocked = "import sys\n" + "".join(
        f"sys.modules[{name!r}] = None\n"
        for name in ("torch", "torchvision", "timm", "unfreeze", "cv2", "onnx", "onnxscript")
    )
    (out / "answer.py").write_text(blocked + code)
    done = subprocess.run(
        [sys.executable, "answer.py"], cwd=out, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    if not head:
        assert done.stdout.strip() == "(1, 128)"
        return
    label, chance = done.stdout.split()
    (expected,) = load_classifier(run).predict([out / "image.jpg"])
    assert (label, float(chance)) == (expected.label, pytest.approx(expected.probability, abs=1e-4))


def test_classes_preprocessing_and_version_stand_in_the_file(untrained, tmp_path):
    run = untrained("unfreeze/tiny", temperature=1.5)
    export(str(run), "onnx", str(tmp_path / "out"))
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held["classes"]) == ["cat", "dog", "owl"]
    assert json.loads(held["preprocess"]) == load_classifier(run).preprocess.as_dict()
    assert json.loads(held["temperature"]) == 1.5
    assert (held["unfreeze"], held["arch"]) == (unfreeze.__version__, "unfreeze/tiny")
    assert b".py" not in (tmp_path / "out" / "model.onnx").read_bytes()  # no paths of this machine


@pytest.mark.parametrize("size", [48, pytest.param(224, marks=pytest.mark.slow)])
def test_a_vision_transformer_is_recorded_for_its_size(size, untrained, tmp_path):
    run = untrained("timm/vit_tiny_patch16_224", size=size, resize=size)
    assert export(str(run), "onnx", str(tmp_path / "out")).matched


def test_other_weights_are_seen(untrained, tmp_path):
    subject = load_exported_model(untrained("unfreeze/tiny"))
    other = load_exported_model(untrained("unfreeze/tiny"))
    other.network.head.bias.data += 0.5
    export_format("onnx").write(other, tmp_path)
    found = verify_export(export_format("onnx"), subject, tmp_path, torch.randn(3, 3, 32, 32))
    assert not found.matched and found.max_difference == pytest.approx(0.5, rel=1e-3)
