import argparse
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from unfreeze.checkpoints.model_file import ModelCard, save_model
from unfreeze.checkpoints.read import read_checkpoint, unsafe_globals
from unfreeze.errors import WeightsError

STATE = {"conv.weight": torch.randn(4, 3, 3, 3), "fc.weight": torch.randn(2, 4)}


class Runs:
    """Unpickling this would write a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"import pathlib; pathlib.Path({str(self.mark)!r}).touch()",)


def same(tensors):
    assert set(tensors) == set(STATE)
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize(("zipped", "kind"), [(True, "torch zip"), (False, "torch legacy")])
def test_both_formats_of_torch(tmp_path, zipped, kind):
    torch.save(STATE, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    contents = read_checkpoint(tmp_path / "w.pth")
    assert (contents.format, contents.container) == (kind, "")
    same(contents.tensors)


def test_safetensors(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors", metadata={"arch": "x"})
    contents = read_checkpoint(str(tmp_path / "w.safetensors"))
    assert (contents.format, contents.meta) == ("safetensors", {"arch": "x"})
    same(contents.tensors)


def test_a_run_is_read_with_its_card(tmp_path):
    save_model(tmp_path / "model", STATE, ModelCard(kind="backbone", arch="unfreeze/tiny"))
    contents = read_checkpoint(tmp_path)
    assert (contents.format, contents.meta["arch"]) == ("unfreeze model", "unfreeze/tiny")
    same(contents.tensors)


@pytest.mark.parametrize(
    "path",
    [
        ("state_dict",),
        ("model",),
        ("model_state",),
        ("model_state_dict",),
        ("net",),
        ("teacher",),
        ("ema", "weights"),
        ("a", "name", "nobody", "thought", "of"),
    ],
)
def test_pain_6_the_state_dict_is_found_in_any_container(tmp_path, path):
    value = STATE
    for part in reversed(path):
        value = {part: value, "epoch": 7}
    state = {"optimizer": {"state": {0: {"momentum": torch.zeros(3)}}, "names": STATE | {"x": 1}}}
    torch.save(value | state, tmp_path / "w.pth")
    contents = read_checkpoint(tmp_path / "w.pth")
    assert contents.container == ".".join(path)
    assert contents.meta == {"epoch": 7}
    same(contents.tensors)


def test_a_list_is_a_container_too(tmp_path):
    torch.save([{"epoch": 1}, STATE], tmp_path / "w.pth")
    same(read_checkpoint(tmp_path / "w.pth").tensors)


def test_of_two_equal_copies_the_averaged_one_is_read(tmp_path):
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"state_dict": other, "state_dict_ema": STATE}, tmp_path / "w.pth")
    same(read_checkpoint(tmp_path / "w.pth").tensors)


def test_arguments_and_numpy_numbers_are_harmless(tmp_path):
    args = argparse.Namespace(arch="resnet50", lr=0.1, layers=[1, 2])
    best, count = np.float64(0.5), np.int64(3)
    torch.save({"model": STATE, "args": args, "best": best, "n": count}, tmp_path / "w.pth")
    contents = read_checkpoint(tmp_path / "w.pth")
    assert contents.meta == {"args": {"arch": "resnet50", "lr": 0.1}, "best": 0.5, "n": 3}
    same(contents.tensors)


@pytest.mark.parametrize("zipped", [True, False])
def test_trap_ix_code_in_a_file_is_named_and_never_runs(tmp_path, zipped):
    mark = tmp_path / "mark"
    path = tmp_path / "evil.pth"
    torch.save({**STATE, "x": Runs(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"could run code.*exec"):
        read_checkpoint(path)
    assert [name.partition(".")[2] for name in unsafe_globals(path)] == ["exec"]
    assert not mark.exists()
    # the file is real: torch without the safety would have run it
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_trap_ix_a_plain_pickle_is_refused_unread(tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"x": Runs(mark)}))
    with pytest.raises(WeightsError, match=r"a plain pickle .*exec"):
        read_checkpoint(tmp_path / "w.pkl")
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_pain_16_a_pickled_module_is_refused_with_the_way_out(tmp_path, zipped):
    path = tmp_path / "whole.pth"
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear") as refused:
        read_checkpoint(path)
    assert "state_dict()" in refused.value.next_step


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n\n  <html>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 600, "not a checkpoint"),
        (b"just some words in a file", "not a checkpoint"),
        (b"PK\x03\x04", "truncated"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, says):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=says) as refused:
        read_checkpoint(tmp_path / "w.pth")
    assert refused.value.next_step
    assert "w.pth" in refused.value.sentence


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("left", [0.3, 0.95])
def test_a_truncated_file_is_named(tmp_path, kind, left):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left)])
    with pytest.raises(WeightsError, match="truncated"):
        read_checkpoint(path)


def test_other_archives_and_folders_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a.jpg", b"x")
    with pytest.raises(WeightsError, match="zip archive, not a checkpoint"):
        read_checkpoint(tmp_path / "images.zip")
    with pytest.raises(WeightsError, match="folder without a model"):
        read_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="No such file"):
        read_checkpoint(tmp_path / "absent.pth")


def test_the_tar_format_of_the_first_torch_is_named_with_the_way_out(tmp_path):
    # members of torch 0.1; today's loader reads them only with code from the file allowed
    path = tmp_path / "old.pth.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"data"))
    with pytest.raises(WeightsError, match=r"PyTorch 0\.1") as refused:
        read_checkpoint(path)
    assert "newer PyTorch" in refused.value.next_step


def test_what_other_programs_write_is_named(tmp_path):
    for content, says in ((b"\x89HDF\r\n", "HDF5"), (b"\x1f\x8b\x08", "gzip"), (b"GGUF", "GGUF")):
        (tmp_path / "w.bin").write_bytes(content + bytes(40))
        with pytest.raises(WeightsError, match=says):
            read_checkpoint(tmp_path / "w.bin")


def test_a_teacher_that_is_a_little_smaller_is_still_the_averaged_copy(tmp_path):
    student = STATE | {"predictor.weight": torch.randn(2, 4)}
    torch.save({"student": student, "teacher": STATE}, tmp_path / "w.pth")
    contents = read_checkpoint(tmp_path / "w.pth")
    assert contents.container == "teacher" and set(contents.beside) == {"student"}
    # a head of the teacher's alone is no copy
    head = {"fc.weight": STATE["fc.weight"]}
    torch.save({"student": student, "teacher": head}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").container == "student"


def test_settings_beside_the_weights_are_plain_values(tmp_path):
    settings = {"arch": "resnet18", "lr": 0.1, "layers": [1, 2]}
    torch.save({"state_dict": STATE, "hyper_parameters": settings}, tmp_path / "w.pth")
    meta = read_checkpoint(tmp_path / "w.pth").meta
    assert meta == {"hyper_parameters": {"arch": "resnet18", "lr": 0.1}}


def test_a_file_without_tensors_is_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no named tensors"):
        read_checkpoint(tmp_path / "w.pth")
