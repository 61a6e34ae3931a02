"""What all tests share: real data where it is there, and a cache of their own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the repository; the test is skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the real data beside the repository is absent")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def coloured(tmp_path: Path) -> Callable[..., Path]:
    """`coloured("name", {"red": 8, "blue": 8})`: a folder of small noisy pictures of each colour.

    Folders inside may be given as `{"train/red": 8, "test/red": 2}`; `side` is in pixels.
    """

    def make(name: str, counts: dict[str, int], side: int = 12) -> Path:
        draw = np.random.default_rng(len(counts))
        colours = sorted({key.rpartition("/")[2] for key in counts})
        for key, count in counts.items():
            folder = tmp_path / name / key
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = draw.integers(60, 120, (side, side + 2, 3))
                pixels[..., colours.index(key.rpartition("/")[2]) % 3] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03}.png")
        return tmp_path / name

    return make
