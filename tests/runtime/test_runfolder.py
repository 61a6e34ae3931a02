import os

import pytest

from unfreeze.errors import DataError, UsageError
from unfreeze.runtime.console import Logged, Quiet
from unfreeze.runtime.runfolder import RunFolder, read_metrics, writable_file


def test_a_used_folder_is_refused_unless_told(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.metric({"step": 1})
    with pytest.raises(UsageError, match="not empty"):
        RunFolder.create(run.path)
    assert RunFolder.create(run.path, resume="yes").metrics() == [{"step": 1}]
    assert RunFolder.create(run.path, overwrite=True).metrics() == []


def test_overwrite_never_empties_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="does not look like a run"):
        RunFolder.create(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_in_the_way_and_contradictions(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder.create(tmp_path / "file")
    with pytest.raises(UsageError, match="contradict"):
        RunFolder.create(tmp_path / "run", resume="yes", overwrite=True)


def test_a_line_cut_by_a_crash_is_left_out_and_rewinding_drops_the_future(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    for step in range(1, 6):
        run.metric({"step": step})
    with run.file("metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')
    assert len(read_metrics(run.path)) == 5
    run.rewind_metrics(3)
    assert [r["step"] for r in run.metrics()] == [1, 2, 3]


@pytest.mark.parametrize("name", ["file/run", "link", "x" * 300])
def test_what_cannot_become_a_folder_is_wrong_use(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError) as caught:
        RunFolder.create(tmp_path / name)
    assert "--out" in caught.value.sentence and caught.value.next_step
    with pytest.raises(UsageError):
        writable_file(tmp_path / name / "f.npz")


def test_a_file_is_not_written_over_a_folder(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        writable_file(tmp_path)
    writable_file(tmp_path / "new" / "f.npz")
    assert not (tmp_path / "new").exists()


def test_a_place_that_may_not_be_written_to_is_said_early(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(UsageError, match="may not be written to"):
        RunFolder.create(tmp_path / "run")


def test_what_a_killed_process_left_goes_and_nothing_of_others(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.log("here")
    (run.path / "checkpoints").mkdir()
    left = run.path / "checkpoints/.last.ckpt.abc.tmp"
    left.write_text("half")
    RunFolder.create(run.path, resume="auto")
    assert not left.exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / ".mine.tmp").write_text("kept")
    RunFolder.create(other, resume="auto")
    assert (other / ".mine.tmp").exists()


def test_lines_said_before_there_is_a_run_are_in_its_log(tmp_path):
    console = Logged(Quiet())
    console.say("before")
    run = RunFolder.create(tmp_path / "run")
    console.into(run)
    console.say("after \udcff")
    lines = run.file("log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["before", "after \\udcff"]


def test_a_broken_line_in_the_middle_is_named_and_not_passed_over(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.metric({"step": 1})
    with run.file("metrics.jsonl").open("a") as stream:
        stream.write("not json\n")
    run.metric({"step": 3})
    with pytest.raises(DataError, match="line 2"):
        read_metrics(run.path)
