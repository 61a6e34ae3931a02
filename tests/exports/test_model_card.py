"""The model card: what the Hub's own reader finds in it is what the run's files say."""

import io
import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard as HubCard

from unfreeze.checkpoints.model_file import ModelCard, load_model, read_card
from unfreeze.cli.main import main
from unfreeze.exports.model_card import CardEvaluation, CardMetric, model_card
from unfreeze.models.weight_sources import LICENCE
from unfreeze.reports.intervals import wilson_interval
from unfreeze.runtime.terminal import Environment

TINY = ["--arch", "unfreeze/tiny", "--image-size", "16", "--epochs", "1", "--workers", "0"]


def call(*words):
    out, err = io.StringIO(), io.StringIO()
    code = main(list(map(str, words)), Environment(out, err))
    assert code == 0, err.getvalue()
    return out.getvalue()


def card(**changed):
    about = {"verb": "finetune", "weights": "none", "freeze": "all", "seed": 3, "images": 80}
    return replace(
        ModelCard(
            kind="classifier",
            arch="torchvision/resnet18",
            classes=("cat", "dog"),
            preprocess={"image_size": 32, "resize": 36, "mean": [0.5], "std": [0.2], "fit": "pad"},
            provenance=about | changed.pop("provenance", {}),
        ),
        **changed,
    )


MEASURED = CardEvaluation("test", 40, [CardMetric("accuracy", 0.9, (0.77, 0.96))])


def read(text):
    return HubCard(text).data


@pytest.fixture(scope="module")
def runs(colours, tmp_path_factory):
    place = tmp_path_factory.mktemp("cards")
    colours(place / "d", {"red": 12, "green": 12})
    call("pretrain", place / "d", *TINY, "--out", place / "swav")
    call("finetune", place / "d", *TINY, "--weights", place / "swav", "--out", place / "parts")
    return place


def test_a_finetuned_model_has_its_validation_accuracy_with_interval(runs):
    text = (runs / "parts/model/README.md").read_text()
    about, measured = read(text), json.loads((runs / "parts/evaluation.json").read_text())
    assert (about.library_name, about.pipeline_tag) == ("unfreeze", "image-classification")
    assert "license" not in about.to_dict() and "base_model" not in about.to_dict()
    accuracy = next(r for r in about.eval_results if r.metric_type == "accuracy")
    assert accuracy.metric_value == pytest.approx(measured["accuracy"], abs=1e-6)
    assert accuracy.dataset_split == "val"
    low, high = wilson_interval(measured["correct"], measured["n"])
    assert f"{low:.4f} to {high:.4f}, n = {measured['n']}" in accuracy.metric_name
    assert f"| {low:.4f} to {high:.4f} |" in text and "green, red" in text
    trained = read_card(runs / "parts").provenance["images"]
    assert f"| training images | {trained} |" in text
    # the folder of the initial weights by its name only: the card may go public
    assert "| initial weights | swav (unfreeze/tiny) |" in text and str(runs) not in text
    assert "A test set: no images that were kept apart" in text


def test_a_pretrained_backbone_has_its_knn_accuracy(runs):
    text = (runs / "swav/model/README.md").read_text()
    assert read(text).pipeline_tag == "image-feature-extraction"
    assert "| knn_accuracy |" in text and "swav" in read(text).tags
    assert read(text).eval_results is None  # k-NN over the features is not the model alone


def test_the_model_is_what_it_was_without_its_card(runs, tmp_path):
    """The card is no part of what checksums and commands read."""
    from shutil import copytree

    copytree(runs / "parts/model", tmp_path / "with")
    copytree(runs / "parts/model", tmp_path / "without")
    (tmp_path / "without/README.md").unlink()
    assert load_model(tmp_path / "with")[1] == load_model(tmp_path / "without")[1]
    images = runs / "d"
    assert call("predict", tmp_path / "with", images) == call(
        "predict", tmp_path / "without", images
    )


