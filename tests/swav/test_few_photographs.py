"""A few hundred photographs: the derived values learn, and the published ones collapse."""

import math
import tomllib
import zipfile
from pathlib import Path

import pytest

import unfreeze
from unfreeze.errors import DivergedError

# made for 1.28 million images (arXiv 2006.09882, appendix A), four small crops of six
PUBLISHED = {
    "augment": "photo",
    "nmb_crops": (2, 4),
    "min_scale_crops": (0.14, 0.05),
    "max_scale_crops": (1.0, 0.14),
    "epsilon": 0.05,
}


@pytest.fixture
def photographs(shared, tmp_path):
    """The first 40 photographs of each of 6 classes, without labels."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    with zipfile.ZipFile(shared / "data/trashnet-subset.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        for label in sorted({Path(name).parent for name in names}):
            for name in [name for name in names if Path(name).parent == label][:40]:
                (folder / Path(name).name).write_bytes(archive.read(name))
    return folder


def pretrained(photographs, out, **settings):
    common = {"image_size": 72, "epochs": 8, "watch_every": 0, "tune": "off", "device": "cpu"}
    return unfreeze.pretrain(str(photographs), out=str(out), **common | settings)


@pytest.mark.slow
def test_few_photographs_are_learned_by_the_derived_values(photographs, tmp_path):
    result = pretrained(photographs, tmp_path / "run")
    losses = [row["loss"] for row in result.rows() if "loss" in row]
    prototypes = tomllib.loads((tmp_path / "run/config.toml").read_text())["nmb_prototypes"]
    assert sum(losses[-3:]) / 3 < 0.97 * math.log(prototypes)


@pytest.mark.slow
def test_few_photographs_collapse_with_the_published_crops(photographs, tmp_path):
    with pytest.raises(DivergedError, match="collapsed"):
        pretrained(photographs, tmp_path / "run", **PUBLISHED)
