import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError, safe_open

from unfreeze.checkpoints import model_file
from unfreeze.checkpoints.integrity import tensors_sha256
from unfreeze.checkpoints.model_file import ModelCard, load_model, model_folder, save_model
from unfreeze.errors import ResourceError, WeightsError

CARD = ModelCard(
    kind="classifier",
    arch="torchvision/resnet18",
    head="replace",
    classes=("cat", "dög"),
    preprocess={"image_size": 224, "mean": [0.5, 0.5, 0.5]},
    provenance={"weights": "torchvision ResNet18_Weights.IMAGENET1K_V1", "epochs": 3},
)
TENSORS = {"fc.weight": torch.randn(2, 3), "bn.num_batches_tracked": torch.tensor(7)}


@pytest.fixture
def run(tmp_path):
    save_model(tmp_path / "run" / "model", TENSORS, CARD)
    return tmp_path / "run"


@pytest.mark.parametrize("inside", ["", "model", "model/model.json", "model/model.safetensors"])
def test_what_is_saved_is_loaded_from_the_run_or_its_model_folder(run, inside):
    tensors, card = load_model(run / inside)
    assert card == replace(CARD, sha256=(tensors_sha256(TENSORS),))
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert set(tensors) == set(TENSORS)


def test_only_the_two_files_are_left_behind(run):
    assert sorted(path.name for path in (run / "model").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


def test_other_tools_read_the_tensors(run):
    with safe_open(run / "model" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "unfreeze_sha256": tensors_sha256(TENSORS)}


def test_a_name_with_a_wrappers_prefix_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"'module\.fc\.weight'"):
        save_model(tmp_path, {"module.fc.weight": torch.zeros(1)}, CARD)
    assert not list(tmp_path.iterdir())


def test_tied_and_sliced_weights_are_saved_by_value(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    save_model(tmp_path, {"a": whole, "b": whole, "c": whole[1], "d": whole.t()}, CARD)
    tensors, _ = load_model(tmp_path)
    assert torch.equal(tensors["a"], tensors["b"])
    assert torch.equal(tensors["c"], whole[1])
    assert torch.equal(tensors["d"], whole.t())


@pytest.mark.parametrize("version", [2, "1", None])
def test_an_unknown_format_version_is_refused(run, version):
    card = run / "model" / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"format_version": version}))
    with pytest.raises(WeightsError, match="format version"):
        load_model(run)


@pytest.mark.parametrize(
    ("broken", "says"), [("{", "not readable JSON"), ("[]", "not a model card"), ("{}", "version")]
)
def test_a_broken_card_is_named(run, broken, says):
    (run / "model" / "model.json").write_text(broken)
    with pytest.raises(WeightsError, match=says):
        load_model(run)


def test_a_card_without_a_needed_field_is_named(run):
    (run / "model" / "model.json").write_text('{"format_version": 1, "kind": "backbone"}')
    with pytest.raises(WeightsError, match="arch"):
        load_model(run)


def test_missing_and_damaged_files_are_named(run, tmp_path):
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="damaged"):
        load_model(run)
    weights.unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        load_model(run)
    with pytest.raises(WeightsError, match="There is no model"):
        load_model(tmp_path)
    assert model_folder(tmp_path) is None


def test_a_full_disk_keeps_the_model_that_was_there(tmp_path, monkeypatch):
    tensors = {"weight": torch.ones(3)}
    card = ModelCard("classifier", "unfreeze/tiny", preprocess={})
    save_model(tmp_path, tensors, card)

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model_file, "save_file", full)
    with pytest.raises(ResourceError, match="disk is full"):
        save_model(tmp_path, {"weight": torch.zeros(3)}, card)
    assert load_model(tmp_path)[0]["weight"].sum() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