def test_an_export_has_the_latest_evaluation(runs, tmp_path):
    call("evaluate", runs / "parts", runs / "d", "--split", "all")
    measured = json.loads((runs / "parts/evaluation.json").read_text())
    for to, library in (("safetensors", "unfreeze"), ("torchscript", "unfreeze")):
        call("export", runs / "parts", "--to", to, "--out", tmp_path / to)
        about = read((tmp_path / to / "README.md").read_text())
        accuracy = next(r for r in about.eval_results if r.metric_type == "accuracy")
        assert about.library_name == library and accuracy.dataset_split == "all"
        assert f"n = {measured['n']}" in accuracy.metric_name
    # the folder alone states no evaluation: it does not know any
    call("export", runs / "parts/model", "--to", "safetensors", "--out", tmp_path / "again")
    text = (tmp_path / "again/README.md").read_text()
    assert "| accuracy |" in text  # it lies in its run; a copy elsewhere has none
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in (runs / "parts/model").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    call("export", copy, "--to", "safetensors", "--out", tmp_path / "alone")
    text = (tmp_path / "alone/README.md").read_text()
    assert "None is recorded with this model." in text and read(text).eval_results is None


def test_the_licence_and_base_model_are_those_of_the_weights():
    about = read(model_card(card(provenance={"weights": "none"}), "r", MEASURED)).to_dict()
    assert "license" not in about and "base_model" not in about
    swav = card(provenance={"weights": "swav (https://x/swav.pth)", "licence": LICENCE})
    text = model_card(swav, "r", MEASURED)
    assert read(text).license == "cc-by-nc-4.0" and LICENCE in text
    other = card(provenance={"weights": "mine", "licence": "Ask me."})
    text = model_card(other, "r", MEASURED)
    assert "license" not in read(text).to_dict() and "Ask me." in text
    timm = card(provenance={"weights": "timm resnet18.a1_in1k"})
    assert read(model_card(timm, "r", MEASURED)).base_model == "timm/resnet18.a1_in1k"


def test_tasks_have_the_hubs_names():
    def tag(**changed):
        return read(model_card(card(**changed), "r", MEASURED)).to_dict().get("pipeline_tag")

    assert tag() == tag(task="multilabel", kind="predictor") == "image-classification"
    assert tag(arch="hf/bert", task="text-classification") == "text-classification"
    segments = {"arch": "smp/unet/resnet18", "task": "segmentation", "kind": "predictor"}
    assert tag(**segments) == "image-segmentation"
    assert tag(kind="backbone", classes=()) == "image-feature-extraction"
    assert tag(kind="predictor", task="regression", classes=(), outputs=1) is None
    text = model_card(
        card(kind="predictor", task="regression", classes=(), outputs=1), "r", MEASURED
    )
    assert "A network of the task regression, with 1 output." in text


def test_what_was_selected_on_the_evaluated_images_is_said():
    chosen = replace(MEASURED, split="val", used_for_choosing=True, leaked=2)
    text = model_card(card(), "r", chosen)
    assert "these values are optimistic" in text and "2 of them have a near-duplicate" in text
    assert "optimistic" not in model_card(card(), "r", MEASURED)
    assert "A test set: no images" in text
    assert "A test set: no images" not in model_card(card(), "r", MEASURED)


@pytest.mark.parametrize("name", ['a: "b" #c', "- x", "naïve ✓", "a|b\nc", "yes", "\udcff"])
def test_any_name_is_read_back(name):
    strange = card(classes=(name.replace("\udcff", "?"), "dog"))
    about = read(model_card(strange, name, MEASURED))
    assert about.model_name == about.model_name.strip() and about.eval_results
    if "\udcff" not in name:
        assert about.model_name == name


def test_a_student_names_its_teacher_without_the_folder():
    about = {"verb": "pretrain", "method": "distill", "teacher": "/data/my nets/big.pth"}
    about |= {"teacher_arch": "timm/convnext_tiny", "teacher_licence": "CC BY-NC 4.0"}
    text = model_card(card(kind="backbone", provenance=about), "student", None)
    assert "| teacher | big.pth (timm/convnext_tiny) |" in text and "/data" not in text
    assert "| licence of the teacher | CC BY-NC 4.0 |" in text
    local = card(provenance={"weights": "/data/my nets/big.pth (247 of 247 tensors)"})
    assert "| initial weights | big.pth (247 of 247 tensors) |" in model_card(local, "x", None)
