"""Codes of two processes are the codes of their joined batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from unfreeze.swav.sinkhorn import sinkhorn


def _half(rank, scores, file, queue):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    queue.put((rank, sinkhorn(scores.chunk(2)[rank], epsilon=0.02).numpy()))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    scores = torch.rand(16, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    context = mp.get_context("fork")
    queue = context.Queue()
    workers = [
        context.Process(target=_half, args=(rank, scores, tmp_path / "meet", queue))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    parts = dict(queue.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    joined = torch.cat([torch.from_numpy(parts[rank]) for rank in range(2)])
    assert (joined - sinkhorn(scores, epsilon=0.02)).abs().max() < 1e-12
    # and not what each would have found alone
    alone = torch.cat([sinkhorn(half, epsilon=0.02) for half in scores.chunk(2)])
    assert (joined - alone).abs().max() > 1e-3
