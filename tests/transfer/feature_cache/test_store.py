import pytest
import torch

from unfreeze.data.cache import chunk_store
from unfreeze.errors import ResourceError
from unfreeze.runtime.console import QuietConsole
from unfreeze.transfer.feature_cache import store as kept_module
from unfreeze.transfer.feature_cache.store import (
    CacheKey,
    cache_features,
    check_disk_space,
    open_chunks,
)


class Heard(QuietConsole):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunk_store, "CHUNK_BYTES", 200)


def wanted(key="a" * 40, rows=23, dtype=torch.float32, shape=(2, 3)):
    return CacheKey(key, rows, shape, dtype, 4, "test")  # 24 bytes a row, chunks of 8


def rows_of(want):
    draw = torch.Generator().manual_seed(len(want.key) + want.rows)
    return torch.randn(want.rows, *want.shape, generator=draw).to(want.dtype)


class Maker:
    """Gives batches and notes from where on it was asked."""

    def __init__(self, want, change=0.0):
        self.rows, self.asked = rows_of(want) + change, []

    def __call__(self, start):
        self.asked.append(start)
        for at in range(start, len(self.rows), 4):
            yield self.rows[at : at + 4]


def kept(want, make, console=None, stop=lambda: False):
    return cache_features(want, make, console or Heard(), stop)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_kept_comes_back_by_row_to_the_last_bit(dtype):
    want = wanted(dtype=dtype)
    make = Maker(want)
    store = kept(want, make)
    assert len(store) == 23 and make.asked == [0] and store.nbytes == 23 * want.row_bytes
    rows = torch.tensor([22, 0, 7, 8, 8, 15, 16])
    assert torch.equal(store.take(rows), make.rows[rows])
    assert torch.equal(store.held(torch.device("cpu")).take(rows), make.rows[rows])
    again = Maker(want, change=1.0)
    assert torch.equal(kept(want, again).take(rows), make.rows[rows]) and again.asked == []


def test_taken_rows_have_memory_of_their_own():
    want = wanted(rows=5)
    store = kept(want, Maker(want))
    store.take(torch.arange(5)).zero_()
    assert torch.equal(store.take(torch.arange(5)), rows_of(want))


def test_a_pass_that_was_stopped_goes_on_after_its_last_chunk():
    want = wanted()
    make, calls = Maker(want), iter([False] * 3 + [True])
    assert kept(want, make, stop=lambda: next(calls)) is None
    assert len(open_chunks(want, QuietConsole())[0]) == 1
    assert torch.equal(kept(want, make).take(torch.arange(23)), make.rows)
    assert make.asked == [0, 8]


def test_a_damaged_chunk_is_named_and_alone_computed_again():
    want = wanted()
    make, console = Maker(want), Heard()
    kept(want, make)
    path = want.store.path(1)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    store = kept(want, make, console)
    assert torch.equal(store.take(torch.arange(23)), make.rows) and make.asked == [0, 8]
    assert console.said == [
        "warning: Cached features are damaged and are computed again: "
        f"{path}: the checksum does not match"
    ]


def test_a_full_disk_is_said_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(kept_module, "free_bytes", lambda: 10 * 2**30)
    check_disk_space(9 * 2**30)
    with pytest.raises(ResourceError, match=r"needs 9\.9 GiB .* 10\.0 GiB are free") as caught:
        check_disk_space(int(9.9 * 2**30))
    assert "--cache off" in caught.value.next_step
    monkeypatch.setattr(kept_module, "free_bytes", lambda: 0)
    want = wanted()
    with pytest.raises(ResourceError):
        kept(want, Maker(want))
    assert not want.store.folder.exists()
