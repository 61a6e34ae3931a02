"""Text classification through the command line: train, evaluate, predict, embed, export."""

import csv
import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from tests.tasks.text.conftest import BAD, GOOD, make_encoder, sentence

import unfreeze
from unfreeze.cli.main import main

FEW = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def run(encoder, reviews, tmp_path_factory):
    """A run that trains everything."""
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["finetune", reviews, "--arch", f"hf/{encoder}", "--epochs", 12, "--lr", 5e-3, *FEW]
    assert main([*map(str, words), "--out", str(out), "--json"]) == 0
    return out


def test_a_run_learns_and_its_files_say_so(run, encoder, reviews, run_json):
    result = json.loads((run / "result.json").read_text())
    assert result["task"] == "text-classification" and result["classes"] == ["negative", "positive"]
    assert result["val_accuracy"] >= 0.9 and result["truncated"] == 0
    card = json.loads((run / "model" / "model.json").read_text())
    assert card["kind"] == "classifier" and card["arch"] == f"hf/{encoder}"
    evaluation = run_json("evaluate", run, reviews)
    assert evaluation["split"] == "test" and evaluation["n"] == 32
    assert evaluation["accuracy"] >= 0.9 and evaluation["truncated"] == 0
    assert evaluation["leaked"] is not None
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "32 test texts" in page and "test images" not in page


def test_predictions_of_arguments_files_and_stdin_agree(run, reviews, run_json, monkeypatch):
    texts = [f"the film was {word}" for word in (*GOOD, *BAD)]
    given = run_json("predict", run, *texts)
    assert [row["label"] for row in given] == ["positive"] * 3 + ["negative"] * 3
    assert [row["path"] for row in given] == list("012345")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(texts) + "\n"))
    piped = run_json("predict", run, "-")
    assert [row["path"] for row in piped] == [f"-:{number}" for number in range(1, 7)]
    python = unfreeze.load(run).predict(texts)
    for ours, theirs, loaded in zip(given, piped, python, strict=True):
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-6)
        assert loaded.label == ours["label"]
        assert loaded.probability == pytest.approx(ours["probability"], abs=1e-6)
    table = run_json("predict", run, reviews)
    assert len(table) == 160 and table[0]["path"].endswith("reviews.csv:1")


def test_a_text_file_is_one_text(run, tmp_path, run_json, fails):
    (tmp_path / "one.txt").write_text("we saw\na lovely end\n")
    (row,) = run_json("predict", run, tmp_path / "one.txt")
    assert row["label"] == "positive" and row["path"].endswith("one.txt")
    (tmp_path / "picture.png").write_bytes(b"no text")
    assert ".csv" in fails(3, "predict", run, tmp_path / "picture.png")
    said = fails(2, "predict", run, "a text", "--explain", tmp_path / "why")
    assert "--explain shows images" in said and not (tmp_path / "why").exists()


def test_a_text_too_long_for_a_file_name_is_a_text(run, run_json):
    (one,) = run_json("predict", run, "the film was good " * 200)
    assert one["label"] in ("negative", "positive")


def test_the_model_folder_serves_alone(run, encoder, tmp_path, run_json, monkeypatch):
    text = "we saw a lovely end"
    (before,) = run_json("predict", run, text)
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / "cache"))
    hidden = encoder.with_name("hidden")
    encoder.rename(hidden)
    try:
        (after,) = run_json("predict", alone, text)
    finally:
        hidden.rename(encoder)
    assert after == before


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_model_without_a_file_says_which(run, tmp_path, fails, name):
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    (alone / name).unlink()
    assert name in fails(4, "predict", alone, "a text")


def test_onnx_gives_what_the_run_gives(run, reviews, tmp_path, run_json):
    onnxruntime = pytest.importorskip("onnxruntime")
    from tokenizers import Tokenizer

    out = tmp_path / "onnx"
    told = run_json("export", run, "--to", "onnx", "--out", out, "--data", reviews)
    assert told["matched"] and "16 texts of reviews.csv" in told["compared_on"]
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    encoded = Tokenizer.from_file(str(out / "tokenizer.json")).encode("an awful plot")
    arrays = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask}
    arrays["token_type_ids"] = encoded.type_ids
    inputs = {name: np.array([values], np.int64) for name, values in arrays.items()}
    (scores,) = session.run(None, inputs)
    (one,) = run_json("predict", run, "an awful plot")
    chosen = torch.from_numpy(scores).softmax(1)[0]
    assert told["classes"][int(chosen.argmax())] == one["label"]
    assert float(chosen.max()) == pytest.approx(one["probability"], abs=1e-4)


