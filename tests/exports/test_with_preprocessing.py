"""Preprocessing inside the exported file: equal to Pillow to the bit, and to `predict`."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import unfreeze
from unfreeze.checkpoints.model_file import ModelCard, save_model
from unfreeze.cli.main import main
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import UsageError, WeightsError
from unfreeze.exports.exported_model import load_exported_model
from unfreeze.exports.format import export_format
from unfreeze.exports.verify import verify_on_images
from unfreeze.exports.with_preprocessing import ImagePreprocessing
from unfreeze.runtime.terminal import Environment
from unfreeze.transfer.predictor import load_classifier, load_features

TRASHNET = Path(__file__).parents[3] / "shared" / "data" / "trashnet-subset.zip"
FITS = ("crop", "squash", "pad")
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 400))
HOWS = [
    {"fit": fit, "interpolation": filter_}
    for fit, filter_ in zip(FITS, ("bicubic", "bilinear", "bicubic"), strict=True)
]
EDGES = [(1, 1), (1, 7), (7, 1), (2, 300), (300, 2), (50, 150), (150, 50), (97, 101), (36, 36)]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")


@pytest.fixture(params=[pytest.param("onnx", marks=pytest.mark.slow), "torchscript"])
def to(request):
    """A format that holds a program; each conversion to ONNX takes ten seconds."""
    if request.param == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    return request.param


def pixels(height, width, kind="noise", seed=0):
    draw = np.random.default_rng(seed)
    if kind == "extremes":  # where bicubic overshoots, and sums are largest
        return draw.choice(np.array([0, 255], np.uint8), (height, width, 3))
    if kind == "ramp":  # ties of the rounding are frequent
        ramp = np.indices((height, width)).sum(axis=0)[..., None]
        return (ramp * np.array([1, 2, 5]) % 256).astype(np.uint8)
    return draw.integers(0, 256, (height, width, 3)).astype(np.uint8)


def in_the_graph(preprocess, image, **more):
    return ImagePreprocessing(preprocess, **more)(torch.from_numpy(image.copy()))[0]


@settings(max_examples=300, deadline=None)
@given(
    height=SIDES,
    width=SIDES,
    side=st.integers(8, 70),
    margin=st.integers(0, 30),
    fit=st.sampled_from(FITS),
    filter_=st.sampled_from(("bilinear", "bicubic")),
    kind=st.sampled_from(("noise", "extremes", "ramp")),
)
def test_it_equals_pillow_to_the_bit(height, width, side, margin, fit, filter_, kind):
    how = Preprocess(side, side + margin, filter_, fit=fit)
    image = pixels(height, width, kind)
    assert torch.equal(in_the_graph(how, image), how.apply(image))


def test_a_squashed_input_need_not_be_square():
    how = Preprocess(20, 20, fit="squash", width=33)
    assert torch.equal(in_the_graph(how, pixels(61, 47)), how.apply(pixels(61, 47)))


@pytest.mark.parametrize(("height", "width"), [(200, 40), (40, 200), (90, 90)])
def test_pillow_before_13_resizes_horizontally_first(height, width):
    image, how = pixels(height, width), Preprocess(24, 24, fit="squash")
    older = Image.fromarray(image).resize((24, height), Image.Resampling.BILINEAR)
    older = older.resize((24, 24), Image.Resampling.BILINEAR)
    planes = in_the_graph(how, image, pillow="12.1.0")
    assert torch.equal(planes, how.apply(np.asarray(older)))


@pytest.mark.parametrize(
    ("to", "how"),
    [
        ("onnx", HOWS[0]),
        *(pytest.param("onnx", how, marks=pytest.mark.slow) for how in HOWS[1:]),
        *(("torchscript", how) for how in HOWS),
    ],
    indirect=["to"],
)
def test_one_file_gives_what_predict_gives_for_images_of_any_size(to, how, untrained, tmp_path):
    run = untrained("unfreeze/tiny", how=how, temperature=0.05)
    world = Environment(io.StringIO(), io.StringIO())
    out = tmp_path / "out"
    words = ["export", str(run), "--to", to, "--with-preprocessing", "--out", str(out), "--json"]
    assert main(words, world) == 0, world.stderr.getvalue()
    about = json.loads(world.stdout.getvalue())
    assert about["with_preprocessing"] and about["matched"]
    assert about["max_difference"] < 1e-5 and about["tolerance"] == 1e-4
    assert "copies of 1x1 to 1201x1603 pixels" in about["compared_on"]
    stored = json.loads((out / "export.json").read_text())
    assert stored["gives"] == "probabilities" and stored["with_preprocessing"]
    assert stored["max_difference"] == about["max_difference"]
    program = export_format(to).read(load_exported_model(run, with_preprocessing=True), out)
    images = [pixels(*size, seed=number) for number, size in enumerate(EDGES)]
    results = [program.forward(torch.from_numpy(image)) for image in images]
    expected = load_classifier(run).predict(images, probabilities=True)
    wanted = torch.tensor([list(one.probabilities.values()) for one in expected])
    assert torch.allclose(torch.stack(results), wanted, atol=1e-5)
    assert wanted.max() - wanted.min() > 0.2  # the images differ for this network


def test_a_backbone_gives_features(to, untrained, tmp_path):
    run = untrained("unfreeze/tiny", head=False)
    made = unfreeze.export(run, to, tmp_path / "out", with_preprocessing=True)
    assert made.matched
    program = export_format(to).read(
        load_exported_model(run, with_preprocessing=True), tmp_path / "out"
    )
    image, ours = pixels(45, 71), load_features(run)
    (features,) = ours.outputs([lambda: image])
    given = program.forward(torch.from_numpy(image))
    assert torch.allclose(given, features[0], atol=made.tolerance)


def test_other_means_are_refused(to, untrained, tmp_path, monkeypatch):
    """The graph is compared with `predict`, so whatever it does otherwise is seen."""
    right = ImagePreprocessing.__init__

    def wrong(self, preprocess, *more):
        right(self, preprocess, *more)
        self.shift += 2

    monkeypatch.setattr(ImagePreprocessing, "__init__", wrong)
    with pytest.raises(WeightsError, match="differs from the run's model by"):
        unfreeze.export(untrained("unfreeze/tiny"), to, tmp_path / "out", with_preprocessing=True)
    assert not list(tmp_path.iterdir())


class WithoutAntialias(ImagePreprocessing):
    """Bilinear between the nearest pixels, as many runtimes resize."""

    def weights(self, seen, length, positions, count):
        x = (positions - ((seen + 0.5) * (count / length))[:, None] + 0.5).abs()
        values = (1 - x).clamp(min=0)
        return (values / values.sum(dim=1, keepdim=True) * 4194304.0).round()


def test_a_resize_without_antialias_is_refused(untrained, tmp_path, monkeypatch):
    from unfreeze.exports import with_preprocessing

    subject = load_exported_model(untrained("unfreeze/tiny"), with_preprocessing=True)
    chosen, images = export_format("torchscript"), [pixels(90, 120), pixels(70, 64)]
    chosen.write(subject, tmp_path)
    assert verify_on_images(chosen, subject, tmp_path, images).matched
    monkeypatch.setattr(with_preprocessing, "ImagePreprocessing", WithoutAntialias)
    chosen.write(subject, tmp_path)
    made = verify_on_images(chosen, subject, tmp_path, images)
    assert not made.matched and made.max_difference > made.tolerance


def blocked(*names):
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in names)


def photographs(folder):
    """Images as users have them: rotated by EXIF, grey, with a palette, long."""
    upright = Image.fromarray(pixels(40, 60, "ramp")).resize((301, 190))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(folder / "rotated.jpg", exif=exif, quality=90)
    upright.convert("L").save(folder / "grey.png")
    upright.convert("P").save(folder / "palette.png")
    upright.crop((0, 0, 301, 60)).save(folder / "long.webp")
    return sorted(folder.iterdir())


def test_the_readme_runs_without_unfreeze(to, untrained, tmp_path):
    run, out = untrained("unfreeze/tiny", temperature=1.3), tmp_path / "out"
    unfreeze.export(run, to, out, with_preprocessing=True)
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.DOTALL)
    assert len(code.splitlines()) <= 11
    names = ["unfreeze", "torchvision", "timm", "cv2", "onnx", "onnxscript", "prepare"]
    names += ["torch"] if to == "onnx" else ["onnxruntime"]
    (tmp_path / "photographs").mkdir()
    for path in photographs(tmp_path / "photographs"):
        (out / "image.jpg").write_bytes(path.read_bytes())  # Pillow goes by content
        done = subprocess.run(
            [sys.executable, "-I", "-W", "ignore", "-c", blocked(*names) + code],
            cwd=out,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        label, chance = done.stdout.split()
        (expected,) = load_classifier(run).predict([path])
        assert label == expected.label, path
        assert float(chance) == pytest.approx(expected.probability, abs=1e-5)


@pytest.mark.skipif(not TRASHNET.is_file(), reason="needs the photographs in ../shared/data")
def test_it_equals_predict_on_photographs(to, untrained, tmp_path):
    run = untrained("unfreeze/tiny", size=64, resize=72)
    made = unfreeze.export(run, to, tmp_path / "out", with_preprocessing=True, data=str(TRASHNET))
    assert made.matched and made.max_difference < 1e-5
    assert made.compared_on.startswith("16 images of trashnet-subset.zip and 13 copies")


def test_the_runs_own_images_are_used_while_they_are_there(coloured, tmp_path):
    data = coloured("colours", {"red": 8, "green": 8})
    made = unfreeze.finetune(
        str(data), out=str(tmp_path / "run"), arch="unfreeze/tiny", weights="none", epochs=1
    )
    a = unfreeze.export(made.run, "torchscript", tmp_path / "a", with_preprocessing=True)
    assert a.compared_on.startswith("16 images of colours and")
    data.rename(tmp_path / "gone")
    b = unfreeze.export(made.run, "torchscript", tmp_path / "b", with_preprocessing=True)
    assert b.compared_on.startswith("8 views of the run's training images and")


@pytest.mark.parametrize("target", ["torchvision", "timm", "safetensors"])
def test_weights_alone_cannot_hold_it(target, untrained, tmp_path):
    with pytest.raises(UsageError, match="without a program") as caught:
        unfreeze.export(
            untrained("unfreeze/tiny"), target, tmp_path / "out", with_preprocessing=True
        )
    assert "onnx" in caught.value.next_step and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arch", "kind", "word"),
    [("smp/unet/resnet18", "predictor", "segmentation"), ("hf/bert", "classifier", "text")],
)
def test_models_of_masks_and_texts_are_refused(arch, kind, word, tmp_path):
    card = ModelCard(arch=arch, kind=kind, task=word, classes=("a", "b"), preprocess={})
    save_model(tmp_path / "run" / "model", {"weight": torch.zeros(1)}, card)
    world = Environment(io.StringIO(), io.StringIO())
    words = ["export", tmp_path / "run", "--to", "onnx", "--with-preprocessing", "--out"]
    assert main([*map(str, words), str(tmp_path / "out")], world) == UsageError.exit_code
    assert f"this is a {word} model" in world.stderr.getvalue()
    assert not (tmp_path / "out").exists()
