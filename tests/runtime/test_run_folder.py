import os

import pytest

from unfreeze.cli.main import main
from unfreeze.errors import DataError, UsageError
from unfreeze.runtime.console import LoggingConsole, QuietConsole
from unfreeze.runtime.run_folder import ENTRIES, RunFolder, is_run_folder, read_metrics


def test_a_used_folder_is_refused_unless_told(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.metric({"step": 1})
    with pytest.raises(UsageError, match="not empty"):
        RunFolder.create(run.path)
    assert RunFolder.create(run.path, resume="yes").metrics() == [{"step": 1}]
    assert RunFolder.create(run.path, overwrite=True).metrics() == []


def test_overwrite_never_empties_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds thesis\.tex, which no run wrote"):
        RunFolder.create(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_overwrite_leaves_what_others_put_into_a_run(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.metric({"step": 1})
    (run.path / "notes.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        RunFolder.create(run.path, overwrite=True)
    assert (run.path / "notes.txt").exists() and run.metrics()


@pytest.mark.parametrize(
    "name", ["config.toml", "metrics.jsonl", "model", "demo.json", "predictions.csv"]
)
def test_names_like_ours_make_no_run_and_are_not_resumed(tmp_path, name):
    """A project may have a config.toml, a model/ and a log.txt of its own."""
    assert name in ENTRIES
    mine = tmp_path / "project" / name
    mine.parent.mkdir()
    if "." in name:
        mine.write_text("epochs = 3\n")
    else:
        mine.mkdir()
    assert not is_run_folder(mine.parent)
    for how in ({"overwrite": True}, {"resume": "auto"}):
        with pytest.raises(UsageError, match="is not a run folder"):
            RunFolder.create(mine.parent, **how)
    assert mine.exists()


def test_a_folder_for_a_run_may_hold_what_a_scheduler_wrote(tmp_path):
    (tmp_path / "slurm-17.out").write_text("started")
    assert RunFolder.create(tmp_path, resume="auto").path == tmp_path


def test_a_run_is_not_emptied_of_what_the_next_one_reads(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.metric({"step": 1})
    weights = run.path / "checkpoints/best.ckpt"
    weights.parent.mkdir()
    weights.write_text("")
    with pytest.raises(UsageError, match="would delete"):
        RunFolder.create(run.path, overwrite=True, inputs=["imagenet", str(weights)])
    with pytest.raises(UsageError, match="is an input"):
        RunFolder.create(run.path, resume="yes", inputs=[str(tmp_path / "run/../run")])
    assert weights.exists()


def test_a_run_does_not_hide_the_data_set_of_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = ["--arch", "unfreeze/tiny", "--limit", "40", "--epochs", "1", "--weights", "none"]
    assert main(["finetune", "digits", "--out", "digits", *quick]) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    # "none" is no weights, whatever is called so
    for again in ([], ["--overwrite"]):
        assert main(["finetune", "digits", "--out", "none", *quick, *again]) == 0


def test_a_file_in_the_way_and_contradictions(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder.create(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be combined"):
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


def test_a_place_that_may_not_be_written_to_is_said_early(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(UsageError, match="is not writable"):
        RunFolder.create(tmp_path / "run")


def test_what_a_killed_process_left_goes_and_nothing_of_others(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.metric({"step": 1})
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
    console = LoggingConsole(QuietConsole())
    console.say("before")
    run = RunFolder.create(tmp_path / "run")
    console.into(run)
    console.say("after \udcff")
    lines = run.file("log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["before", "after \\xff"]


def test_a_broken_line_in_the_middle_is_named_and_not_passed_over(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.metric({"step": 1})
    with run.file("metrics.jsonl").open("a") as stream:
        stream.write("not json\n")
    run.metric({"step": 3})
    with pytest.raises(DataError, match="line 2"):
        read_metrics(run.path)
