"""ONNX, proved with ONNX Runtime; needs the extra `onnx`."""

import pytest
import torch

from unfreeze.api.export import export
from unfreeze.exports.agreement import agreement
from unfreeze.exports.subject import read_subject
from unfreeze.exports.targets import target
from unfreeze.transfer.predictor import load_classifier, load_features

pytest.importorskip("onnxscript")
pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("arch", ["unfreeze/tiny", "torchvision/resnet18"])
def test_onnx_runtime_gives_what_the_run_gives(arch, head, untrained, tmp_path):
    run = untrained(arch, head=head)
    found = export(str(run), "onnx", str(tmp_path / "out"))
    assert found.matched
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    x = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (scores,) = session.run(None, {"pictures": x.numpy()})
    ours = load_classifier(run) if head else load_features(run)
    with torch.inference_mode():
        assert torch.allclose(torch.from_numpy(scores), ours(x), atol=found.tolerance)
    assert [o.name for o in session.get_outputs()] == ["scores" if head else "features"]


def test_other_weights_are_seen(untrained, tmp_path):
    subject = read_subject(untrained("unfreeze/tiny"))
    other = read_subject(untrained("unfreeze/tiny"))
    other.network.head.bias.data += 0.5
    target("onnx").write(other, tmp_path)
    found = agreement(target("onnx"), subject, tmp_path, torch.randn(3, 3, 32, 32))
    assert not found.matched and found.max_difference == pytest.approx(0.5, rel=1e-3)
