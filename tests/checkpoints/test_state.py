"""One of two checkpoints is whole, whatever happens: at each system call, and to each byte."""

import errno
import functools
import io
import os
import random
import signal
import zipfile
from pathlib import Path

import pytest
import torch

from unfreeze.checkpoints.state import has_last, load_last, load_state, save_last, save_state
from unfreeze.errors import ResourceError, WeightsError


def state(step, kind="pretrain"):
    return {"kind": kind, "step": step, "model": {"w": torch.full((64, 3), float(step))}}


def reached(folder):
    found, _ = load_last(folder, "pretrain")
    assert torch.equal(found["model"]["w"], state(found["step"])["model"]["w"])
    return found["step"]


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints: last.ckpt of step 2, before.ckpt of step 1."""
    for step in (1, 2):
        save_last(tmp_path / "checkpoints", state(step))
    return tmp_path / "checkpoints"


CALLS = ("link", "replace", "unlink", "fsync", "chmod")  # what changes a disk, besides writing


def killed_at(number, work):
    """Do `work` in another process that dies at its `number`-th system call; False: it did not."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = number

    def dying(call):
        def counted(*args, **options):
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*args, **options)

        return counted

    def half(path, data, written=Path.write_bytes):
        nonlocal left
        if left == 0:
            written(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return written(path, data)

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))
    Path.write_bytes = half
    try:
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_killed_at_any_point_of_a_save_one_is_whole(folder):
    for number in range(50):
        before = reached(folder)
        if not killed_at(number, functools.partial(save_last, folder, state(before + 1))):
            break
        assert reached(folder) in (before, before + 1)
        load_state(folder / "before.ckpt")  # whole too, at each point
    assert 6 <= number < 50  # each of the calls was met
    assert reached(folder) == before + 1


def test_what_a_kill_left_does_not_stay(folder):
    # killed after the two names were given to one file, before the new one came
    (folder / "before.ckpt").unlink()
    os.link(folder / "last.ckpt", folder / "before.ckpt")
    save_last(folder, state(3))
    assert sorted(p.name for p in folder.iterdir()) == ["before.ckpt", "last.ckpt"]
    assert load_state(folder / "before.ckpt")["step"] == 2


@pytest.mark.parametrize("call", ["link", "replace"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_error_at_either_renaming_leaves_one_whole(folder, monkeypatch, call, which):
    done, real = [], getattr(os, call)

    def failing(*args, **options):
        done.append(args)
        if len(done) == which + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **options)

    monkeypatch.setattr(os, call, failing)
    if call == "replace" and which < 2:
        with pytest.raises((OSError, ResourceError)):
            save_last(folder, state(3))
        assert reached(folder) == 2
    else:  # a file system without links takes a copy
        save_last(folder, state(3))
        assert reached(folder) == 3 and load_state(folder / "before.ckpt")["step"] == 2


def cut(data):
    return data[: len(data) // 2]


def flipped(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        inside = max(archive.infolist(), key=lambda entry: entry.file_size)
    changed = bytearray(data)
    changed[inside.header_offset + len(inside.filename) + 200] ^= 1
    return bytes(changed)


def other_program(data):
    stream = io.BytesIO()
    torch.save({"state_dict": {}, "epoch": 3}, stream)
    return stream.getvalue()


def other_verb(data):
    stream = io.BytesIO()
    torch.save({"format": 1, **state(9, "finetune")}, stream)
    return stream.getvalue()


BROKEN = {
    "empty": lambda data: b"",
    "cut": cut,
    "one bit": flipped,
    "text": lambda data: b"not a checkpoint",
    "another program's": other_program,
    "another verb's": other_verb,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_last_is_said_and_the_one_before_is_taken(folder, how):
    last = folder / "last.ckpt"
    last.write_bytes(BROKEN[how](last.read_bytes()))
    found, note = load_last(folder, "pretrain")
    assert found["step"] == 1 and "last.ckpt" in note and "before.ckpt is used" in note
    # and the next save does not put the broken one in the place of the whole one
    before = folder / "before.ckpt"
    whole = before.read_bytes()
    killed_at(0, lambda: save_last(folder, state(2)))
    assert before.read_bytes() == whole
    save_last(folder, state(2))
    assert before.read_bytes() == whole and reached(folder) == 2


def test_a_missing_last_is_the_same(folder):
    (folder / "last.ckpt").unlink()
    assert has_last(folder)
    found, note = load_last(folder, "pretrain")
    assert found["step"] == 1 and "No such file" in note


def test_both_broken_is_an_error_that_names_both_and_a_way_out(folder):
    for name in ("last.ckpt", "before.ckpt"):
        path = folder / name
        path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(WeightsError, match=r"last\.ckpt .*before\.ckpt ") as error:
        load_last(folder, "pretrain")
    assert error.value.exit_code == 4 and "--overwrite" in error.value.next_step


def test_the_furthest_that_can_serve_is_taken(folder):
    save_state(folder / "best.ckpt", state(7))
    assert load_last(folder, "pretrain", ("best.ckpt",))[0]["step"] == 2
    (folder / "last.ckpt").write_bytes(b"")
    found, note = load_last(folder, "pretrain", ("best.ckpt",))
    assert found["step"] == 7 and "best.ckpt is used" in note
    (folder / "last.ckpt").unlink()
    (folder / "before.ckpt").unlink()
    assert has_last(folder, ("best.ckpt",)) and not has_last(folder)


def test_whatever_the_bytes_are_it_is_a_weights_error(tmp_path):
    path, draw = tmp_path / "last.ckpt", random.Random(0)
    save_state(path, state(1))
    whole = path.read_bytes()
    for number in range(200):
        data = bytearray(whole)
        for _ in range(3):
            data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        if number % 2:
            data = draw.randbytes(draw.randrange(300))
        path.write_bytes(data)
        try:
            found = load_state(path)
        except WeightsError:
            continue
        # what a checksum does not cover says nothing about the state
        assert torch.equal(found["model"]["w"], state(1)["model"]["w"]) and found["step"] == 1
