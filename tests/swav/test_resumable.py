"""What a checkpoint keeps of the machine: the generators that dropout draws from."""

from types import SimpleNamespace

import pytest
import torch

from unfreeze.runtime.distributed import Distributed
from unfreeze.swav.train_state import _device_rng, _restore_device_rng


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_devices_generator_is_kept_and_taken_up(monkeypatch, kind):
    taken = []
    for place in (torch.cuda, torch.mps):
        own = torch.tensor([1 if place is torch.cuda else 2], dtype=torch.uint8)
        monkeypatch.setattr(place, "get_rng_state", lambda own=own: own)
        monkeypatch.setattr(place, "set_rng_state", taken.append)
    device = torch.device(kind)
    place = SimpleNamespace(device=device)
    kept = _device_rng(SimpleNamespace(place=place, processes=Distributed()))
    _restore_device_rng(device, kept, 0)
    assert [int(state) for state in taken] == [1 if kind == "cuda" else 2]


def test_another_kind_of_device_takes_nothing_up(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_rng_state", None)  # calling it would fail
    _restore_device_rng(torch.device("cuda"), {"kind": "mps", "states": []}, 0)
    _restore_device_rng(torch.device("cuda"), None, 0)  # the run was on a CPU
    _restore_device_rng(torch.device("cpu"), {"kind": "cuda", "states": []}, 0)
    place = SimpleNamespace(device=torch.device("cpu"))
    assert _device_rng(SimpleNamespace(place=place, processes=Distributed())) is None
