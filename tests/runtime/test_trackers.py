"""What goes into metrics.jsonl reaches the loggers, once, and none of them can end a run."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import types
import warnings

import pytest

from unfreeze.errors import UsageError
from unfreeze.runtime import trackers
from unfreeze.runtime.console import LoggingConsole, QuietConsole
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.trackers import check_loggers, logging_to, values_of

SETTINGS = {"epochs": 2, "base_lr": 0.002, "size_crops": [16, 12], "limit": None, "scan": "full"}


class Kept(QuietConsole):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def line(step, split="train", **values):
    return {"step": step, "epoch": step // 5, "split": split, "loss": 5.0 - step / 10, **values}


def record(run, names, first, last, *, step=None, console=None):
    """A start of a run that records these steps; with `step` it goes on from there."""
    if step is not None:
        run.rewind_metrics(step)
    with logging_to(names, run, SETTINGS, max(0, step or 0), console or QuietConsole()):
        for number in range(first, last + 1):
            run.metric(line(number))
            if number % 5 == 0:
                run.metric(line(number, "val", accuracy=number / 20, note="text", best=None))


def expected(run):
    """name -> {step: value} of metrics.jsonl."""
    found = {}
    for one in run.metrics():
        for name, value in values_of(one).items():
            found.setdefault(name, {})[one["step"]] = pytest.approx(value, rel=1e-6)
    return found


def test_a_records_numbers_are_its_values_under_its_split():
    given = {**line(3, "val"), "best": True, "note": "x", "none": None, "correct": 7}
    assert values_of(given) == {"val/epoch": 0.0, "val/loss": 4.7, "val/correct": 7.0}


# ---------------------------------------------------------------------------- TensorBoard, real


def events(folder):
    """name -> {step: value} as TensorBoard shows the folder; no step of a name twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(folder)).Reload()
    names = [name for name in seen.Tags()["scalars"] if not name.startswith("_")]
    points = {name: [(e.step, e.value) for e in seen.Scalars(name)] for name in names}
    assert all(len(dict(p)) == len(p) for p in points.values())
    return {name: dict(p) for name, p in points.items() if p}


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard")


def test_tensorboard_shows_what_metrics_jsonl_holds(tensorboard, tmp_path):
    run = RunFolder.create(tmp_path / "run")
    record(run, ["tensorboard"], 1, 10)
    assert events(run.file("tensorboard")) == expected(run)
    assert set(expected(run)["val/accuracy"]) == {5, 10}


def test_tensorboard_goes_on_and_steps_written_again_count_once(tensorboard, tmp_path):
    run = RunFolder.create(tmp_path / "run")
    record(run, ["tensorboard"], 1, 10)
    record(run, ["tensorboard"], 8, 15, step=7)  # a crash lost what came after step 7
    assert len(list(run.file("tensorboard").iterdir())) == 2
    shown = events(run.file("tensorboard"))
    assert shown == expected(run) and set(shown["train/loss"]) == set(range(1, 16))
    record(run, ["tensorboard"], 0, 3, step=-1)  # no checkpoint: from the beginning
    assert events(run.file("tensorboard")) == expected(run)


