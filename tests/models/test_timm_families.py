"""One network of each of timm's families: what `benchmarks/architectures.py` proves of all."""

import importlib.util
import logging
from pathlib import Path

import pytest
import timm
from torch import nn


def _command():
    path = Path(__file__).parents[2] / "benchmarks/architectures.py"
    spec = importlib.util.spec_from_file_location("architectures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMMAND = _command()
FAMILIES = COMMAND.smallest_of_each_module()


@pytest.fixture(autouse=True)
def _no_random_numbers(monkeypatch):
    for draw in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_", "trunc_normal_"):
        monkeypatch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_every_module_of_timm_has_its_sample():
    assert len(FAMILIES) == len(set(FAMILIES)) > 80
    assert {timm.models.model_entrypoint(name[5:]).__module__ for name in FAMILIES} <= {
        f"timm.models.{module}" for module in timm.list_modules()
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # timm's own, of old building blocks
# the smallest sequencer2d takes four minutes alone; the benchmark has it
@pytest.mark.parametrize("arch", [arch for arch in FAMILIES if "sequencer2d" not in arch])
def test_a_head_of_every_family_is_replaced_and_proven(arch):
    assert COMMAND.check_network(arch)["head"]
