"""SimCLR: its loss against equation 1 of arXiv 2002.05709, and the method by the command line."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from unfreeze.cli.main import main
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.tasks.simclr.loss import nt_xent

SHORT = [
    *("--method", "simclr", "--arch", "unfreeze/tiny", "--image-size", "16", "--limit", "96"),
    *("--batch-size", "32", "--epochs", "4", "--device", "cpu", "--precision", "fp32"),
    *("--hidden-mlp", "32", "--tune", "off"),
]


def equation_1(a, b, temperature):
    """Term by term, as in the paper: sim / tau, the denominator over all k other than i."""
    z = torch.cat([a, b])
    n, total = len(a), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        scores = [float(z[i] @ z[k]) / temperature for k in range(2 * n)]
        denominator = sum(math.exp(scores[k]) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(scores[j]) / denominator)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_equation_1(temperature):
    g = torch.Generator().manual_seed(0)
    views = [F.normalize(torch.randn(7, 5, generator=g).double(), dim=1) for _ in range(3)]
    a, b, small = views
    expected = equation_1(a, b, temperature)
    assert float(nt_xent([a, b], temperature)) == pytest.approx(expected, rel=1e-9)
    pairs = [(a, b), (a, small), (b, small)]  # a small crop is compared with large ones only
    mean = sum(equation_1(*pair, temperature) for pair in pairs) / 3
    assert float(nt_xent(views, temperature)) == pytest.approx(mean, rel=1e-9)
    four = nt_xent([a, b, small, small], temperature)  # the two small ones: no pair
    mean = sum(equation_1(*p, temperature) for p in [*pairs, (a, small), (b, small)]) / 5
    assert float(four) == pytest.approx(mean, rel=1e-9)


def test_identical_features_give_the_loss_of_guessing():
    same = F.normalize(torch.ones(8, 4), dim=1)
    assert float(nt_xent([same, same], 0.1)) == pytest.approx(math.log(15), rel=1e-5)


def test_its_weights_are_used(tmp_path, capsys):
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    assert main(["pretrain", "digits", "--out", str(run), *SHORT, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 12 and "information" not in result["figures"]
    card = json.loads((run / "model/model.json").read_text())
    assert card["provenance"]["method"] == "simclr"
    words = ["finetune", "digits", "--weights", str(run), "--freeze", "all", "--limit", "100"]
    assert main([*words, "--device", "cpu", "--out", str(tuned), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frozen_unchanged"] is True


@pytest.mark.slow
def test_it_learns(tmp_path, capsys):
    longer = ["--limit", "960", "--epochs", "8", "--json"]
    assert main(["pretrain", "digits", "--out", str(tmp_path / "run"), *SHORT, *longer]) == 0
    knn = json.loads(capsys.readouterr().out)["knn"]
    losses = [r["loss"] for r in read_metrics(tmp_path / "run") if r["split"] == "train"]
    guessing = math.log(63)  # 2 x 32 views
    assert losses[-1] < guessing - 0.15 < losses[0]
    assert knn["accuracy"] > knn["at_start"] + 0.02


def test_a_projection_head_without_a_hidden_layer_is_linear(tmp_path):
    words = ["pretrain", "digits", "--out", str(tmp_path / "run"), *SHORT, "--epochs", "1"]
    assert main([*words, "--hidden-mlp", "0"]) == 0
    names = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["model"]
    head = sorted(name for name in names if name.startswith("projection_head"))
    assert head == ["projection_head.bias", "projection_head.weight"]


def test_settings_of_prototypes_are_refused(tmp_path, capsys):
    words = ["pretrain", "digits", "--out", str(tmp_path / "run"), *SHORT]
    assert main([*words, "--nmb-prototypes", "30"]) == 2
    assert "--nmb-prototypes has no effect with --method simclr." in capsys.readouterr().err
    assert main([*words, "--temperature", "0.5", "--dry-run"]) == 0


def test_auto_goes_by_the_size_of_the_images(tmp_path, capsys):
    words = ["pretrain", "digits", *SHORT, "--method", "auto", "--dry-run", "--json"]
    assert main(words) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["settings"]["method"] == "simclr"
    assert "16 pixels" in plan["reasons"]["method"]
    assert main([*words, "--image-size", "96", "--limit", "200"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["method"] == "swav"
    assert main([*words, "--nmb-prototypes", "30"]) == 0  # only swav has prototypes
    plan = json.loads(capsys.readouterr().out)
    assert plan["settings"]["method"] == "swav" and "prototypes" in plan["reasons"]["method"]


def test_a_plan_for_small_images_names_the_faster_method(capsys):
    small = ["pretrain", "digits", "--arch", "unfreeze/tiny", "--dry-run"]
    assert main(small) == 0
    assert "--method simclr learns more per minute" in capsys.readouterr().err
    for words in (["--method", "simclr"], ["--nmb-prototypes", "30"], ["--image-size", "96"]):
        assert main([*small, *words]) == 0
        assert "learns more per minute" not in capsys.readouterr().err