def test_a_killed_run_leaves_its_last_record_in_tensorboard(tensorboard, tmp_path):
    script = (
        "import os, sys, time\n"
        "from unfreeze.runtime.console import QuietConsole\n"
        "from unfreeze.runtime.trackers import logging_to\n"
        "from unfreeze.runtime.run_folder import RunFolder\n"
        f"run = RunFolder.create({str(tmp_path / 'run')!r})\n"
        "with logging_to(['tensorboard'], run, {}, 0, QuietConsole()):\n"
        "    [run.metric({'step': n, 'split': 'train', 'loss': 1.0}) for n in range(1, 8)]\n"
        "    time.sleep(30)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    folder, shown = tmp_path / "run" / "tensorboard", {}
    deadline = time.monotonic() + 60
    while set(shown.get("train/loss", ())) != set(range(1, 8)) and time.monotonic() < deadline:
        time.sleep(0.3)
        shown = events(folder) if folder.is_dir() else {}
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert set(shown["train/loss"]) == set(range(1, 8))


def test_settings_are_tensorboards_hyper_parameters(tensorboard, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run = RunFolder.create(tmp_path / "run")
    record(run, ["tensorboard"], 1, 2)
    record(run, ["tensorboard"], 2, 3, step=1)
    seen = EventAccumulator(str(run.file("tensorboard"))).Reload()
    data = seen.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(data).session_start_info.hparams
    assert found["base_lr"].number_value == 0.002
    assert found["size_crops"].string_value == "16 12" and found["limit"].string_value == "auto"


def test_a_logger_added_on_resume_gets_what_was_recorded_before(tensorboard, tmp_path):
    run = RunFolder.create(tmp_path / "run")
    record(run, ["none"], 1, 6)
    assert not run.file(trackers.IDS).exists()
    record(run, ["tensorboard"], 5, 8, step=4)
    assert events(run.file("tensorboard")) == expected(run)
    assert set(expected(run)["train/loss"]) == set(range(1, 9))


# ------------------------------------------------------------------------------------ MLflow, real


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at their import
        pytest.importorskip("mlflow")
        from mlflow.tracking import MlflowClient
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    return MlflowClient


def history(client, run):
    id = json.loads(run.file(trackers.IDS).read_text())["mlflow"]
    found = client.get_run(id)
    points = {
        name: [(m.step, m.value) for m in client.get_metric_history(id, name)]
        for name in found.data.metrics
    }
    return found, points


@pytest.mark.filterwarnings("ignore:.*:FutureWarning:mlflow")  # of its file store
def test_mlflow_goes_on_in_the_same_run_and_holds_each_step_once(mlflow, tmp_path):
    run = RunFolder.create(tmp_path / "run")
    record(run, ["mlflow"], 1, 10)
    before, _ = history(mlflow(), run)
    record(run, ["mlflow"], 8, 15, step=7)
    found, points = history(mlflow(), run)
    assert found.info.run_id == before.info.run_id and found.info.status == "FINISHED"
    assert all(len(dict(p)) == len(p) for p in points.values())
    assert {name: dict(p) for name, p in points.items()} == expected(run)
    assert found.data.params["size_crops"] == "16 12"


@pytest.mark.filterwarnings("ignore:.*:FutureWarning:mlflow")
def test_an_mlflow_server_that_does_not_answer_ends_nothing(mlflow, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run, console = RunFolder.create(tmp_path / "run"), Kept()
    record(run, ["mlflow"], 1, 4, console=console)
    assert len(run.metrics()) == 4
    assert len(console.lines) == 1 and "--logger mlflow failed" in console.lines[0]


# --------------------------------------------------------------------------------------- W&B, real


@pytest.fixture
def wandb(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return found


def offline_steps(file):
    """The steps of the rows in an offline run's file: a LevelDB log of 32 KiB blocks."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole, steps = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            found, whole = wandb_internal_pb2.Record.FromString(whole), b""
            if found.WhichOneof("record_type") == "history":
                steps.append(found.history.step.num)
    return steps


def test_wandb_offline_goes_on_under_the_same_id(wandb, tmp_path):
    run, console = RunFolder.create(tmp_path / "run"), Kept()
    record(run, ["wandb"], 1, 10, console=console)
    time.sleep(1.1)  # W&B names its folders by the second
    record(run, ["wandb"], 8, 15, step=7, console=console)
    id = json.loads(run.file(trackers.IDS).read_text())["wandb"]
    files = sorted(run.file("wandb").glob("offline-run-*/*.wandb"))
    assert {f.stem for f in files} == {f"run-{id}"} and console.lines == []
    assert [offline_steps(f) for f in files] == [[*range(1, 11)], [*range(11, 16)]]


def test_wandb_dying_under_a_run_ends_nothing(wandb, tmp_path):
    script = (
        "import os, signal, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from unfreeze.runtime import loggers\n"
        "from unfreeze.runtime.run_folder import RunFolder\n"
        "class Out:\n"
        "    def say(self, text): print(text)\n"
        f"run = RunFolder.create({str(tmp_path / 'run')!r})\n"
        "with loggers.passed_on(['wandb'], run, {}, 0, Out()):\n"
        "    while not run.file(loggers.IDS).exists(): time.sleep(0.05)\n"
        "    for child in subprocess.check_output(['pgrep', '-P', str(os.getpid())]).split():\n"
        "        if 'wandb' in Path(f'/proc/{int(child)}/cmdline').read_text():\n"
        "            os.kill(int(child), signal.SIGKILL)\n"
        "    time.sleep(0.5)\n"
        "    for step in range(1, 5): run.metric({'step': step, 'loss': 1.0})\n"
        "print('went on to', len(run.metrics()))\n"
    )
    own = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=own)
    said = done.stdout.splitlines()
    assert done.returncode == 0 and said[-1] == "went on to 4"
    assert len(said) == 2 and "--logger wandb failed and was switched off" in said[0]


# -------------------------------------------------------- W&B and MLflow as their callers see them


def module(monkeypatch, name, **parts):
    """A module of that name which holds `parts`."""
    made = types.ModuleType(name)
    made.__spec__ = importlib.util.spec_from_loader(name, None)
    vars(made).update(parts)
    monkeypatch.setitem(sys.modules, name, made)


class OnlineRun:
    """What `wandb.init` returns where a server answers; it refuses steps that it has."""

    offline = False

    def __init__(self, server, **given):
        self.rows, self.given, self.config = server.setdefault(given["id"], {}), given, {}
        self.step = max(self.rows, default=-1) + 1
        self.config = types.SimpleNamespace(update=lambda values, allow_val_change: None)

    def log(self, values, step):
        assert step >= self.step, "W&B ignores steps that are behind"
        self.rows.setdefault(step, {}).update(values)
        self.step = step

    def finish(self):
        pass


def test_with_a_server_wandb_takes_what_it_lacks_and_nothing_twice(monkeypatch, tmp_path):
    server = {}
    module(
        monkeypatch,
        "wandb",
        init=lambda **given: OnlineRun(server, **given),
        Settings=lambda **given: given,
    )
    run, console = RunFolder.create(tmp_path / "run"), Kept()
    record(run, ["wandb"], 1, 10, console=console)
    [(id, rows)] = server.items()
    for lost in (9, 10):  # the server was away for a while
        rows.pop(lost)
    record(run, ["wandb"], 10, 12, step=9, console=console)
    assert list(server) == [id] and set(rows) == set(range(1, 13)) and console.lines == []
    assert rows[5] == {**values_of(line(5)), **values_of(line(5, "val", accuracy=0.25))}


class Client:
    """The part of MlflowClient that is used; parameters cannot be written twice."""

    runs: dict = {}  # noqa: RUF012

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=name)

    def create_run(self, experiment, run_name):
        self.runs["r1"] = {"params": {}, "metrics": [], "status": "RUNNING"}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

    def update_run(self, id, status):
        self.runs[id]["status"] = status

    def log_batch(self, id, metrics=(), params=()):
        for key, value in params:
            assert self.runs[id]["params"].setdefault(key, value) == value
        self.runs[id]["metrics"] += metrics

    def get_run(self, id):
        names = {name for name, *_ in self.runs[id]["metrics"]}
        return types.SimpleNamespace(data=types.SimpleNamespace(metrics=names))

    def get_metric_history(self, id, name):
        found = [m for m in self.runs[id]["metrics"] if m[0] == name]
        return [types.SimpleNamespace(step=step) for _, _, _, step in found]

    def set_terminated(self, id):
        self.runs[id]["status"] = "FINISHED"


def test_mlflow_gets_each_step_once_and_parameters_at_the_start(monkeypatch, tmp_path):
    monkeypatch.setattr(Client, "runs", {})
    module(monkeypatch, "mlflow")
    module(monkeypatch, "mlflow.tracking", MlflowClient=Client)
    module(
        monkeypatch,
        "mlflow.entities",
        Param=lambda key, value: (key, value),
        Metric=lambda key, value, timestamp, step: (key, value, timestamp, step),
    )
    run, console = RunFolder.create(tmp_path / "run"), Kept()
    record(run, ["mlflow"], 1, 10, console=console)
    record(run, ["mlflow"], 8, 15, step=7, console=console)
    [(id, seen)] = Client.runs.items()
    assert console.lines == [] and seen["status"] == "FINISHED" and id == "r1"
    assert seen["params"]["limit"] == "auto" and seen["params"]["base_lr"] == "0.002"
    points = [(name, step) for name, _, _, step in seen["metrics"]]
    assert len(points) == len(set(points))
    assert set(points) == {(n, s) for n, steps in expected(run).items() for s in steps}


# ------------------------------------------------------------------------------ what goes wrong


class Breaks:
    """A logger that fails at its third record."""

    def __init__(self, opening):
        self.id, self.left = "x", 2

    def metric(self, step, values):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the network\nis gone")

    def settled(self):
        pass

    def close(self):
        raise AssertionError("it was dropped")


def test_a_logger_that_fails_is_said_once_and_dropped(monkeypatch, tmp_path):
    module(monkeypatch, "wandb")
    monkeypatch.setitem(trackers.KINDS, "wandb", Breaks)
    run, shown = RunFolder.create(tmp_path / "run"), Kept()
    console = LoggingConsole(shown)
    console.into(run)
    record(run, ["wandb"], 1, 20, console=console)
    assert len(run.metrics()) == 24 and run.listeners == []
    [said] = shown.lines
    assert "--logger wandb failed" in said and "ConnectionError: the network is gone" in said
    assert run.file("log.txt").read_text().count("--logger wandb failed") == 1


class Hangs(Breaks):
    def metric(self, step, values):
        time.sleep(60)


def test_a_logger_that_hangs_holds_up_neither_steps_nor_the_end(monkeypatch, tmp_path):
    module(monkeypatch, "wandb")
    monkeypatch.setitem(trackers.KINDS, "wandb", Hangs)
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT", -4.9)
    run, console = RunFolder.create(tmp_path / "run"), Kept()
    began = time.monotonic()
    record(run, ["wandb"], 1, 20, console=console)
    assert time.monotonic() - began < 5 and "no response" in console.lines[0]


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        check_loggers(["wandb"])
    assert "wandb is not installed" in caught.value.sentence
    assert "'unfreeze[wandb]'" in caught.value.next_step
    assert check_loggers(["none"]) == ()


def test_none_and_another_contradict():
    with pytest.raises(UsageError, match="cannot be combined"):
        check_loggers(["none", "wandb"])
