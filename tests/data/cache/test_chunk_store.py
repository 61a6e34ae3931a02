"""The chunk store: safetensors files that are whole or absent, mapped, verified and evicted."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from unfreeze.data.cache import chunk_store
from unfreeze.data.cache.chunk_store import (
    ChunkStore,
    TensorSpec,
    cache_key,
    evict,
    existing_chunk_count,
)
from unfreeze.data.cache.folder import FEATURE_CACHE, PIXEL_CACHE

DENSE = (TensorSpec("values", "F32", (2, 3)),)
RAGGED = (TensorSpec("bytes", "U8", flat=True), TensorSpec("sizes", "I64"))
VALUES = np.random.default_rng(0).normal(size=(23, 2, 3)).astype(np.float32)


def dense(key="a" * 40, rows=23):
    return ChunkStore(FEATURE_CACHE, key, rows, 8, DENSE)


def write(store, number):
    part = store.part(number)
    with store.write(number) as append:
        append("values", VALUES[part.start : part.stop])


@pytest.fixture
def store():
    """A complete store of three chunks; the last has 7 rows."""
    store = dense()
    for number in range(store.chunks):
        write(store, number)
    return store


def read(store, number):
    return store.read(number)["values"].numpy()


def test_rows_come_back_and_every_file_is_plain_safetensors(store):
    assert store.chunks == 3 and [len(store.part(number)) for number in range(3)] == [8, 8, 7]
    assert np.array_equal(np.concatenate([read(store, number) for number in range(3)]), VALUES)
    for number, path in enumerate(sorted(store.folder.iterdir())):
        assert path == store.path(number)
        assert torch.equal(load_file(path)["values"], store.read(number)["values"])
    assert existing_chunk_count(store.folder) == 3
    assert existing_chunk_count(dense("b" * 40).folder) is None


def test_rows_of_any_size_are_one_flat_tensor_in_several_writes():
    store = ChunkStore(PIXEL_CACHE, "a" * 40, 3, 3, RAGGED)
    rows = [np.arange(n, dtype=np.uint8) for n in (5, 0, 11)]
    with store.write(0) as append:
        for row in rows:
            append("bytes", row)
        append("sizes", np.array([len(row) for row in rows]))
    tensors = store.read(0)
    assert list(tensors) == ["bytes", "sizes"]
    assert tensors["bytes"].tolist() == np.concatenate(rows).tolist()
    assert tensors["sizes"].tolist() == [5, 0, 11]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float64, "F64")],
)
def test_types_that_numpy_lacks_are_written_as_bytes(dtype, name):
    store = ChunkStore(FEATURE_CACHE, "a" * 40, 4, 4, (TensorSpec("values", name, (3,)),))
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    with store.write(0) as append:
        append("values", values.view(torch.uint8).numpy())
    assert store.read(0)["values"].dtype == dtype
    assert torch.equal(store.read(0)["values"], values)


def test_an_interrupted_write_leaves_nothing_and_the_others_stay(store):
    before = {path: path.read_bytes() for path in store.folder.iterdir()}

    def interrupted():
        with store.write(1) as append:
            append("values", VALUES[:4])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path: path.read_bytes() for path in store.folder.iterdir()} == before
    store.path(1).unlink()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.existing() == [0, 2]
    write(store, 1)
    assert {path: path.read_bytes() for path in store.folder.iterdir()} == before


def test_what_is_missing_is_counted():
    store = dense()
    total = VALUES.nbytes
    assert (store.existing(), store.missing_bytes(total)) == ([], total)
    write(store, 1)
    assert store.existing() == [1]
    assert store.missing_bytes(10**6) == 10**6 - store.path(1).stat().st_size
    assert store.missing_bytes(100) == 0
    write(store, 0)
    write(store, 2)
    assert store.missing_bytes(10**6) == 0


def flip_content(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def flip_header(path):
    path.write_bytes(path.read_bytes().replace(b'"shape": [8', b'"shape": [9'))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def copy_first(path):
    path.write_bytes(path.with_name("00000-of-00003.safetensors").read_bytes())


def other_dtype(path):
    metadata = {"key": "a" * 40, "number": "1"}
    save_file({"values": load_file(path)["values"].half()}, path, metadata=metadata)


def other_rows(path):
    metadata = {"key": "a" * 40, "number": "1"}
    save_file({"values": load_file(path)["values"][:7]}, path, metadata=metadata)


def other_name(path):
    save_file({"x": torch.ones(1)}, path, metadata={"key": "a" * 40, "number": "1"})


def without_checksum(path):
    metadata = {"key": "a" * 40, "number": "1"}
    save_file({"values": load_file(path)["values"] + 1}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_content, "the checksum does not match"),
        (flip_header, "header"),
        (truncate, "header"),
        (copy_first, "the key is another one"),
        (other_dtype, r"unexpected F16 \(8, 2, 3\)"),
        (other_rows, r"unexpected F32 \(7, 2, 3\)"),
        (other_name, "values"),
        (without_checksum, "the checksum does not match"),
        (lambda path: save_file({"values": torch.ones(8, 2, 3)}, path), "the key is another one"),
        (lambda path: path.write_bytes(b""), "header"),
        (lambda path: path.write_bytes(b"\xff" * 5000), "header"),
    ],
)
def test_a_damaged_or_foreign_chunk_is_refused_and_named(store, damage, message):
    damage(store.path(1))
    with pytest.raises(ValueError, match=message):
        store.read(1)
    counted = []
    chunks, damaged = store.intact(lambda number: read(store, number).sum(), counted.append)
    assert list(chunks) == [0, 2] and counted == [1, 1, 1]
    assert len(damaged) == 1 and damaged[0].startswith(f"{store.path(1)}: ")
    store.path(1).unlink()
    with pytest.raises(FileNotFoundError):
        store.read(1)
    assert store.intact(lambda number: read(store, number).sum()) == (chunks, [])


def test_the_contents_of_flat_tensors_are_not_read():
    store = ChunkStore(PIXEL_CACHE, "a" * 40, 1, 1, RAGGED)
    with store.write(0) as append:
        append("bytes", np.zeros(8, np.uint8))
        append("sizes", np.array([8]))
    data = bytearray(store.path(0).read_bytes())
    data[-16] = 7  # the first of the bytes
    store.path(0).write_bytes(data)
    assert store.read(0)["bytes"].tolist() == [7] + [0] * 7
    data[-8] = 7  # in the sizes
    store.path(0).write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        store.read(0)


def test_changes_of_a_mapped_tensor_stay_in_this_process(store):
    before = store.path(0).read_bytes()
    values = read(store, 0)
    values[:] = 0
    assert store.path(0).read_bytes() == before
    assert np.array_equal(read(store, 0), VALUES[:8])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists its maps")
def test_tensors_are_maps_of_the_file_that_hold_no_file_handle(store):
    handles = len(list(Path("/proc/self/fd").iterdir()))
    tensors = [read(store, number) for number in range(3)]
    mapped = Path("/proc/self/maps").read_text()
    assert [str(store.path(number)) in mapped for number in range(3)] == [True] * 3
    assert len(list(Path("/proc/self/fd").iterdir())) == handles
    lines = [line for line in mapped.splitlines() if str(store.folder) in line]
    starts = [int(line.split("-")[0], 16) for line in lines]
    assert sorted(tensor.ctypes.data - 4096 for tensor in tensors) == sorted(starts)


def test_a_file_that_torch_cannot_map_is_an_error_of_the_system(store, monkeypatch):
    def no_memory(*_, **__):
        raise RuntimeError("unable to mmap 4288 bytes: Cannot allocate memory (12)")

    monkeypatch.setattr("torch.UntypedStorage.from_file", no_memory)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        store.read(0)


def test_worker_processes_write_without_torch():
    code = (
        "import sys; import numpy as np; import unfreeze.data.cache.builder\n"
        "from unfreeze.data.cache.chunk_store import ChunkStore, TensorSpec\n"
        "from unfreeze.data.cache.folder import FEATURE_CACHE\n"
        "spec = TensorSpec('values', 'F32')\n"
        "with ChunkStore(FEATURE_CACHE, 'a' * 40, 3, 3, (spec,)).write(0) as append:\n"
        "    append('values', np.ones(3, np.float32))\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    store = ChunkStore(FEATURE_CACHE, "a" * 40, 3, 3, (TensorSpec("values", "F32"),))
    assert read(store, 0).tolist() == [1, 1, 1]


def test_another_format_is_another_entry(monkeypatch):
    key = cache_key(b"content")
    assert len(key) == 40 and key == cache_key(b"content") != cache_key(b"other")
    monkeypatch.setattr(chunk_store, "FORMAT", chunk_store.FORMAT + 1)
    assert cache_key(b"content") != key


def aged(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def test_temporary_files_of_killed_processes_are_removed(store):
    for name, age in ((".a.tmp", 7200), (".b.tmp", 60), ("c.tmp", 7200)):
        (store.folder / name).write_text("")
        aged(store.folder / name, age)
    store.remove_abandoned()
    names = {path.name for path in store.folder.iterdir() if path.suffix == ".tmp"}
    assert names == {".b.tmp", "c.tmp"}


def test_the_least_recently_used_is_evicted():
    stores = [dense(letter * 40) for letter in "abcd"]
    for number, store in enumerate(stores):
        for chunk in range(3):
            write(store, chunk)
        store.mark_used()
        for file in store.folder.iterdir():
            aged(file, 9000 - 1000 * number)
    size = sum(file.stat().st_size for file in stores[0].folder.iterdir())
    assert evict(FEATURE_CACHE, 4 * size, 0) == []
    assert evict(FEATURE_CACHE, 4 * size, size) == ["a" * 40]
    assert evict(FEATURE_CACHE, 2 * size, 0, spared=["b" * 40]) == ["c" * 40]
    (stores[1].folder / "mine.txt").write_text("not ours")
    aged(stores[1].folder / "mine.txt", 8000)
    stores[3].mark_used()
    assert evict(FEATURE_CACHE, 0, 0) == []  # files of others, and in use within the hour
    (stores[1].folder / "mine.txt").unlink()
    assert evict(PIXEL_CACHE, 0, 1) == []
    assert evict(FEATURE_CACHE, 0, 0) == ["b" * 40]
    assert [path.name for path in FEATURE_CACHE.folder.iterdir()] == ["d" * 40]
