import math
import re
import signal
from dataclasses import replace

import pytest
import torch

from unfreeze.checkpoints.state import load_state
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import DivergedError
from unfreeze.models.build import build
from unfreeze.runtime.console import QuietConsole
from unfreeze.training import trainer as trainer_module
from unfreeze.transfer.freezing.freeze import FreezeSchedule, constant_schedule, select_frozen
from unfreeze.transfer.predictor import read_in_order
from unfreeze.transfer.task import number_of_parts as parts

LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


def weights(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def stop_at(trainer, step):
    """Ask the trainer to stop, as Ctrl-C does, once `step` steps are done."""
    before = trainer.train_step

    def stepping(batch):
        loss = before(batch)
        if trainer.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return loss

    trainer.train_step = stepping


@pytest.mark.parametrize("fit", [{}, {"optimizer": "adamw", "lr": 1e-3}, {"precision": "bf16"}])
@pytest.mark.parametrize("step", [3, 6])  # an epoch's end and its middle
def test_stopped_and_resumed_is_the_straight_run_bit_for_bit(make_trainer, fit, step):
    straight = make_trainer("straight", validate=False, **fit)
    straight.train_to_best(QuietConsole())
    first = make_trainer("broken", validate=False, **fit)
    stop_at(first, step)
    assert first.train_to_best(QuietConsole()).interrupted and first.step == step
    second = make_trainer("broken", validate=False, **fit)
    second.load_state_dict(load_state(second.run.file(LAST)))
    second.run.rewind_metrics(second.step)
    outcome = second.train_to_best(QuietConsole())
    assert not outcome.ended_early and outcome.epochs == 4
    assert same(weights(straight), weights(second))
    lines = [(m["step"], m["loss"]) for m in second.run.metrics()]
    assert lines == [(m["step"], m["loss"]) for m in straight.run.metrics()]


def test_dropout_is_resumed_too(make_trainer):
    def with_dropout(name):
        trainer = make_trainer(name, validate=False)
        trainer.network.stage3 = torch.nn.Sequential(trainer.network.stage3, torch.nn.Dropout(0.5))
        return trainer

    straight = with_dropout("straight")
    straight.train_to_best(QuietConsole())
    first = with_dropout("broken")
    stop_at(first, 5)
    first.train_to_best(QuietConsole())
    torch.rand(7)  # whatever happened to the global generator meanwhile
    second = with_dropout("broken")
    second.load_state_dict(load_state(second.run.file(LAST)))
    second.train_to_best(QuietConsole())
    assert same(weights(straight), weights(second))


def test_the_callers_generator_is_left_alone(make_trainer):
    trainer = make_trainer(epochs=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer.train_to_best(QuietConsole())
    assert torch.equal(torch.rand(3), expected)


def test_resume_across_a_thaw(make_trainer):
    network = build("unfreeze/tiny")
    everything = frozenset(n for n, _ in network.named_parameters() if not n.startswith("head"))
    later = frozenset(n for n in everything if not n.startswith("stage3"))
    schedule = FreezeSchedule(((0, everything), (2, later)))
    straight = make_trainer("straight", freeze=schedule)
    start = weights(straight)
    straight.train_to_best(QuietConsole())
    moved = {n for n in start if not torch.equal(start[n], straight.network.state_dict()[n])}
    assert moved and all(n.startswith(("stage3", "head")) for n in moved)
    first = make_trainer("broken", freeze=schedule)
    stop_at(first, 5)
    first.train_to_best(QuietConsole())
    assert same({n: v for n, v in start.items() if "head" not in n},
                {n: v for n, v in weights(first).items() if "head" not in n})  # fmt: skip
    second = make_trainer("broken", freeze=schedule)
    second.load_state_dict(load_state(second.run.file(LAST)))
    second.train_to_best(QuietConsole())
    assert same(weights(straight), weights(second))


def test_frozen_parameters_are_not_in_the_optimizer(make_trainer):
    network = build("unfreeze/tiny")
    frozen = frozenset(n for n, _ in network.named_parameters() if not n.startswith("head"))
    trainer = make_trainer(freeze=FreezeSchedule(((0, frozen),)))
    held = [p for group in trainer.state.optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, trainer.network.head.parameters()))


def test_early_stop_ends_the_run_and_stays_ended(make_trainer):
    trainer = make_trainer(epochs=40, patience=2, lr=0.0)
    outcome = trainer.train_to_best(QuietConsole())
    assert outcome.ended_early and outcome.epochs == outcome.best_epoch + 3
    again = make_trainer(epochs=40, patience=2, lr=0.0)
    again.load_state_dict(load_state(again.run.file(LAST)))
    assert again.train_to_best(QuietConsole()).epochs == outcome.epochs


def test_metrics_have_the_promised_lines(make_trainer):
    trainer = make_trainer(epochs=2)
    trainer.train_to_best(QuietConsole())
    lines = trainer.run.metrics()
    training = [m for m in lines if m["split"] == "train"]
    assert [m["step"] for m in training] == list(range(1, 9))
    assert {m["epoch"] for m in lines} == {0, 1}
    names = "loss accuracy correct total learning_rate images_per_second seconds_data seconds_step"
    assert all(set(names.split()) <= set(m) for m in training)
    val = [m for m in lines if m["split"] == "val"]
    assert [m["step"] for m in val] == [4, 8]
    assert all(m["accuracy"] == m["correct"] / m["total"] and m["total"] == 18 for m in val)
    best = max(val, key=lambda m: (m["accuracy"], -m["loss"]))
    assert trainer.validation.best.epoch == best["epoch"]


@pytest.mark.slow
def test_after_a_hundred_steps_one_line_in_fifty(make_trainer):
    trainer = make_trainer(epochs=80, validate=False, batch_size=13)
    trainer.train_to_best(QuietConsole())
    steps = [m["step"] for m in trainer.run.metrics()]
    assert steps[:100] == list(range(1, 101))
    assert {150} <= set(steps) and steps[-1] == 160
    assert sum(m["total"] for m in trainer.run.metrics()) == 26 * 80


def test_a_loss_that_is_no_number_names_its_step_and_spares_the_checkpoint(make_trainer):
    trainer = make_trainer(epochs=30, validate=False, batch_size=13)
    before = trainer.plan.learning_rate
    trainer.plan = replace(
        trainer.plan, learning_rate=lambda step: math.inf if step == 4 else before(step)
    )
    with pytest.raises(DivergedError, match="at step 6"):
        trainer.train_to_best(QuietConsole())
    saved = load_state(trainer.run.file(LAST))
    assert saved["step"] == 4
    assert all(torch.isfinite(v).all() for v in saved["model"].values())


def test_long_epochs_are_saved_on_the_way(make_trainer, monkeypatch):
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", -1.0)
    trainer = make_trainer(epochs=1, validate=False)
    steps = []
    save = trainer.save
    trainer.save = lambda *rest, **how: (steps.append(trainer.step), save(*rest, **how))
    trainer.train_to_best(QuietConsole())
    assert steps == [1, 2, 3, 4]


def test_states_are_plain_and_carry_what_the_contract_names(make_trainer):
    trainer = make_trainer(epochs=1)
    trainer.train_to_best(QuietConsole())
    for name in (LAST, BEST):
        state = torch.load(trainer.run.file(name), weights_only=True)
        assert {"epoch", "loss", "metrics", "step", "model", "optimizer"} <= set(state)
        assert state["metrics"]["val_accuracy"] == trainer.validation.best.accuracy


def test_checkpoints_that_stay_are_asked_for_and_say_what_they_hold(make_trainer):
    trainer = make_trainer(epochs=5, keep_every=2)
    trainer.train_to_best(QuietConsole())
    judged = [line for line in trainer.run.metrics() if line["split"] == "val"]
    kept = sorted(trainer.run.path.glob("checkpoints/epoch-*"))
    assert len(kept) == 2
    for path, done in zip(kept, (2, 4), strict=True):
        state = torch.load(path, weights_only=True)
        own = judged[done - 1]  # the figures of this epoch, whichever was the best
        assert state["epoch"] == done
        validated = {"val_accuracy": own["accuracy"], "val_loss": own["loss"]}
        assert state["metrics"] == {"loss": state["loss"], **validated}
        figures = f"loss-{state['loss']:.3f}_acc-{own['accuracy']:.3f}"
        assert path.name == f"epoch-{done:04d}_{figures}.ckpt"


def test_without_validation_their_names_have_no_accuracy(make_trainer):
    trainer = make_trainer(epochs=1, keep_every=1, validate=False)
    trainer.train_to_best(QuietConsole())
    (kept,) = trainer.run.path.glob("checkpoints/epoch-*")
    assert re.fullmatch(r"epoch-0001_loss-\d+\.\d{3}\.ckpt", kept.name)


def test_images_come_in_order_and_what_fails_is_told():
    import numpy as np

    def read(value):
        if value % 5 == 3:
            raise OSError("gone")
        return np.full((4, 4, 3), value, np.uint8)

    told = {}
    reads = [lambda v=v: read(v) for v in range(13)]
    plain = Preprocess(4, 4)
    batches = list(read_in_order(reads, plain, batch_size=4, skip=told.__setitem__))
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12]
    assert list(told) == [3, 8]
    with pytest.raises(OSError, match="gone"):
        list(read_in_order(reads, plain, batch_size=4))


