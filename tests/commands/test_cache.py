"""`cache` says where caches lie and how large they are, and removes what is ours alone."""

import json
import os
import shutil
from pathlib import Path

import pytest

import unfreeze
from unfreeze.cli.main import main
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.pretrain import PretrainSettings

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def filled():
    """A cache with something of each kind, and files of others beside it."""
    around = Path(os.environ["UNFREEZE_CACHE"])
    ours = {
        f"features/{KEY}/00000-of-00001.safetensors": 3 * 2**20,
        f"features/{KEY}/used": 0,
        f"pixels/{KEY}/00000-of-00002.safetensors": 2**20,
        f"fetched/{KEY[:24]}/photos.zip": 2**19,
        f"checks/{KEY}.npz": 500,
        f"checks/{KEY}.scan.npz": 524,
        f"tuning/{KEY}.json": 700,
    }
    others = ["thesis.txt", "features/thesis.txt", f"features/{KEY[::-1]}/thesis.txt"]
    for name, size in {**ours, **dict.fromkeys(others, 7)}.items():
        path = around / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return around, ours, others


def test_it_says_where_and_how_large(filled):
    around, ours, others = filled
    found = unfreeze.cache()
    assert (found.folder, found.bytes, found.cleared) == (str(around), sum(ours.values()), 0)
    sizes = {entry.name: entry.bytes for entry in found.entries}
    assert sizes == {"features": 3 * 2**20, "pixels": 2**20, "fetched": 2**19, "checks": 1024} | {
        "tuning": 700
    }
    assert "--cache-budget" in found.entries[0].bound
    assert sorted(found.foreign) == sorted(
        str(around / o) for o in (others[1], f"features/{KEY[::-1]}")
    )
    assert "4.5 MiB are cached in" in str(found) and "unfreeze cache --clear" in str(found)


def test_clearing_removes_what_is_ours_and_nothing_else(filled):
    around, ours, others = filled
    found = unfreeze.cache(clear=True)
    assert (found.bytes, found.cleared) == (0, sum(ours.values()))
    assert not any((around / name).exists() for name in ours)
    assert all((around / name).read_bytes() == b"x" * 7 for name in others)
    assert f"Not removed, because unfreeze did not write it: {around / others[1]}" in str(found)


def test_what_cannot_be_removed_is_named_and_still_counted(filled, monkeypatch):
    _, ours, _ = filled

    def busy(path):
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", busy)
    found = unfreeze.cache(clear=True)
    files = sum(size for name, size in ours.items() if name.startswith(("checks", "tuning")))
    assert (found.cleared, found.bytes) == (files, sum(ours.values()) - files)
    assert len(found.stuck) == 3 and "Directory not empty" in found.stuck[0]
    assert "warning: Not removed: " in str(found)


def test_many_files_of_others_are_counted(filled):
    around, _, _ = filled
    for number in range(30):
        (around / "checks" / f"note-{number}.txt").write_text("mine")
    found = unfreeze.cache()
    assert len(found.foreign) == 32
    assert "27 more were not removed for the same reason." in str(found)


def test_the_limits_are_those_of_the_settings():
    features, pixels = unfreeze.cache().entries[:2]
    assert features.bound.startswith(f"{FinetuneSettings.cache_budget:g} GiB ")
    assert pixels.bound.startswith(f"{PretrainSettings.store_budget:g} GiB ")


def test_links_are_not_followed(tmp_path):
    around = Path(os.environ["UNFREEZE_CACHE"])
    mine = tmp_path / KEY
    mine.mkdir()
    (mine / "00000-of-00001.safetensors").write_text("mine")
    (around / "features").mkdir(parents=True)
    (around / "features" / KEY).symlink_to(mine)
    (around / "pixels").symlink_to(tmp_path)
    assert unfreeze.cache(clear=True).cleared == 0
    assert (mine / "00000-of-00001.safetensors").read_text() == "mine"


def test_the_command_line_and_an_empty_cache(filled, capsys):
    assert main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"][0]["name"] == "features"
    assert main(["cache", "--clear"]) == 0
    assert "4.5 MiB were removed. 0 KiB are cached in" in capsys.readouterr().out
    assert main(["cache"]) == 0
    assert "Next" not in capsys.readouterr().out
    assert unfreeze.cache().to_pandas().bytes.tolist() == [0, 0, 0, 0, 0]


def test_what_runs_leave_is_known_again(coloured, tmp_path, no_drawing):
    data = coloured("colours", {"red": 8, "blue": 8})
    how = {"arch": "unfreeze/tiny", "weights": "none", "freeze": "stage:1", "augment": "none"}
    how["cache"] = "activations"
    unfreeze.finetune(str(data), out=str(tmp_path / "run"), epochs=2, store="disk", **how)
    found = unfreeze.cache()
    sizes = {entry.name: entry.bytes for entry in found.entries}
    assert sizes["features"] and sizes["pixels"] and sizes["checks"] and not found.foreign
    unfreeze.cache(clear=True)
    assert [path for path in Path(found.folder).rglob("*") if path.is_file()] == []
