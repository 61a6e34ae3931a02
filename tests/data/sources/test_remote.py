"""Addresses: fetched once, whole, and told apart by their version."""

import functools
import http.server
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unfreeze.data.cache.folder import cache_folder
from unfreeze.data.index.index import build_index
from unfreeze.data.sources import remote as module
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.verdicts import ignore_list_path
from unfreeze.errors import DataError, ResourceError, UsageError
from unfreeze.runtime.console import QuietConsole


class Heard(QuietConsole):
    def __init__(self):
        self.lines, self.steps = [], 0

    def say(self, text):
        self.lines.append(text)

    def progress(self, label, total, done=0):
        import contextlib

        def advance(steps, text=""):
            self.steps += steps

        return contextlib.nullcontext(advance)


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def copies():
    return sorted(path for path in (cache_folder() / "fetched").rglob("*") if path.is_file())


def test_an_archive_is_fetched_once_and_said_with_its_size(made, memory):
    members = made.members(["cat/1.png", "dog/2.png"]) | {"big.bin": bytes(range(256)) * 12_000}
    memory.pipe("bucket/p.zip", made.zip(members).read_bytes())
    first, second = Heard(), Heard()
    source = open_source("memory://bucket/p.zip", console=first)
    index = build_index(source)
    assert (index.classes, source.where) == (("cat", "dog"), "memory://bucket/p.zip")
    assert source.read(source.names.index("cat/1.png")) == members["cat/1.png"]
    assert len(first.lines) == 1 and first.lines[0].startswith(
        "Downloading memory://bucket/p.zip ("
    )
    assert "MiB) to" in first.lines[0]
    again = open_source("memory://bucket/p.zip", console=second)
    assert second.lines == [
        f"Using the cached copy of memory://bucket/p.zip in {copies()[0].parent}."
    ]
    assert again.fingerprint() == source.fingerprint()
    assert [path.name for path in copies()] == ["p.zip"]
    assert ignore_list_path(source) is None


def test_another_file_at_the_address_is_fetched_anew(made, memory):
    memory.pipe("p.zip", made.zip(made.members(["1.png"])).read_bytes())
    assert len(open_source("memory://p.zip")) == 1
    memory.pipe("p.zip", made.zip(made.members(["1.png", "2.png"])).read_bytes())
    assert len(open_source("memory://p.zip")) == 2


def test_a_dry_run_fetches_nothing(made, memory):
    memory.pipe("p.zip", made.zip(made.members(["1.png"])).read_bytes())
    with pytest.raises(DataError, match="a dry run downloads nothing"):
        open_source("memory://p.zip", fetch=False)
    assert not copies()
    open_source("memory://p.zip")
    assert len(open_source("memory://p.zip", fetch=False)) == 1


def test_what_is_not_there_and_what_cannot_be_named(memory):
    with pytest.raises(DataError, match=r"no file at memory://absent\.zip") as raised:
        open_source("memory://absent.zip")
    assert raised.value.exit_code == 3
    with pytest.raises(UsageError, match="Protocol not known: foo"):
        open_source("foo://x.zip")
    with pytest.raises(DataError, match="is not an archive"):
        open_source("memory://bucket/photos")
    with pytest.raises(DataError, match="is not an archive"):
        open_source("memory://bucket/list.csv")
    memory.pipe("folder.zip/a.png", b"x")
    with pytest.raises(DataError, match="is a folder"):
        open_source("memory://folder.zip")


def test_a_protocol_that_is_not_installed_names_its_extra(monkeypatch):
    def absent(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(UsageError, match="Install s3fs") as raised:
        open_source("s3://bucket/p.zip")
    assert "unfreeze[s3]" in raised.value.next_step


def test_a_parquet_file_with_images_inside_but_no_list(made, memory, tmp_path):
    pq.write_table(pa.table({"image": [made.encoded()], "label": ["x"]}), tmp_path / "a.parquet")
    memory.pipe("a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert open_source("memory://a.parquet").labels == ["x"]
    made.folder(made.members(["1.png"]), "fetched")
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), tmp_path / "b.parquet")
    memory.pipe("b.parquet", (tmp_path / "b.parquet").read_bytes())
    with pytest.raises(DataError, match="lists files next to it, which are not downloaded"):
        open_source("memory://b.parquet")