def flat(trainer):
    """Everything but the counters of batch norm, as one float64 vector."""
    values = trainer.network.state_dict().values()
    return torch.cat([v.double().flatten() for v in values if v.is_floating_point()])


def in_double(make_trainer, name, **options):
    """With batch norms that stand still no image looks at another one."""
    still = select_frozen(build("unfreeze/tiny"), "norms", head=["head.weight", "head.bias"])
    trainer = make_trainer(
        name, validate=False, epochs=2, freeze=constant_schedule(still), **options
    )
    trainer.network.double()
    before = trainer.task.prepare
    trainer.task.prepare = lambda images: before(images).double()
    return trainer


@pytest.mark.parametrize(
    "fit",
    [
        {},
        {"label_smoothing": 0.1, "class_weights": (0.5, 1.0, 1.5)},
        {"clip_grad": 0.1},
        {"mixup": 0.5, "classes": 3},
    ],
    ids=["plain", "weighted", "clipped", "mixed"],
)
def test_a_batch_in_parts_is_the_whole_batch(make_trainer, fit):
    whole = in_double(make_trainer, "whole", **fit)
    parts = in_double(make_trainer, "parts", accumulate=3, **fit)
    start = flat(whole)
    whole.train_to_best(QuietConsole())
    parts.train_to_best(QuietConsole())
    moved = (flat(whole) - start).norm()
    assert moved > 1e-3 and (flat(whole) - flat(parts)).norm() / moved < 1e-6
    losses = [[m["loss"] for m in t.run.metrics()] for t in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_every_process_takes_its_share_in_as_many_parts():
    """Of 7 images one has 3 and one 4: two parts of 4 would wait for a part that never comes."""
    assert parts(7, 2, 2) == 1 and parts(8, 2, 2) == 2
    assert [parts(26, 1, wanted) for wanted in (1, 4, 40)] == [1, 4, 13]
    assert parts(2, 2, 8) == parts(1, 1, 8) == 1


def test_steps_are_clipped_as_torch_does(make_trainer):
    seen = []

    def norms(**fit):
        trainer = make_trainer(str(fit), validate=False, epochs=1, lr=1.0, momentum=0.0,
                               weight_decay=0.0, schedule="constant", **fit)  # fmt: skip
        step = trainer.train_step

        def stepping(batch):
            before = flat_parameters(trainer)
            loss = step(batch)
            seen.append(float((flat_parameters(trainer) - before).norm()))
            return loss

        trainer.train_step = stepping
        trainer.train_to_best(QuietConsole())
        return [seen.pop() for _ in range(len(seen))]

    free, clipped = norms(), norms(clip_grad=0.05)
    assert max(free) > 0.1
    # with a rate of 1 and nothing else the step is the gradient
    assert max(clipped) <= 0.05 * 1.001 and max(clipped) > 0.049


def flat_parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def test_the_average_is_judged_kept_and_resumed(make_trainer):
    from unfreeze.training.ema import weights_to_serve

    options = {"ema": 0.9, "epochs": 4}
    straight = make_trainer("straight", **options)
    own, step = [], straight.train_step

    def stepping(batch):
        loss = step(batch)
        own.append({n: v.clone() for n, v in straight.network.state_dict().items()})
        return loss

    straight.train_step = stepping
    straight.train_to_best(QuietConsole())
    # by hand: timm's warm-up is 1 - (step)^(-2/3) of the step from 1, at most the decay
    mean = None
    for number, state in enumerate(own, 1):
        share = min(1 - number ** (-2 / 3), 0.9) if number > 1 else 0.0
        mean = (
            dict(state)
            if mean is None
            else {
                n: mean[n] * share + v * (1 - share) if v.is_floating_point() else v
                for n, v in state.items()
            }
        )
    last = load_state(straight.run.file(LAST))
    assert all(torch.allclose(mean[n], v, atol=1e-6) for n, v in last["average"].items())
    assert same(dict(last["model"]), own[-1]) and not same(dict(last["model"]), last["average"])
    best = load_state(straight.run.file(BEST))
    assert same(weights(straight), dict(weights_to_serve(best)))
    first = make_trainer("broken", **options)
    stop_at(first, 6)
    first.train_to_best(QuietConsole())
    second = make_trainer("broken", **options)
    second.load_state_dict(load_state(second.run.file(LAST)))
    second.train_to_best(QuietConsole())
    assert same(weights(straight), weights(second))


def test_the_average_of_what_stands_still_is_itself(make_trainer):
    network = build("unfreeze/tiny")
    frozen = frozenset(n for n, _ in network.named_parameters() if not n.startswith("head"))
    trainer = make_trainer(ema=0.99, freeze=FreezeSchedule(((0, frozen),)))
    start = weights(trainer)
    trainer.train_to_best(QuietConsole())
    end = weights(trainer)
    assert [n for n in start if "head" not in n and not torch.equal(start[n], end[n])] == []
    assert not torch.equal(start["head.weight"], end["head.weight"])


def test_without_validation_the_average_is_the_model(make_trainer):
    trainer = make_trainer(ema=0.9, validate=False, epochs=2)
    trainer.train_to_best(QuietConsole())
    last = load_state(trainer.run.file(LAST))
    assert same(weights(trainer), dict(last["average"]))


def test_scores_that_are_no_numbers_are_never_the_best(make_trainer):
    """The last step of an epoch can break weights that no training loss has seen yet."""
    trainer = make_trainer(epochs=2)
    own, seen = trainer.validation.validate, []

    def validate():
        seen.append(trainer.step)
        return {**own(), **({"loss": math.nan, "accuracy": 1.0} if len(seen) > 1 else {})}

    trainer.validation.validate = validate
    with pytest.raises(DivergedError, match="The validation loss was nan after step 8"):
        trainer.train_to_best(QuietConsole())
    assert load_state(trainer.run.file(BEST))["step"] == seen[0]
    assert [m["epoch"] for m in trainer.run.metrics() if m["split"] == "val"] == [0]
