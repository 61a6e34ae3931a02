"""Reading a run: everything is optional but the marks of a run."""

import pytest

from unfreeze.errors import DataError, UsageError
from unfreeze.reports.run_reader import read_run


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="not a run folder"):
        read_run(tmp_path / "absent")


def test_what_is_not_there_is_empty(bare):
    found = read_run(bare)
    assert found.kind == "pretrain"
    assert (found.metrics, found.problems, found.evaluation, found.views) == ([], [], None, None)
    assert found.reasons["queue_length"].startswith("a batch of 256")
    assert found.facts["images"] == 1437
    assert "reasons" not in found.settings


def test_kinds(finetuning, demonstration):
    assert read_run(finetuning).kind == "finetune"
    assert read_run(demonstration).kind == "demo"


def test_the_largest_prototypes_come_first(pretraining):
    held = read_run(pretraining).prototypes
    assert list(held.number) == list(range(11, -1, -1))
    assert held.share[0] == pytest.approx(0.05)
    assert held.images.shape == (12, 8, 16, 16, 3)


def test_a_demo_shows_its_pretraining(demonstration):
    found = read_run(demonstration)
    assert found.settings["nmb_prototypes"] == 64
    assert found.metrics
    assert found.prototypes is not None


@pytest.mark.parametrize("name", ["prototypes.npz", "evaluation.json"])
def test_a_broken_file_is_named(bare, name):
    (bare / name).write_text("{")
    with pytest.raises(DataError, match=name):
        read_run(bare)


def test_a_line_cut_by_a_crash_is_left_out(pretraining):
    path = pretraining / "metrics.jsonl"
    whole = len(read_run(pretraining).metrics)
    path.write_text(path.read_text() + '{"step": 401, "lo')
    assert len(read_run(pretraining).metrics) == whole
