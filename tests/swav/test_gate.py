"""Trap T7: the queue starts when features have settled, and goes if the loss climbs under it."""

import math

import pytest
import torch

import unfreeze
from unfreeze.data.loading.loader import Batch
from unfreeze.errors import Interrupted
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.swav.assignment import SinkhornAssignment
from unfreeze.swav.queue_start import QueueSchedule
from unfreeze.swav.trainer import PretrainTrainer

LN = math.log(64)


def gone(gate, losses, far=0.5, near=0.1, first=0):
    """For each epoch (a mean loss each) whether the queue served in it."""
    served = []
    for epoch, loss in enumerate(losses, first):
        served.append(gate.serves(epoch))
        for _ in range(4):
            if gate.judging:
                p = torch.zeros(3, 2, dtype=torch.float64)
                p[:, 0] += 0.5
                p[1, 0] += 2 * near
                p[2, 0] += 2 * far
                if gate.opened is None:
                    gate.moved(*p)
                gate.lost(torch.tensor(loss, dtype=torch.float64))
    return served


def made(**changed):
    said = []
    given = {"earliest": 1, "latest": 6, "chance": LN, "say": said.append, **changed}
    return QueueSchedule(**given), said


def test_trap_t7_it_opens_when_features_have_settled():
    gate, said = made()
    assert gone(gate, [4.0] * 3) == [False] * 3  # they move: the oldest batch is five times as far
    assert gone(gate, [4.0] * 2, far=0.105, first=3) == [False, True]
    assert "in use from epoch 4:" in said[0] and "settled" in said[0] and "0.105" in said[0]


def test_at_the_latest_at_its_epoch_and_never_in_the_warm_up():
    gate, said = made(earliest=3)
    assert (
        gone(gate, [4.0] * 8) == [False] * 6 + [True] * 2
        and "its start epoch is reached" in said[0]
    )
    gate, _ = made(earliest=3)
    assert gone(gate, [4.0] * 4, far=0.1) == [False] * 3 + [True]
    gate, _ = made(earliest=3, latest=0)
    assert gone(gate, [4.0]) == [True]


def test_trap_t7_it_is_dropped_if_the_loss_climbs_and_does_not_come_back():
    """lightly#1148, swav#69: the loss explodes after the queue starts."""
    gate, said = made()
    assert gone(gate, [4.0, 3.5, 3.0, 3.0, 3.0, 3.0, 3.8, 3.7, 3.7]) == [False] * 6 + [
        True,
        True,
        False,
    ]
    assert "before it and is 3.700" in said[-1] and "was 3.000" in said[-1]
    gate, said = made()
    losses = [4.0, 3.5, 3.0, 3.0, 3.0, 3.0, 3.8, 3.05, 3.9]  # it comes back within the trial
    assert gone(gate, losses)[-3:] == [True] * 3 and len(said) == 1


def test_its_state_travels():
    losses = [4.0, 3.5, 3.0, 3.0, 3.0, 3.0, 3.8, 3.7, 3.7]
    straight, _ = made()
    expected = gone(straight, losses)
    one, _ = made()
    served = gone(one, losses[:7])
    other, _ = made()
    other.restore(one.state())
    assert served + gone(other, losses[7:], first=7) == expected


def test_the_loss_it_judges_by_is_that_of_the_batchs_own_codes():
    g = torch.Generator().manual_seed(0)
    noted = []
    gate, _ = made(latest=0)
    gate.lost = lambda loss: noted.append(float(loss))
    with_queue = SinkhornAssignment((0, 1), epsilon=0.05, iterations=3, length=16, gate=gate)
    plain = SinkhornAssignment((0, 1), epsilon=0.05, iterations=3)
    W = torch.nn.functional.normalize(torch.randn(12, 4, generator=g), dim=1)
    batch = Batch(0, 0, None, None, [])
    for step in range(4):
        Z = torch.nn.functional.normalize(torch.randn(2, 8, 4, generator=g), dim=2)
        scores = list(Z @ W.T)
        codes = with_queue.codes(list(Z), scores, lambda z: z @ W.T, batch)
        alone = plain.codes(list(Z), scores, lambda z: z @ W.T, batch)
        assert torch.equal(codes[0], alone[0]) == (step < 2)  # the queue serves once it is full
        expected = unfreeze.swav.swapped_prediction_loss(scores, alone, (0, 1))
        assert noted[-1] == pytest.approx(float(expected), rel=1e-6)


GIVEN = {
    "epochs": 4,
    "limit": 160,
    "batch_size": 32,
    "nmb_prototypes": 16,
    "queue_length": 64,
    "epoch_queue_starts": 2,
    "queue_start": "auto",
    "augment": "digits",
    "device": "cpu",
    "watch_every": 0,
}


def run(out, **changed):
    unfreeze.pretrain("digits", out=str(out), **{**GIVEN, **changed})
    return torch.load(out / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "stop", [pytest.param(7, marks=pytest.mark.slow), 10, pytest.param(13, marks=pytest.mark.slow)]
)
def test_a_resumed_run_has_the_same_queue(tmp_path, monkeypatch, stop):
    straight = run(tmp_path / "straight")
    step = PretrainTrainer.train_step

    def stopped(self, batch):
        if self.step == stop:
            self.save()
            raise Interrupted("now")
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "train_step", stopped)
        with pytest.raises(Interrupted):
            run(tmp_path / "run")
    resumed = run(tmp_path / "run", resume="yes")
    assert all(torch.equal(straight["model"][n], resumed["model"][n]) for n in straight["model"])
    gates = [state["targets"]["gate"] for state in (straight, resumed)]
    assert torch.equal(gates[0]["sums"], gates[1]["sums"])
    assert gates[0]["opened"] == gates[1]["opened"] is not None
    assert "Queue in use from epoch" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.slow
def test_two_processes_judge_alike(processes, tmp_path):
    def shared(rank, folder):
        run(folder, sync_bn="all", workers=0)
        return (folder / "log.txt").read_text().count("Queue in use from epoch") if rank == 0 else 1

    assert processes(2, shared, tmp_path / "two") == [1, 1]
    alone = run(tmp_path / "one")
    two = torch.load(tmp_path / "two/checkpoints/last.ckpt", weights_only=True)
    gates = [state["targets"]["gate"] for state in (two, alone)]
    assert gates[0]["opened"] == gates[1]["opened"]
    assert gates[0]["before"] == pytest.approx(gates[1]["before"], rel=0.02)


def test_published_runs_have_no_gate(tmp_path):
    state = run(tmp_path / "run", queue_start="epoch")
    assert state["targets"]["gate"] is None
    assert [r["step"] for r in read_metrics(tmp_path / "run")] == list(range(1, 21))
