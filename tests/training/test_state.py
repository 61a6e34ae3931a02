"""What a checkpoint keeps of the machine: the generators that dropout draws from."""

import pytest
import torch

from unfreeze.runtime.distributed import Distributed
from unfreeze.training.state import device_rng, restore_device_rng


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_devices_generator_is_kept_and_taken_up(monkeypatch, kind):
    taken = []
    for place in (torch.cuda, torch.mps):
        own = torch.tensor([1 if place is torch.cuda else 2], dtype=torch.uint8)
        monkeypatch.setattr(place, "get_rng_state", lambda own=own: own)
        monkeypatch.setattr(place, "set_rng_state", taken.append)
    device = torch.device(kind)
    kept = device_rng(device, Distributed())
    restore_device_rng(device, kept, 0)
    assert [int(state) for state in taken] == [1 if kind == "cuda" else 2]


def test_another_kind_of_device_takes_nothing_up(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_rng_state", None)  # calling it would fail
    restore_device_rng(torch.device("cuda"), {"kind": "mps", "states": []}, 0)
    restore_device_rng(torch.device("cuda"), None, 0)  # the run was on a CPU
    restore_device_rng(torch.device("cpu"), {"kind": "cuda", "states": []}, 0)
    assert device_rng(torch.device("cpu"), Distributed()) is None
