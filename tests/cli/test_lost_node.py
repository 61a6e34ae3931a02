"""A machine that is lost: torchrun's elastic restart goes on from the last checkpoint.

Two agents of torchrun on two loopback addresses stand for two machines. One of them and its worker
are killed with SIGKILL; the other begins again alone and finishes.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unfreeze.runtime.run_folder import read_metrics

EPOCHS, STEPS = 24, 4  # of 64 images by 16
WORDS = [
    *("pretrain", "digits", "--limit", "64", "--batch-size", "16", "--epochs", str(EPOCHS)),
    *("--arch", "unfreeze/tiny", "--nmb-prototypes", "12", "--queue-length", "32"),
    *("--epoch-queue-starts", "0", "--size-crops", "16", "--nmb-crops", "2"),
    *("--min-scale-crops", "0.3", "--max-scale-crops", "1", "--device", "cpu"),
    *("--watch-every", "0", "--resume", "auto", "--json"),
]


def agent(address, port, out, log):
    """torchrun on one machine, in a process group of its own."""
    command = [
        *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes", "1:2"),
        *("--nproc-per-node", "1", "--max-restarts", "3", "--local-addr", address),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "lost"),
        # how soon a machine that says nothing is taken for lost, and how long one more is awaited
        *("--rdzv-conf", "keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=10"),
        *("-m", "unfreeze", *WORDS, "--out", str(out)),
    ]
    with log.with_suffix(".out").open("w") as out_file, log.with_suffix(".err").open("w") as err:
        return subprocess.Popen(
            command,
            stdout=out_file,
            stderr=err,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def children(pid):
    """The processes that `pid` started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def reached(out):
    steps = [r["step"] for r in read_metrics(out) if r.get("split") == "train"]
    return max(steps, default=0)


def kill(process):
    for pid in [*children(process.pid), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers by /proc")
def test_a_lost_machine_costs_the_steps_since_the_last_checkpoint(tmp_path):
    out = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stays = agent("127.0.0.1", port, out, tmp_path / "stays")
    time.sleep(1)  # the rendezvous lives with the first
    goes = agent("127.0.0.2", port, out, tmp_path / "goes")
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and reached(out) < 5 * STEPS + 2:
            time.sleep(0.05)
        config = (out / "config.toml").read_text()
        assert "\nprocesses = 2\n" in config, "they did not meet"
        kill(goes)
        lost_at = reached(out)
        assert stays.wait(timeout=90) == 0, (tmp_path / "stays.err").read_text()
    finally:
        for process in (stays, goes):
            if process.poll() is None:
                kill(process)
    said = (tmp_path / "stays.err").read_text()
    answer = json.loads((tmp_path / "stays.out").read_text().strip().splitlines()[-1])
    assert (answer["processes"], answer["steps"]) == (1, EPOCHS * STEPS)
    steps = [r["step"] for r in read_metrics(out) if r.get("split") == "train"]
    assert steps == list(range(1, EPOCHS * STEPS + 1))
    began_again = [int(n) for n in re.findall(r"Resuming from step (\d+) of", said)]
    assert len(began_again) == 1 and began_again[0] % STEPS == 0
    # what was lost is less than a checkpoint's interval (one more may have been under way)
    assert 0 <= lost_at - began_again[0] <= 2 * STEPS and lost_at < EPOCHS * STEPS
    assert "Processes: 2 before, 1 now" in said
