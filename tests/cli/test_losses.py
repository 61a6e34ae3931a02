"""What is lost under a running command: a file, or the room on a disk. With one process and two."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from unfreeze.checkpoints.state import load_last
from unfreeze.runtime.run_folder import read_metrics

TINY = [
    *("--batch-size", "16", "--nmb-prototypes", "12", "--arch", "unfreeze/tiny", "--device", "cpu"),
    *("--queue-length", "32", "--epoch-queue-starts", "0", "--watch-every", "0", "--workers", "0"),
    *("--hidden-mlp", "32", "--on-collapse", "ignore"),
]
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("count", [1, 2])]


def start(words, count):
    """The command under way: called directly, or by torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, "-W", "ignore", *(launcher if count > 1 else []), "-m", "unfreeze"]
    return subprocess.Popen(
        [*command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(running, code, count):
    """What it said, once it ended with `code`; torchrun has one of its own."""
    _, said = running.communicate(timeout=120)
    assert running.returncode == (code if count == 1 or code == 0 else 1), said
    ours = said.split("ChildFailedError")[0]  # the rest is torchrun's report
    assert "/unfreeze/" not in ours and ours.count("error: ") == bool(code), said
    return ours


def reach(out, step, running):
    """Wait until the run made `step`."""
    until = time.monotonic() + 90
    while time.monotonic() < until and running.poll() is None:
        done = [r["step"] for r in read_metrics(out)] if (out / "metrics.jsonl").exists() else []
        if max(done, default=0) >= step:
            return
        time.sleep(0.02)
    running.kill()
    raise AssertionError(running.communicate())


def test_a_file_that_goes_missing_ends_the_run_and_its_return_goes_on(tmp_path, count):
    for n in range(64):
        noise = np.random.default_rng(n).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / f"data/{n}.png")
    out, lost = tmp_path / "run", tmp_path / "data/17.png"
    words = ["pretrain", tmp_path / "data", "--out", out, *TINY, "--epochs", "40"]
    words += ["--store-budget", "0", "--resume", "auto"]
    running = start(words, count)
    reach(out, 6, running)
    lost.rename(tmp_path / "17.png")
    said = ended(running, 3, count)
    assert "17.png" in said
    kept = load_last(out / "checkpoints")[0]["step"]
    steps = [r["step"] for r in read_metrics(out)]
    # nothing that was made is lost (after 100 steps not each one has a line)
    assert 6 <= kept < 160 and max(steps) <= kept
    assert kept > 100 or max(steps) == kept
    (tmp_path / "17.png").rename(lost)
    assert f"Resuming from step {kept} of 160" in ended(start(words, count), 0, count)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 40 MB that is really there."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a disk here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_with_the_last_checkpoint_whole(small_disk, count):
    out = small_disk / "run"
    words = ["pretrain", "digits", "--limit", "64", "--out", out, *TINY, "--epochs", "40"]
    words += ["--resume", "auto", "--checkpoint-every", "1"]
    running = start(words, count)
    reach(out, 6, running)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    said = ended(running, 6, count)
    assert "disk is full" in said.lower()
    kept = load_last(out / "checkpoints")[0]["step"]
    assert kept >= 4 and kept % 4 == 0
    ballast.unlink()
    assert f"Resuming from step {kept} of 160" in ended(start(words, count), 0, count)
