"""`pretrain --dry-run`: cost, curve and published values, for people and in JSON."""

import json

import pytest
import torch

import unfreeze
from unfreeze.cli.main import main
from unfreeze.runs.pretraining import dry_run
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.swav.model import SwAV
from unfreeze.swav.presets import PUBLISHED

QUICK = {"limit": 256, "device": "cpu", "epochs": 3}


@pytest.fixture(scope="module")
def planned():
    return unfreeze.pretrain("digits", dry_run=True, **QUICK)


def test_everything_is_said(planned):
    made, s = planned, planned.settings
    assert made.steps == 3 * made.steps_per_epoch == 3 * (256 // s["batch_size"])
    assert made.reference["recipe"] == "swav-200ep-bs256"
    assert made.reference["settings"] == PUBLISHED["swav-200ep-bs256"]
    assert len(made.learning_rate) == 10 and made.learning_rate[-1][0] == made.steps - 1
    parts = [value for name, value in made.memory.items() if name not in ("total", "basis")]
    assert (
        made.memory["total"] == sum(parts) > 0
        and "estimated from tensor shapes" in made.memory["basis"]
    )
    each = made.time["seconds_step"] + made.time["seconds_data"]
    assert made.time["seconds"] == pytest.approx(made.steps * each, rel=0.01)
    assert "random images" in made.time["basis"] and made.warnings == []


def test_a_first_step_scores_what_the_plan_says(planned, tmp_path):
    out = str(tmp_path / "run")
    unfreeze.pretrain("digits", out=out, **{**QUICK, "epochs": 1})
    first = next(r["loss"] for r in read_metrics(out) if r["split"] == "train")
    assert first == pytest.approx(planned.loss["untrained"], abs=0.25)
    assert abs(first - planned.loss["collapsed"]) > 0.05


def test_people_and_programs_are_told_the_same_and_no_file_is_touched(
    tmp_path, monkeypatch, capsys, coloured
):
    data = coloured("pics", {"a": 30, "b": 30}, 40)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = ["pretrain", str(data), "--dry-run", "--json", "--device", "cpu"]
    words += ["--nmb-prototypes", "100", "--time-limit", "1m"]
    assert main(words) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr()
    found = json.loads(said.out)
    total = round(found["memory"]["total"] / 2**20)
    assert f"Memory: about {total:,} MiB (parameters" in said.err
    assert "published*" in said.err and "Learning rate ▁" in said.err
    # the row of a value: ours, theirs, why
    row = next(line for line in said.err.splitlines() if line.lstrip().startswith("batch-size"))
    assert row.split()[1:3] == [str(found["settings"]["batch_size"]), "256"]
    assert f"warning: {found['warnings'][0]}" in said.err.replace("\n", " ")
    assert "60 images are few to learn from" in said.err
    assert found["time"]["starts"] == -(-found["time"]["seconds"] // 60)
    assert f"{found['time']['starts']:,} runs with --time-limit 1m" in said.err


def test_enough_images_are_not_called_few(capsys):
    assert main(["pretrain", "digits", "--dry-run", "--device", "cpu"]) == 0
    assert "images are few" not in capsys.readouterr().err


def test_what_every_process_needs_is_its_share(planned, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    shared = unfreeze.pretrain("digits", dry_run=True, **QUICK)
    assert shared.settings["batch_size"] == planned.settings["batch_size"]
    assert shared.memory["inputs"] == planned.memory["inputs"] / 2
    assert 0.4 < shared.memory["activations"] / planned.memory["activations"] < 0.6
    assert shared.memory["gradients"] == 2 * planned.memory["gradients"]


def test_memory_that_does_not_suffice_is_an_answer(monkeypatch):
    def full(trainer, rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dry_run, "_step", full)
    made = unfreeze.pretrain("digits", dry_run=True, **QUICK)
    assert made.time["seconds"] is None and "does not fit" in made.time["basis"]
    assert made.memory["total"] > 0


def test_a_network_that_wants_to_see_numbers_is_not_counted_and_says_so(monkeypatch):
    whole = SwAV.forward

    def looks(self, views):
        if views[0].mean().item() > 1e9:
            raise AssertionError
        return whole(self, views)

    monkeypatch.setattr(SwAV, "forward", looks)
    made = unfreeze.pretrain("digits", dry_run=True, **QUICK)
    assert made.memory["total"] is None and made.memory["basis"].startswith("unknown: ")
    assert made.time["seconds"] is None and made.time["basis"].startswith("not measured: ")


# ------------------------------------------------------------------- how steps are tried out


class Machine:
    """A trainer whose steps take `fixed` seconds and `each` an image, on a clock of its own."""

    def __init__(self, monkeypatch, fixed, each, accumulate=1, device="cuda"):
        self.now, self.sizes = 0.0, []
        self.plan = type("S", (), {"accumulate": accumulate})
        self.compute = type("P", (), {"device": torch.device(device)})

        def step(trainer, rows):
            self.sizes.append(rows)
            self.now += fixed + each * rows + 0.01 * rows
            return 0.01 * rows, fixed + each * rows

        monkeypatch.setattr(dry_run, "_step", step)
        monkeypatch.setattr(dry_run, "matmul_flops_per_second", lambda: 1e10)
        monkeypatch.setattr(dry_run.time, "perf_counter", lambda: self.now)


def test_a_quick_step_is_measured_whole(monkeypatch):
    machine = Machine(monkeypatch, fixed=0.01, each=0.001)
    timing, why = dry_run._measure(machine, 64, None)
    assert machine.sizes[-1] == 64 and why == "" and "in a step of 64" in timing.how
    assert timing.step == pytest.approx(0.074) and timing.data == pytest.approx(0.64)


def test_one_step_that_another_program_held_up_does_not_count(monkeypatch):
    machine = Machine(monkeypatch, fixed=0.01, each=0.001)
    usual, held_up = dry_run._step, []

    def step(trainer, rows):
        data, seconds = usual(trainer, rows)
        if rows == 64 and not held_up:
            held_up.append(rows)
            return data, seconds + 0.5
        return data, seconds

    monkeypatch.setattr(dry_run, "_step", step)
    timing, _ = dry_run._measure(machine, 64, None)
    assert held_up and machine.sizes.count(64) == dry_run.REPEATS
    assert timing.step == pytest.approx(0.074)


def test_a_single_size_that_fits_is_measured_again_and_drawn_out(monkeypatch):
    machine = Machine(monkeypatch, fixed=1.2, each=0.0)
    usual, noise = dry_run._step, iter([0.0, 0.0, 0.1, 0.2])

    def step(trainer, rows):
        data, seconds = usual(trainer, rows)
        return data, seconds + next(noise)

    monkeypatch.setattr(dry_run, "_step", step)
    timing, _ = dry_run._measure(machine, 16, None)
    assert machine.sizes == [2, 2, 2]  # warm-up, and two that differ
    assert timing.step == pytest.approx(1.25 * 16 / 2)


@pytest.mark.parametrize("fixed, each", [(0.2, 0.01), (0.05, 0.05), (0.0, 0.1)])
def test_a_slow_step_is_drawn_out_along_its_line_within_the_budget(monkeypatch, fixed, each):
    machine = Machine(monkeypatch, fixed, each)
    timing, _ = dry_run._measure(machine, 256, None)
    assert machine.now <= dry_run.BUDGET and 2 < max(machine.sizes) < 256
    assert timing.step == pytest.approx(fixed + each * 256)
    assert timing.data == pytest.approx(2.56)
    assert "for a batch of 256" in timing.how


def test_parts_of_an_accumulated_batch_have_two_images_at_least(monkeypatch):
    machine = Machine(monkeypatch, 0.01, 0.001, accumulate=4)
    dry_run._measure(machine, 64, None)
    assert machine.sizes[0] == 8 and all(rows % 4 == 0 for rows in machine.sizes)


def test_a_step_too_heavy_for_the_cpu_is_not_tried(monkeypatch):
    machine = Machine(monkeypatch, 0.01, 0.001, device="cpu")
    work = dry_run.MicroBatchCost(activations=1, operations=10**18)
    timing, why = dry_run._measure(machine, 64, work)
    assert timing is None and machine.sizes == [] and "a step of 2 images" in why


def test_a_plan_that_clusters_is_tried_out_too():
    found = unfreeze.pretrain("digits", method="deepcluster-v2", device="cpu", dry_run=True)
    assert found.time["seconds_step"] > 0
