"""A run's folder has one process: others are refused while it lives, and not a moment longer."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

import unfreeze
from unfreeze.errors import UsageError
from unfreeze.runs.test_set_usage import count_test_uses, record_test_use
from unfreeze.runtime import run_lock
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.run_lock import LOCK, OWNER, RunFolderLocks, exclusive_access

HOLDS = """
import os, sys, time
from unfreeze.runtime.run_lock import RunFolderLocks
locks = RunFolderLocks()
locks.take(sys.argv[1])
if not os.fork():  # as a loader starts a worker
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_the_second_is_refused_and_nothing_is_left_behind(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with RunFolderLocks() as locks:
        locks.take(tmp_path)
        locks.take(tmp_path)  # once more by the same call
        with RunFolderLocks() as others, pytest.raises(UsageError) as caught:
            others.take(tmp_path / "link")
        who = f"process {os.getpid()} on {socket.gethostname()} has been running in it since 20"
        assert f"link is in use: {who}" in caught.value.sentence and caught.value.exit_code == 2
        assert "stop it, or name another --out" in caught.value.next_step
        assert {path.name for path in tmp_path.iterdir()} == {"link", LOCK, OWNER}
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
    with RunFolderLocks() as locks:
        locks.take(tmp_path)


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with RunFolderLocks() as locks:
        locks.take_existing(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_dies_with_its_process_though_a_worker_lives_on(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(UsageError, match=f"process {holder.pid} on"):
            RunFolderLocks().take(tmp_path)
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # it is there
        with RunFolderLocks() as locks:
            locks.take(tmp_path)
            assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    finally:
        os.kill(worker, 9)
        holder.stdout.close()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A process on another machine left its name in `tmp_path`; locks do not reach that far."""
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.1)
    owner = tmp_path / OWNER
    owner.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "2030-01-01 00:00:00"}))
    return owner


def test_on_another_machine_it_lives_while_its_file_is_touched(elsewhere, tmp_path):
    over = threading.Event()

    def beat():
        while not over.wait(0.05):
            os.utime(elsewhere)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UsageError, match="process 7 on elsewhere"):
            RunFolderLocks().take(tmp_path)
    finally:
        over.set()
        thread.join()
    with RunFolderLocks() as locks:  # and then no longer
        locks.take(tmp_path)


def test_whoever_holds_a_folder_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.05)
    with RunFolderLocks() as locks:
        locks.take(tmp_path)
        assert run_lock._has_heartbeat(tmp_path / OWNER)
    assert not run_lock._has_heartbeat(tmp_path / OWNER)


def test_without_flock_a_file_is_the_lock(tmp_path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    with RunFolderLocks() as locks:
        locks.take(tmp_path)
        with pytest.raises(UsageError, match=f"process {os.getpid()} on") as caught:
            RunFolderLocks().take(tmp_path)
        assert f"delete {tmp_path / LOCK}" in caught.value.next_step
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_counts_as_an_empty_folder(tmp_path):
    for name in (LOCK, OWNER):
        (tmp_path / name).write_text("")
    with RunFolderLocks() as locks:
        RunFolder.create(tmp_path, hold=locks.take)


def test_starting_again_empties_the_folder_but_keeps_hold_of_it(tmp_path):
    RunFolder.create(tmp_path).metric({"step": 1})
    with RunFolderLocks() as locks:
        run = RunFolder.create(tmp_path, overwrite=True, hold=locks.take)
        assert run.metrics() == []
        with pytest.raises(UsageError, match="is in use"):
            RunFolder.create(tmp_path, overwrite=True, hold=RunFolderLocks().take)


def test_uses_of_the_test_set_that_are_counted_at_once_are_all_counted(tmp_path):
    counts = []

    def count():
        for _ in range(5):
            counts.append(record_test_use(tmp_path, data="d", split="test", n=1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == list(range(1, 21)) and count_test_uses(tmp_path) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["test_uses.json"]


def test_whoever_waits_too_long_for_another_goes_without(tmp_path):
    with (
        exclusive_access(tmp_path / "x.json"),
        pytest.raises(OSError),
        exclusive_access(tmp_path / "x.json", 0.05),
    ):
        pass


TINY = {"arch": "unfreeze/tiny", "device": "cpu", "resume": "auto"}


@pytest.mark.parametrize(
    "start",
    [
        lambda out: unfreeze.pretrain("digits", out=out, **TINY),
        lambda out: unfreeze.finetune("digits", out=out, weights="none", **TINY),
        lambda out: unfreeze.compare("digits", ["none", "none"], out=out, limit=40, **TINY),
        lambda out: unfreeze.demo(out),
    ],
    ids=["pretrain", "finetune", "compare", "demo"],
)
def test_no_verb_enters_a_folder_in_which_another_runs(tmp_path, start):
    with RunFolderLocks() as locks:
        locks.take(tmp_path)
        with pytest.raises(UsageError, match="is in use: process"):
            start(str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {LOCK, OWNER}