def test_shards_by_a_pattern(made, memory):
    for number in range(3):
        members = {f"{number}.png": made.encoded(made.noise(seed=number)), f"{number}.cls": b"z"}
        memory.pipe(f"s/train-{number}.tar", made.tar(members).read_bytes())
    source = open_source("memory://s/train-{0..2}.tar")
    assert source.labels == ["z"] * 3 and source.splits == ["train"] * 3
    assert source.where == "memory://s/train-{0..2}.tar" and len(copies()) == 3
    with pytest.raises(DataError, match=r"no file at memory://s/train-3\.tar"):
        open_source("memory://s/train-{2..3}.tar")


@pytest.mark.parametrize("fault", ["short", "broken", "full"])
def test_nothing_half_done_stays(made, memory, monkeypatch, fault):
    data = made.zip(made.members(["1.png"])).read_bytes()
    memory.pipe("p.zip", data)
    # the file system is made anew for each address: patch what all of them share
    kind = type(memory)

    def get_file(self, path, local, callback=None, **options):
        with open(local, "wb") as file:  # noqa: PTH123
            file.write(data[:-20])
            if fault == "broken":
                raise RuntimeError("connection reset by peer")
            if fault == "full":
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(kind, "get_file", get_file)
    error, said = {
        "short": (DataError, f"ended after {len(data) - 20:,} of {len(data):,} bytes"),
        "broken": (DataError, r"cannot be downloaded \(RuntimeError\): connection reset"),
        "full": (ResourceError, "disk is full"),
    }[fault]
    with pytest.raises(error, match=said):
        open_source("memory://p.zip")
    assert not copies()
    monkeypatch.undo()


def test_what_does_not_fit_is_not_begun(made, memory, monkeypatch):
    memory.pipe("p.zip", made.zip(made.members(["1.png"])).read_bytes())
    monkeypatch.setattr(module, "free_bytes", lambda place: 1000)
    with pytest.raises(ResourceError, match=r"but only 0\.0 MiB can be used") as raised:
        open_source("memory://p.zip")
    assert "UNFREEZE_CACHE" in raised.value.next_step and not copies()


def test_files_of_this_machine_are_read_in_place(made):
    root = made.folder(made.members(["a b/1.png", "c/2.png"]))
    (root / "list.csv").write_text("path,label\na b/1.png,x\n")
    assert open_source(root.as_uri()).names == open_source(str(root)).names
    assert open_source((root / "list.csv").as_uri()).labels == ["x"]
    with pytest.raises(DataError, match="no folder or file"):
        open_source((root / "absent.zip").as_uri())
    assert not copies()


def test_what_follows_the_question_mark_is_not_shown(memory, monkeypatch):
    assert module.url_file_name("https://host/a/p%20q.zip?token=secret") == "p q.zip"
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: (memory, "absent.zip"))
    with pytest.raises(DataError) as raised:
        open_source("https://host/absent.zip?token=secret")
    assert "secret" not in str(raised.value)


@pytest.fixture
def served(made):
    """A folder over HTTP, on this machine."""
    (made.root / "www").mkdir()

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """Nothing."""

    handler = functools.partial(Silent, directory=str(made.root / "www"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_over_http(made, served):
    import subprocess
    import sys

    made.zip(made.members(["cat/1.png", "dog/2.png"]), "www/p.zip")
    words = [sys.executable, "-m", "unfreeze", "scan"]
    done = subprocess.run(
        [*words, f"{served}/p.zip", f"{served}/none.zip"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert f"There is no file at {served}/none.zip." in done.stderr
    done = subprocess.run([*words, f"{served}/p.zip"], capture_output=True, text=True)
    assert done.returncode == 0 and "2 of 2 images can be used" in done.stdout
    # readline, which pytest loads, sets COLUMNS for the processes that it starts
    assert "Using the cached copy" in " ".join(done.stderr.split())