def test_safetensors_serve_again_and_programs_are_refused(run, tmp_path, run_json, fails):
    out = tmp_path / "plain"
    assert run_json("export", run, "--to", "safetensors", "--out", out)["matched"]
    (one,), (other,) = (
        run_json("predict", run, "a dull plot"),
        run_json("predict", out, "a dull plot"),
    )
    assert one == other
    for to in ("torchscript", "torchvision", "timm"):
        fails(2, "export", run, "--to", to, "--out", tmp_path / to)


def test_features_are_what_the_head_gets(run, reviews, tmp_path, run_json):
    told = run_json("embed", run, reviews, "--split", "test", "--out", tmp_path / "f.npz")
    assert (told["images"], told["width"]) == (32, 16)
    with np.load(tmp_path / "f.npz") as arrays:
        features = torch.from_numpy(arrays["features"])
    model = unfreeze.load(run)
    head = model.network.head
    logits = torch.nn.functional.linear(features, head.weight, head.bias)
    labels = logits.softmax(1).max(1)
    rows = run_json("predict", run, reviews)[-32:]
    expected = [row["probability"] for row in rows]
    assert labels.values.tolist() == pytest.approx(expected, abs=1e-5)


def test_freezing_is_proven_and_by_layer(encoder, reviews, tmp_path, run_json):
    words = ["finetune", reviews, "--arch", f"hf/{encoder}", "--epochs", 1, "--labels-per-class", 8]
    result = run_json(*words, "--freeze", "stage:2", "--out", tmp_path / "two", *FEW)
    assert result["frozen_unchanged"]
    model = unfreeze.load(tmp_path / "two").network.encoder
    own = sum(p.numel() for p in model.encoder.layer[2].parameters()) + 2 * 16 + 2
    assert result["parameters_trainable"] == own


def test_sentence_pairs_are_two_texts(encoder, tmp_path, run_json):
    """Which of two texts is the good one: the same words in both classes."""
    draw, lines = np.random.default_rng(0), ["sentence1,sentence2,label"]
    for number in range(160):
        pair = [sentence(draw, words, int(draw.integers(2, 8))) for words in (GOOD, BAD)]
        first, second = pair if number % 2 else pair[::-1]
        lines.append(f"{first},{second},{'first' if number % 2 else 'second'}")
    data = tmp_path / "pairs.csv"
    data.write_text("\n".join(lines) + "\n")
    result = run_json(
        *("finetune", data, "--arch", f"hf/{encoder}", "--epochs", 20, "--lr", 5e-3, *FEW),
        *("--out", tmp_path / "run"),
    )
    assert result["val_accuracy"] >= 0.9
    pairs = [("a great film", "its plot was awful"), ("its plot was awful", "a great film")]
    labels = [one.label for one in unfreeze.load(tmp_path / "run").predict(pairs)]
    assert labels == ["first", "second"]


def test_truncated_texts_are_counted(encoder, reviews, tmp_path, run_json):
    """Seven tokens: texts of more than five words are cut."""
    lines = reviews.read_text().splitlines()[1:97]
    expected = np.mean([len(line.split(",")[0].split()) > 5 for line in lines])
    result = run_json(
        *("finetune", reviews, "--arch", f"hf/{encoder}", "--freeze", "all", "--max-length", 7),
        *("--out", tmp_path / "run", *FEW),
    )
    assert result["truncated"] == pytest.approx(expected)


def test_groups_stay_on_one_side(encoder, tmp_path, run_json):
    draw, lines = np.random.default_rng(0), ["text,label,group"]
    for number in range(80):
        text = sentence(draw, GOOD if number % 2 else BAD, 6)
        lines.append(f"{text},{'good' if number % 2 else 'bad'},{number // 8}")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    words = ["--arch", f"hf/{encoder}", "--freeze", "all", "--group-by", "group"]
    run_json("finetune", tmp_path / "data.csv", *words, "--out", tmp_path / "run", *FEW)
    splits = {}
    for row in csv.DictReader((tmp_path / "run" / "split.csv").read_text().splitlines()):
        group = (int(row["path"].rpartition(":")[2]) - 1) // 8
        splits.setdefault(group, set()).add(row["split"])
    assert len(splits) == 10 and all(len(names) == 1 for names in splits.values())


