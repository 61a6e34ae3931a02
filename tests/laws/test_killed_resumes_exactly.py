"""A pretraining killed at any moment and resumed equals the one that was never killed, by the bit.

The processes are killed with SIGKILL: nothing can be caught, flushed or tidied up. The moments are
while a run starts, anywhere in a step, and while a file is being written.
"""

import os
import random
import signal
import sys
import time

import pytest
import torch

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.runtime.run_folder import read_metrics

INTERVAL, EPOCHS = 4, 8  # steps between two checkpoints, and how many of them
GIVEN = {
    "data": "digits",
    "limit": 16 * INTERVAL,
    "batch_size": 16,
    "epochs": EPOCHS,
    "arch": "unfreeze/tiny",
    "nmb_prototypes": 12,
    "queue_length": 32,
    "epoch_queue_starts": 0,
    "nmb_crops": (2,),
    "size_crops": (16,),
    "min_scale_crops": (0.3,),
    "max_scale_crops": (1.0,),
    "hidden_mlp": 16,
    "feat_dim": 8,
    "device": "cpu",
    "precision": "fp32",
    "sync_bn": "all",
}


def _train(rank, out, beside):
    """One start of the command; `beside` gets a line for every step that was really made."""
    from unfreeze.training.trainer import Trainer

    sys.stderr = sys.stdout = (beside / f"said-{rank}").open("a")
    done = Trainer.train_step

    def counted(trainer, batch):
        result = done(trainer, batch)
        if not rank:
            with (beside / "steps").open("a") as stream:
                stream.write(f"{trainer.step + 1}\n")
        return result

    Trainer.train_step = counted
    unfreeze.pretrain(out=str(out), resume="auto", **GIVEN)


def everything(out):
    """Every tensor of the run's model and of its checkpoint, by name."""
    found = {f"file.{name}": tensor for name, tensor in load_model(out)[0].items()}

    def walk(name, value):
        if torch.is_tensor(value):
            found[name] = value
        elif isinstance(value, dict | list | tuple):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in pairs:
                walk(f"{name}.{key}", inner)

    state = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    walk("last", {key: state[key] for key in ("model", "optimizer", "task", "rng")})
    return found


def say(text):
    """A line that `pytest -s` shows: the figures are published."""
    sys.__stdout__.write(f"{text}\n")


def made(beside):
    """The steps made so far, in order, each as often as it was made."""
    path = beside / "steps"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(what, seconds):
    """Whether `what()` came true in that time; asked a thousand times a second."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.001)
    return False


def half_written(out):
    """Whether a file under `out` is being written now."""
    folders = [out, out / "checkpoints", out / "model"]
    return any(any(folder.glob("*.tmp")) for folder in folders)


def kill_some(draw, started, out, beside):
    """Kill one of the processes, or all, at a moment that `draw` chooses; what was done."""

    def ended():
        return all(process.exitcode is not None for process in started)

    moment = draw.choice(["start", "step", "step", "write", "write"])
    if moment == "start":
        wait_for(ended, draw.uniform(0, 2))
    else:
        steps = len(made(beside)) + draw.randrange(1, 3 * INTERVAL)
        wait_for(lambda: len(made(beside)) >= steps or ended(), 60)
    if moment == "step":
        time.sleep(draw.uniform(0, 0.1))
    if moment == "write":
        wait_for(lambda: half_written(out) or ended(), 60)
        time.sleep(draw.uniform(0, 0.004))
    victims = draw.choice([started, [draw.choice(started)]])
    alive = [process for process in victims if process.is_alive()]
    for process in alive:
        os.kill(process.pid, signal.SIGKILL)
    return moment, len(alive)


def end_all(started, in_training):
    """Wait for those that were not killed: in training they end by themselves.

    Before that, while they look for each other, it is the launcher that ends them.
    """
    for process in started:
        process.join(60 if in_training else 5)
        assert process.exitcode is not None or not in_training, "it waits for a dead one"
        process.kill()
        process.join()


def killed_until_done(launched, world, folder, draw):
    """(kills, steps made twice for each) of one run, taken up until it ended by itself."""
    out, kills, twice = folder / "run", 0, []
    for _ in range(60):
        before = len(made(folder))
        started = launched(world, _train, out, folder)
        moment, killed = kill_some(draw, started, out, folder)
        end_all(started, in_training=before < len(made(folder)))
        steps = made(folder)
        kills += bool(killed)
        say(f"{world} processes, {killed} killed ({moment}) at step {max(steps, default=0)}")
        if 0 < before < len(steps):
            twice.append(max(0, steps[before - 1] - steps[before] + 1))
        if all(process.exitcode == 0 for process in started):
            return kills, twice
    raise AssertionError("60 starts did not suffice")


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What a run imports, once, so that processes are forked with it."""
    import lightning_fabric  # noqa: F401

    import unfreeze.commands.pretrain  # noqa: F401


@pytest.mark.slow
@pytest.mark.parametrize("world, least", [(1, 12), (2, 10)])
def test_killed_at_random_and_resumed_is_the_straight_run(launched, tmp_path, world, least):
    began, draw = time.monotonic(), random.Random(world)
    (tmp_path / "straight").mkdir()
    for process in launched(world, _train, tmp_path / "straight/run", tmp_path / "straight"):
        process.join(60)
    straight = everything(tmp_path / "straight/run")
    assert straight["last.task.queue"].shape == (2, 32, 8)
    kills, twice = 0, []
    while kills < least:
        folder = tmp_path / f"after-{kills}"
        folder.mkdir()
        more, again = killed_until_done(launched, world, folder, draw)
        kills, twice = kills + more, twice + again
        killed = everything(folder / "run")
        assert killed.keys() == straight.keys()
        assert [name for name in straight if not torch.equal(straight[name], killed[name])] == []
        written = [r["step"] for r in read_metrics(folder / "run") if r["split"] == "train"]
        assert written == list(range(1, INTERVAL * EPOCHS + 1))
        assert not list((folder / "run").rglob("*.tmp"))
    assert max(twice) <= INTERVAL
    say(
        f"{world} processes: {kills} kills, {sum(twice)} steps made twice, at most {max(twice)} "
        f"for one; {time.monotonic() - began:.0f} s"
    )
