"""Worker processes of a training: signals pass them by, and without them it does their work."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import _utils

from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Loader
from unfreeze.data.sources.open import open_source
from unfreeze.errors import ResourceError

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")


def cut(images, ids, epoch):
    return [torch.from_numpy(np.stack(images))]


def made_loader(workers, make=cut):
    loader = Loader(
        ImageDataset(build_index(open_source("digits"))),
        make,
        batch_size=8,
        seed=0,
        drop_last=True,
        workers=workers,
    )
    loader.said = []
    loader.warn = loader.said.append
    return loader


@pytest.fixture
def batches():
    """Those of a process without workers, as numbers."""
    return [batch.ids.tolist() for batch in made_loader(0).stream(0, 12)]


def pids():
    return [process.pid for process in multiprocessing.active_children()]


@POSIX
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_to_the_group_reach_no_worker(batches, name):
    found, loader = [], made_loader(2)
    for batch in loader.stream(0, 12):
        found.append(batch.ids.tolist())
        if len(found) == 3:
            for pid in pids():
                # of another process than the one that started them
                kill = f"import os; os.kill({pid}, {int(getattr(signal, name))})"
                subprocess.run([sys.executable, "-c", kill], check=True)
    assert found == batches and loader.said == []
    assert pids() == []


@POSIX
def test_who_started_a_worker_can_end_it():
    with contextlib.closing(made_loader(1).stream(0, 100)) as stream:
        next(stream)
        (worker,) = multiprocessing.active_children()
        worker.terminate()
        worker.join(20)
        assert worker.exitcode == 0


@POSIX
def test_a_worker_that_is_killed_is_an_error_between_two_batches(monkeypatch):
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    stream = made_loader(1).stream(0, 100)
    next(stream)
    os.kill(pids()[0], signal.SIGKILL)
    time.sleep(0.3)  # torch's own handler would raise here
    with pytest.raises(ResourceError, match="A data loading worker was killed"):
        list(stream)
    assert pids() == []


def test_the_caller_gets_back_what_was_changed():
    threads, main = cv2.getNumThreads(), dict(vars(sys.modules["__main__"]))
    deaths = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        cv2.setNumThreads(2)
        with contextlib.closing(made_loader(1).stream(0, 10)) as stream:
            next(stream)
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(threads)
    assert dict(vars(sys.modules["__main__"])) == main
    assert deaths == (signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None)
    assert not _utils.signal_handling._SIGCHLD_handler_set


def lacking(*_):
    raise OSError(38, "Function not implemented")


def ends(worker):
    os._exit(1)


@pytest.mark.parametrize("why", ["daemon", "no process", "cannot travel", "dies"])
def test_workers_that_cannot_start_are_replaced_by_none(monkeypatch, batches, why):
    loader = made_loader(2)
    if why == "daemon":
        monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    elif why == "no process":
        monkeypatch.setattr(multiprocessing.Process, "start", lacking)
        monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", lacking)
    elif why == "cannot travel":
        loader = made_loader(2, lambda *given: cut(*given))
        monkeypatch.setattr("unfreeze.data.loading.loader.start_method", lambda: "spawn")
    else:
        monkeypatch.setattr("unfreeze.data.loading.loader.worker_init", ends)
        monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    for _ in range(2):  # it is said once
        assert [batch.ids.tolist() for batch in loader.stream(0, 12)] == batches
    assert len(loader.said) == 1 and loader.said[0].endswith("in the main process (--workers 0).")
    assert loader.workers == 0


SCRIPT = """
import multiprocessing, sys
multiprocessing.set_start_method(sys.argv[1])
print("once", flush=True)
import unfreeze
given = {"arch": "unfreeze/tiny", "weights": "none", "image_size": 16, "epochs": 2, "cache": "off"}
done = unfreeze.finetune(sys.argv[2], out=sys.argv[3], workers=2, **given)
print(done.epochs)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_script_without_a_main_guard_runs_once(tmp_path, coloured, method):
    data = coloured("pics", {"red": 12, "blue": 12})
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [tmp_path / "script.py", method, data, tmp_path / "run"]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "once\n2\n"), done.stderr
    log = (tmp_path / "run/log.txt").read_text()
    assert "main process" not in log  # the workers did the work
