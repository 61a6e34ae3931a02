"""SwAV on real images improves on its own random start: minutes, so among the slow proofs."""

import importlib.util
import math
import tomllib
from pathlib import Path

import pytest

import unfreeze


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks/cifar.py"
    spec = importlib.util.spec_from_file_location("cifar_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_five_epochs_on_cifar_gain_two_and_a_half_points_of_knn(shared, benchmark, tmp_path):
    data = tmp_path / "data"
    benchmark.unpack(str(shared / "data" / "cifar10.zip"), 10_000, data)
    common = {"arch": "unfreeze/small", "device": "cpu"}
    unfreeze.pretrain(str(data), out=str(tmp_path / "start"), epochs=0, **common)
    before = benchmark.evaluate_backbone(tmp_path / "start", data, tmp_path)
    result = unfreeze.pretrain(str(data), out=str(tmp_path / "run"), epochs=5, **common)
    after = benchmark.evaluate_backbone(tmp_path / "run", data, tmp_path)
    assert result.images == 10_000
    assert after["knn"] >= before["knn"] + 0.025
    assert after["linear_100"] >= before["linear_100"]


@pytest.mark.slow
def test_the_built_in_digits_leave_ln_k_with_nothing_asked_for(tmp_path):
    # at the published epsilon codes stay uniform here, and the guard ends the run
    found = unfreeze.pretrain("digits", out=str(tmp_path / "run"), epochs=16, device="cpu")
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert found.loss < math.log(config["nmb_prototypes"]) - 0.2
    assert config["epsilon"] == 0.03 and "ln K" in config["reasons"]["epsilon"]
