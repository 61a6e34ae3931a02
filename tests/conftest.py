"""What all tests share: real data where it is there, and a cache of their own."""

import contextlib
import io
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

remove_folder = shutil.rmtree  # some tests replace it
# under nohup it is ignored, and so it would be in the processes that tests start
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# tiny tensors gain nothing from threads, and threads that wait for a busy core cost minutes
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a busy machine is slow, not wrong: the default of 200 ms an example fails there
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


# files with a test of minutes: they start first, so that no worker is left with one at the end
LONG = (
    "test_learns.py",
    "test_timm_families.py",
    "test_two_decoders_are_one.py",
    "test_benchmarks.py",
    "test_losses.py",
    "test_killed_resumes_exactly.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the rest in its order."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the repository; the test is skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the real data beside the repository is absent")
    return folder


@pytest.fixture(autouse=True)
def _plain_world(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("UNFREEZE_CACHE", str(cache))
    yield
    remove_folder(cache, ignore_errors=True)  # thousands of them would fill a small disk


@pytest.fixture(autouse=True)
def _quick_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take half the time of a short run: a blank image stands for them, but in reports/."""
    if "reports" in request.path.parts or request.node.get_closest_marker("real_charts"):
        return
    from unfreeze.reports import curves, page

    blank = io.BytesIO()
    ours = PngInfo()
    ours.add_text("Software", curves.GENERATOR)
    Image.new("RGB", (8, 8)).save(blank, "PNG", pnginfo=ours)
    for module in (curves, page):
        monkeypatch.setattr(module, "draw", lambda *_, **__: blank.getvalue())


@pytest.fixture(scope="session", autouse=True)
def _cache_of_longer_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFREEZE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _autograd_begun() -> None:
    """A first backward pass over shapes alone starts threads that forked tests cannot have."""
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def colours() -> Callable[..., Path]:
    """`colours(folder, {"red": 8, "blue": 8})`: small noisy images of each colour in `folder`.

    Folders inside may be given as `{"train/red": 8, "test/red": 2}`; `side` is in pixels.
    """

    def make(folder: Path, counts: dict[str, int], side: int = 12) -> Path:
        draw = np.random.default_rng(len(counts))
        channels = {"red": 0, "green": 1, "blue": 2}
        for key, count in counts.items():
            (folder / key).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = draw.integers(60, 120, (side, side + 2, 3))
                pixels[..., channels.get(key.rpartition("/")[2], 0)] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / key / f"{number:03}.png")
        return folder

    return make


@pytest.fixture
def coloured(tmp_path: Path, colours: Callable[..., Path]) -> Callable[..., Path]:
    """`coloured("name", counts)`: as `colours`, in a new folder of that name."""
    return lambda name, counts, side=12: colours(tmp_path / name, counts, side)


def _as_launched(rank, world, port):
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # what torchrun sets, so that Lightning Fabric knows it
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }


def _started(world, target, arguments):
    import torch.multiprocessing as mp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("fork")
    started = [
        context.Process(target=target, args=(rank, world, port, *arguments))
        for rank in range(world)
    ]
    for process in started:
        process.start()
    return started


def _share(rank, world, port, function, arguments, results):
    _as_launched(rank, world, port)
    try:
        results.put((rank, True, function(rank, *arguments)))
    except BaseException as error:  # the test sees it
        results.put((rank, False, error))


@pytest.fixture
def processes():
    """`processes(world, function, *arguments)`: function(rank, *arguments) in each; by rank.

    They find each other as if torchrun had started them. An error in one is raised here.
    """
    import torch.multiprocessing as mp

    def run(world, function, *arguments):
        results = mp.get_context("fork").Queue()
        started = _started(world, _share, (function, arguments, results))
        told = sorted((results.get(timeout=120) for _ in started), key=lambda r: r[0])
        for process in started:
            process.join(60)
        for _, whole, value in told:
            if not whole:
                raise value
        return [value for *_, value in told]

    return run


def _alone(rank, world, port, function, arguments):
    if world > 1:
        _as_launched(rank, world, port)
    function(rank, *arguments)


@pytest.fixture
def launched():
    """`launched(world, function, *arguments)`: as `processes`, but started and not waited for."""
    everyone = []

    def run(world, function, *arguments):
        everyone.extend(started := _started(world, _alone, (function, arguments)))
        return started

    yield run
    for process in everyone:
        process.kill()
        process.join()


@pytest.fixture
def no_drawing(monkeypatch):
    """No report at a run's end: matplotlib takes longer than a tiny training."""
    monkeypatch.setattr(
        "unfreeze.commands.finetune.write_report_or_warn", lambda run, console: None
    )


@pytest.fixture
def stopped_after(monkeypatch):
    """`with stopped_after(9) as steps`: SIGTERM comes with the ninth step; `steps` goes on."""
    from unfreeze.transfer.training_run import FinetuneTrainer

    @contextlib.contextmanager
    def within(count):
        take, steps = FinetuneTrainer.train_step, []

        def stopping(self, batch):
            steps.append(self.step)
            taken = take(self, batch)
            if len(steps) == count:
                signal.raise_signal(signal.SIGTERM)
            return taken

        with monkeypatch.context() as patch:
            patch.setattr(FinetuneTrainer, "train_step", stopping)
            yield steps

    return within
