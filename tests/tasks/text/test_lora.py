"""Runs with `--lora`, on texts and images: exact resume, an ordinary model, and honest counts."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from unfreeze.checkpoints.model_file import load_model
from unfreeze.cli.main import main
from unfreeze.models.build import build
from unfreeze.models.load_weights import load_weights
from unfreeze.models.lora import merged_tensors
from unfreeze.runs.finetuning.frozen_check import frozen_unchanged_with_lora
from unfreeze.runtime.run_folder import RunFolder

pytest.importorskip("peft")
FEW = ("--device", "cpu", "--precision", "fp32", "--batch-size", "8", "--lora", "2", "--lr", "0.02")
ADAPTERS = 3 * 4 * 2 * (16 + 16)  # layers, linear layers of attention, rank, width


def checkpoint(run, name="last"):
    return torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def trained(encoder, reviews, tmp_path_factory):
    """(run folder, result) of an uninterrupted run, with an average of the weights."""
    out = tmp_path_factory.mktemp("lora") / "run"
    words = ["finetune", reviews, "--arch", f"hf/{encoder}", *FEW, "--epochs", 3, "--ema", "0.9"]
    assert main([*map(str, words), "--out", str(out)]) == 0
    return out, json.loads((out / "result.json").read_text())


def test_the_model_is_an_ordinary_one_with_the_adapters_in_it(trained, encoder):
    out, result = trained
    tensors, card = load_model(out)
    start = {f"encoder.{n}": v for n, v in load_file(encoder / "model.safetensors").items()}
    changed = {name for name, value in start.items() if name in tensors
               and not torch.equal(value, tensors[name])}  # fmt: skip
    assert all(".attention." in name and name.endswith("weight") for name in changed)
    assert len(changed) == 3 * 4 and not [name for name in tensors if "lora" in name]
    assert card.provenance["lora"] == 2
    best = merged_tensors(checkpoint(out, "best")["average"], 2)
    assert best.keys() == tensors.keys()
    assert all(torch.allclose(best[name], tensors[name], atol=1e-5) for name in best)
    head = 2 * 16 + 2
    assert result["parameters_trainable"] == ADAPTERS + head
    assert result["parameters_frozen"] == sum(v.numel() for v in tensors.values()) - head


def test_predictions_of_the_written_model_are_those_of_the_run(trained, reviews, run_json):
    out, result = trained
    scored = run_json("evaluate", out, reviews, "--split", "val", "--device", "cpu")
    assert scored["accuracy"] == pytest.approx(result["val_accuracy"])
    assert result["val_accuracy"] > 0.8


def test_unchanged_is_read_from_the_files(trained, tmp_path):
    out, result = trained
    assert result["frozen_unchanged"] is True
    hashes = checkpoint(out)["frozen"]
    assert any("base_layer" in name for name in hashes)
    told = lambda: frozen_unchanged_with_lora(RunFolder(str(out)), hashes, 2, best=True)  # noqa: E731
    assert told()
    path, adapted = out / "checkpoints/best.ckpt", "encoder.encoder.layer.0.attention.self.query"
    state = original = checkpoint(out, "best")
    state["average"][f"{adapted}.base_layer.weight"][0, 0] += 1e-3
    torch.save(state, path)
    assert not told()
    original["average"][f"{adapted}.base_layer.weight"][0, 0] -= 1e-3
    hashes = {n: h for n, h in hashes.items() if not n.startswith(adapted)}
    state["average"][f"{adapted}.lora_B.default.weight"] += 0.1  # not what was merged
    torch.save(state, path)
    assert not told()


def test_stopped_and_resumed_is_the_straight_run(
    trained, encoder, reviews, tmp_path, stopped_after
):
    words = ["finetune", reviews, "--arch", f"hf/{encoder}", *FEW, "--epochs", 3, "--ema", "0.9"]
    with stopped_after(17):
        assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 130
    early, _ = load_model(tmp_path / "run")  # a stop writes a merged model too
    assert not [name for name in early if "lora" in name]
    assert main([*map(str, words), "--out", str(tmp_path / "run"), "--resume"]) == 0
    one, other = checkpoint(trained[0]), checkpoint(tmp_path / "run")
    for part in ("model", "average"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())


@pytest.mark.parametrize(
    "given",
    [("--freeze", "all"), ("--unfreeze-at", "1:all"), ("--layer-decay", "0.5"),
     ("--cache", "features"), ("--head-solver", "logistic")],
)  # fmt: skip
def test_what_contradicts_adapters_is_refused(encoder, reviews, fails, given):
    words = ("finetune", reviews, "--arch", f"hf/{encoder}", "--lora", "2", "--dry-run", *given)
    error = fails(2, *words)
    assert given[0] in error and "exclude each other" in error and "Traceback" not in error


def test_an_image_run_from_a_file_and_its_checkpoint_as_weights(
    coloured, tmp_path, run_json, fails
):
    torch.manual_seed(0)
    save_file(build("timm/test_vit").state_dict(), tmp_path / "start.safetensors")
    data = coloured("colours", {"red": 8, "blue": 8}, 32)
    words = [
        "finetune",
        data,
        "--arch",
        "timm/test_vit",
        "--weights",
        tmp_path / "start.safetensors",
    ]
    words += ["--image-size", "40", "--epochs", "2", *FEW]
    plan = run_json(*words, "--dry-run")
    assert plan["settings"]["optimizer"] == "adamw" and plan["settings"]["cache"] == "off"
    assert "scale 2" in plan["reasons"]["lora"] and "48" in plan["reasons"]["image_size"]
    result = run_json(*words, "--out", tmp_path / "run")
    assert (
        result["frozen_unchanged"]
        and result["parameters_trainable"] == (plan["parameters_trainable"])
    )
    network = build("timm/test_vit")
    load_weights(network, str(tmp_path / "run/checkpoints/last.ckpt"), arch="timm/test_vit")
    written, loaded = load_model(tmp_path / "run")[0], network.state_dict()
    names = [name for name in written if not name.startswith("head.")]
    assert all(torch.allclose(loaded[name], written[name], atol=1e-6) for name in names)
    other = [*words[:-1], "0.02", "--resume", "--out", tmp_path / "run"]
    other[other.index("--lora") + 1] = "4"
    assert "--lora 2 and cannot resume with 4" in fails(2, *other)


def test_a_network_without_attention_leaves_no_folder(coloured, tmp_path, fails):
    data = coloured("colours", {"red": 8, "blue": 8}, 32)
    words = ("finetune", data, "--arch", "unfreeze/tiny", "--weights", "none", "--lora", "4")
    error = fails(2, *words, "--out", tmp_path / "run")
    assert "unfreeze/tiny has no attention layers" in error and not (tmp_path / "run").exists()
