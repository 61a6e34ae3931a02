"""`export --int8`: a quantised file, and its accuracy beside the float file's."""

import io
import json

import numpy as np
import pytest

import unfreeze
from unfreeze.cli.main import main
from unfreeze.errors import UsageError, WeightsError
from unfreeze.reports.intervals import wilson_interval
from unfreeze.runs.exporting import int8 as export_int8
from unfreeze.runtime.terminal import Environment

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture
def run(coloured, tmp_path):
    """A trained classifier, and its labelled images."""
    data = coloured("colours", {"red": 20, "green": 20})
    made = unfreeze.finetune(
        str(data), out=str(tmp_path / "run"), arch="unfreeze/tiny", weights="none", epochs=3
    )
    return made.run


def operators(graph):
    """Kinds of all nodes of a graph, those inside other nodes too."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


@pytest.mark.slow
@pytest.mark.parametrize("preprocessing", [False, True])
def test_accuracy_and_speed_stand_beside_those_of_the_float_file(preprocessing, run, tmp_path):
    out, world = tmp_path / "out", Environment(io.StringIO(), io.StringIO())
    words = ["export", run, "--to", "onnx", "--int8", "--json", "--out", str(out)]
    assert main([*words, *["--with-preprocessing"] * preprocessing], world) == 0
    about = json.loads(world.stdout.getvalue())
    q = about["int8"]
    assert q == json.loads((out / "export.json").read_text())["int8"]
    assert q["file"] == "model-int8.onnx" and q["file"] in about["files"]
    assert about["matched"]  # the float file equals the run
    known = unfreeze.evaluate(run, str(tmp_path / "colours"))
    assert (q["n"], q["split"]) == (known.n, known.split)
    assert q["float_accuracy"] == known.accuracy
    assert q["float_interval"] == list(wilson_interval(round(q["float_accuracy"] * q["n"]), q["n"]))
    assert q["interval"] == list(wilson_interval(round(q["accuracy"] * q["n"]), q["n"]))
    assert q["calibrated_on"] == 40 - known.n  # the training images, and none that is evaluated
    assert q["milliseconds"] > 0 and q["float_milliseconds"] > 0
    assert q["megabytes"] < q["float_megabytes"]
    assert "| int8, `model-int8.onnx` |" in (out / "README.md").read_text()
    plain, kinds = (
        list(operators(onnx.load(str(out / f"model{more}.onnx")).graph)) for more in ("", "-int8")
    )
    assert kinds.count("QuantizeLinear") > 3 and "QuantizeLinear" not in plain
    files = [runtime.InferenceSession(str(out / f"model{more}.onnx")) for more in ("", "-int8")]
    classes = [json.loads(f.get_modelmeta().custom_metadata_map["classes"]) for f in files]
    assert classes == [["green", "red"]] * 2
    image = np.full((50, 31, 3), (200, 20, 20), np.uint8)
    if preprocessing:
        a, b = (f.run(None, {"image": image})[0] for f in files)
        assert a.shape == (2,) and np.abs(a - b).max() < 0.1
        assert "If" in kinds  # the resize is as it was


@pytest.mark.slow
def test_a_fall_in_accuracy_is_refused(run, tmp_path, monkeypatch):
    whole = export_int8.quantize

    def broken(subject, folder, images):
        whole(subject, folder, images)
        model = onnx.load(str(folder / "model.onnx"))
        for tensor in model.graph.initializer:
            if tensor.name.startswith("head."):
                values = -onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, str(folder / "model-int8.onnx"))

    monkeypatch.setattr(export_int8, "quantize", broken)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(WeightsError, match=r"In int8 the accuracy on .* falls from 100"):
        unfreeze.export(run, "onnx", tmp_path / "out", int8=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("to", "head", "message"),
    [
        ("torchscript", True, "--int8 is for ONNX Runtime"),
        ("onnx", False, "--int8 is for classifiers of images"),
    ],
)
def test_what_cannot_be_compared_is_refused(to, head, message, untrained, tmp_path):
    world = Environment(io.StringIO(), io.StringIO())
    run = str(untrained("unfreeze/tiny", head=head))
    words = ["export", run, "--to", to, "--int8", "--out", str(tmp_path / "out")]
    assert main(words, world) == UsageError.exit_code and message in world.stderr.getvalue()
    assert not list(tmp_path.iterdir())


def test_without_labelled_images_nothing_is_quantised(untrained, tmp_path):
    with pytest.raises(UsageError, match="needs labelled images") as caught:
        unfreeze.export(untrained("unfreeze/tiny"), "onnx", tmp_path / "out", int8=True)
    assert "data" in caught.value.next_step and not list(tmp_path.iterdir())
