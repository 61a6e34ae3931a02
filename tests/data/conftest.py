"""`made`: small images, folders and archives of them."""

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class Made:
    def __init__(self, folder: Path) -> None:
        self.root = folder

    def noise(self, height: int = 12, width: int = 16, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)

    def encoded(self, pixels: np.ndarray | None = None, kind: str = "PNG", **options) -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(self.noise() if pixels is None else pixels)
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    def members(self, names: Iterable[str]) -> dict[str, bytes]:
        """Names ending in .png get an image of their own, others text."""
        return {
            name: self.encoded(self.noise(seed=seed)) if name.endswith(".png") else b"text"
            for seed, name in enumerate(names)
        }

    def folder(self, members: dict[str, bytes], name: str = "data") -> Path:
        for member, data in members.items():
            path = self.root / name / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return self.root / name

    def zip(self, members: dict[str, bytes], name: str = "data.zip") -> Path:
        with zipfile.ZipFile(self.root / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        return self.root / name

    def tar(self, members: dict[str, bytes], name: str = "data.tar") -> Path:
        with tarfile.open(self.root / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return self.root / name


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)