def test_folds_repeats_and_layer_decay(encoder, reviews, tmp_path, run_json):
    words = ["finetune", reviews, "--arch", f"hf/{encoder}", "--labels-per-class", 12, *FEW]
    folds = run_json(*words, "--freeze", "all", "--folds", 3, "--out", tmp_path / "folds")
    assert folds["repeated"]["folds"] == 3
    more = ["--epochs", 1, "--layer-decay", 0.8, "--repeats", 2]
    repeats = run_json(*words, *more, "--out", tmp_path / "repeats")
    assert len(repeats["repeated"]["seeds"]) == 2


def test_a_run_on_texts_starts_the_next(run, reviews, tmp_path, run_json):
    result = run_json(
        "finetune", reviews, "--weights", run, "--freeze", "all", "--out", tmp_path / "again", *FEW
    )
    assert result["weights_matched"] == 1 and result["val_accuracy"] >= 0.9


def test_compare_says_what_the_encoder_is_worth(encoder, reviews, tmp_path, run_json):
    result = run_json(
        *("compare", reviews, "--weights", "tfidf", "none", encoder, "--freeze", "all"),
        *("--seeds", 2, "--labels-per-class", 16, "--out", tmp_path / "c", "--device", "cpu"),
    )
    assert result["same_images"] and [one["weights"] for one in result["starts"]] == [
        *("tfidf", "none", str(encoder))
    ]
    assert {(one["start"], one["than"]) for one in result["differences"]} == {
        ("tfidf", "none"),
        (str(encoder), "none"),
        (str(encoder), "tfidf"),
    }
    assert result["starts"][0]["accuracy"] >= 0.8 and "tfidf" in result["verdict"]


def test_a_baseline_of_texts_is_no_baseline_of_images(coloured, tmp_path, fails):
    data = coloured("pics", {"red": 8, "blue": 8})
    words = ["--weights", "tfidf", "none", "imagenet", "--arch", "torchvision/resnet18"]
    assert "texts" in fails(2, "compare", data, *words, "--out", tmp_path / "c")


@pytest.mark.parametrize(
    "words, code, names",
    [
        (["--image-size", "64"], 2, "--image-size"),
        (["--mixup", "0.2"], 2, "--mixup"),
        (["--scan", "off"], 2, "--scan"),
        (["--max-length", "64"], 2, "--max-length"),
        (["--text-column", "nowhere"], 3, "nowhere"),
        (["--head", "append"], 2, "--head"),
        (["--arch", "torchvision/resnet18"], 2, "resnet18"),
        (["--task", "segmentation"], 3, "texts"),
    ],
)
def test_what_texts_do_not_have_is_refused_in_words(
    encoder, reviews, tmp_path, fails, words, code, names
):
    given = ["finetune", reviews, "--arch", f"hf/{encoder}", "--out", tmp_path / "run", *words]
    assert names in fails(code, *given)
    assert not (tmp_path / "run").exists()


def test_an_encoder_is_needed_and_named(reviews, tmp_path, fails):
    assert "hf/" in fails(2, "finetune", reviews, "--out", tmp_path / "run")
    error = fails(
        4, "finetune", reviews, "--arch", f"hf/{tmp_path / 'gone'}", "--out", tmp_path / "run"
    )
    assert "gone" in error


def test_a_checkpoint_of_images_is_no_encoder(reviews, tmp_path, fails):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    words = ["--weights", tmp_path / "other.pth", "--out", tmp_path / "run"]
    assert "folder" in fails(4, "finetune", reviews, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_encoder_is_no_bug_of_ours(encoder, reviews, tmp_path, fails, name):
    folder = shutil.copytree(encoder, tmp_path / "cut")
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    error = fails(4, "finetune", reviews, "--weights", folder, "--out", tmp_path / "run")
    assert "cannot be read" in error and str(folder) in error
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_no_silent_start(encoder, reviews, tmp_path, fails):
    """`strict=False` would load nothing: half of the encoder is missing here."""
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(encoder, tmp_path / "half")
    tensors = load_file(other / "model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if "layer.0" in name},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    error = fails(4, "finetune", reviews, "--arch", f"hf/{other}", "--out", tmp_path / "run")
    assert "--allow-partial" in error


def test_pooling_is_that_of_the_weights(tmp_path, reviews, run_json):
    folder = make_encoder(tmp_path / "sentence")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    plan = run_json("finetune", reviews, "--arch", f"hf/{folder}", "--out", "x", "--dry-run")
    assert plan["reasons"]["pooling"].startswith("cls")
