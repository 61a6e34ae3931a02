"""What is done to views on their way into the network."""

import torch

from unfreeze.data.augment.multicrop import normalize


def test_mean_and_deviation_are_sent_to_a_device_once(monkeypatch):
    """Each sending waits for all that the device has to do yet."""
    views = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device="meta")
    first = normalize(views, (0.1, 0.2, 0.3), [0.5, 0.5, 0.5])
    monkeypatch.setattr(torch, "tensor", None)
    again = normalize(views, (0.1, 0.2, 0.3), [0.5, 0.5, 0.5])
    assert first.shape == again.shape == (2, 3, 4, 4)


def test_what_is_looked_up_is_what_is_computed():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    computed = normalize(levels.float())
    assert torch.allclose(normalize(levels.contiguous()), computed, atol=1e-6)
