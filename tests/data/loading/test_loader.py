"""Batches that processes cut: what happens to those processes is said in words."""

import numpy as np
import pytest
import torch

from unfreeze.data.index.index import build_index
from unfreeze.data.loading import loader as module
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Loader
from unfreeze.data.sources.open import open_source
from unfreeze.errors import ResourceError


def made_loader(workers):
    def make(images, ids, epoch):
        return [torch.from_numpy(np.stack(images))]

    dataset = ImageDataset(build_index(open_source("digits")))
    return Loader(dataset, make, batch_size=8, seed=0, drop_last=True, workers=workers)


def test_batches_of_workers_are_those_of_this_process():
    for one, other in zip(made_loader(0).stream(3, 6), made_loader(2).stream(3, 6), strict=True):
        assert one.step == other.step and (one.ids == other.ids).all()
        assert torch.equal(one.target, other.target) and torch.equal(one.views[0], other.views[0])


def test_no_room_in_the_shared_memory_is_said(monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    list(made_loader(0).stream(0, 2))  # nothing travels
    with pytest.raises(ResourceError, match="Out of shared memory for batches: unable") as said:
        list(made_loader(1).stream(0, 2))
    assert "--workers" in said.value.next_step and "--shm-size" in said.value.next_step


@pytest.mark.parametrize("broken", [ConnectionResetError, EOFError])
def test_a_connection_that_ends_with_its_worker_is_said(monkeypatch, broken):
    class Gone:
        def __init__(self, *_, **__):
            self._workers = []

        def __iter__(self):
            return self

        def __next__(self):
            raise broken

        def _shutdown_workers(self):
            pass

    monkeypatch.setattr(module, "DataLoader", Gone)
    with pytest.raises(ResourceError, match="A data loading worker was killed"):
        list(made_loader(1).stream(0, 2))
