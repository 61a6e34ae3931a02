import pytest

from unfreeze.errors import UsageError
from unfreeze.runtime.runfolder import RunFolder, read_metrics


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
