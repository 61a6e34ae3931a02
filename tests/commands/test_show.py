"""`show`: the page says what the data holds, and a browser draws it."""

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import unfreeze
from unfreeze.cli.main import main
from unfreeze.commands.show import view_maker
from unfreeze.config.commands import ShowSettings
from unfreeze.config.layering import build
from unfreeze.data.augment.multicrop import make_crops
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.runtime.terminal import Environment

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
COUNTS = {"train/red": 9, "train/blue": 3, "val/red": 2, "test/red": 2, "test/green": 1}


class Images(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.found.append(dict(attributes))


def command(*words):
    world = Environment(io.StringIO(), io.StringIO())
    return main(words, world), world.stdout.getvalue(), world.stderr.getvalue()


@pytest.fixture
def photos(coloured):
    folder = coloured("photos", COUNTS, side=80)
    (folder / "train/red/broken <b>.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_the_page_and_the_json_say_what_is_there(photos, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = command("show", str(photos), "--out", str(page), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["counts"] == {
        "blue": {"train": 3, "val": 0, "test": 0},
        "green": {"train": 0, "val": 0, "test": 1},
        "red": {"train": 10, "val": 2, "test": 2},
    }
    assert (found["images"], found["other"], found["checked"]) == (18, 1, 18)
    assert found["imbalance"] == pytest.approx(10 / 3)
    assert found["unknown"] == {"test": ["green"]}
    assert found["missing"] == {"val": ["blue"], "test": ["blue"]}
    assert found["sizes"]["median"] == 80
    assert [(p["path"], p["left_out"]) for p in found["problems"]] == [
        ("train/red/broken <b>.jpg", True)
    ]
    assert any("Classes with fewer than 5 training images: blue" in note for note in found["notes"])
    text = page.read_text()
    assert "broken &lt;b&gt;.jpg" in text
    assert "broken <b>" not in text
    for said in (*found["notes"], "Classes of test missing in train: green."):
        assert said in text
    images = Images(text).found
    assert all(image["src"].startswith("data:image/") for image in images)
    # samples of red and blue (train), and four images in their views
    assert len([i for i in images if not i["alt"]]) == 6 + 3
    assert not re.search(r"(src|href)=.?https?:", text)


def test_what_people_read_and_where_the_page_goes(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "photos" / "train")
    code, out, _ = command("show", "../../photos")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("18 images of ") and lines[0].endswith("1 cannot be read.")
    assert ["class", "train", "val", "test"] in [line.split() for line in lines]
    assert "page  photos.html" in lines
    assert lines[-1] == "  unfreeze finetune ../../photos --dry-run"
    assert (tmp_path / "photos/train/photos.html").exists()
    code, _, err = command("show", str(photos), "--out", str(tmp_path))
    assert code == 2, err
    assert command("show", str(tmp_path / "nothing"))[0] == 3


def test_unlabelled_images_and_a_sample(coloured, tmp_path, monkeypatch):
    monkeypatch.setattr("unfreeze.data.validate.precheck.SAMPLE", 6)
    folder = coloured("flat", {"": 10}, side=20)
    found = unfreeze.show(folder, out=str(tmp_path / "a.html"))
    assert (found.classes, found.counts, found.imbalance) == ([], {}, None)
    assert (found.checked, found.unlabelled) == (6, {"all": 10})
    text = (tmp_path / "a.html").read_text()
    assert "6 of 10 images were decoded" in text
    full = unfreeze.show(folder, out=str(tmp_path / "a.html"), scan="full")
    assert full.checked == 10
    # what is known is shown, whatever is asked for
    assert unfreeze.show(folder, out=str(tmp_path / "a.html")).checked == 10
    none = unfreeze.show(folder, out=str(tmp_path / "a.html"), scan="off")
    assert none.images == 10


def test_views_are_those_of_training_denormalised():
    images = [np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)]
    look = view_maker(build(ShowSettings, {"data": "x", "seed": 3}), 70, 1)
    (row,) = look.rows(images, np.array([5]))
    words, shown = zip(*row, strict=True)
    assert words[0] == "input, 72 px"
    expected = make_crops(images, np.array([5]), 0, 3, look.cut.specs)
    assert len(shown) == 1 + len(expected)
    for seen, view in zip(shown[1:], expected, strict=True):
        assert np.array_equal(seen, view[0].numpy())
    assert np.array_equal(shown[0], look.preprocess.pixels(images[0]))


def test_a_run_shows_its_own_views_and_input(photos, tmp_path):
    run = tmp_path / "run"
    given = {"arch": "unfreeze/tiny", "image_size": 32, "epochs": 1, "device": "cpu"}
    unfreeze.finetune(str(photos / "train"), out=str(run), weights="none", **given, mean=[0.1] * 3)
    look = view_maker(build(ShowSettings, {"data": "x", "run": str(run)}), 70, 1)
    assert isinstance(look.preprocess, Preprocess)
    assert look.mean == (0.1, 0.1, 0.1)
    image = np.full((40, 40, 3), 200, np.uint8)
    (row,) = look.rows([image], np.array([0]))
    assert [word for word, _ in row] == ["input, 32 px", *(f"epoch {n}, 32 px" for n in (1, 2, 3))]
    assert (row[0][1] == 200).all()
    found = unfreeze.show(photos, out=str(tmp_path / "p.html"), run=str(run))
    assert f"First the network input of {run}" in (tmp_path / "p.html").read_text()
    assert found.images == 18
    unfreeze.pretrain(str(photos), out=str(tmp_path / "swav"), batch_size=4, **given)
    look = view_maker(build(ShowSettings, {"data": "x", "run": str(tmp_path / "swav")}), 70, 1)
    assert {spec.size for spec in look.cut.specs} == {32}
    shutil.copytree(run / "model", tmp_path / "alone")
    look = view_maker(build(ShowSettings, {"data": "x", "run": str(tmp_path / "alone")}), 70, 1)
    assert (look.cut, look.rows([image], np.array([0]))[0][0][0]) == (None, "input, 32 px")
    assert torch.get_num_threads() >= 1


def screenshot(page, folder, *, dark=False):
    """RGB [H, W, 3] of the page as a browser draws it."""
    target = folder / f"shot-{dark}.png"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", "--window-size=1000,2400",
         f"--screenshot={target}", page.as_uri()],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    return np.asarray(Image.open(target).convert("RGB"))


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_a_browser_draws_it(photos, tmp_path):
    page = tmp_path / "page.html"
    unfreeze.show(photos, out=str(page))
    seen = screenshot(page, tmp_path).astype(int)
    paper = (seen == 255).all(axis=2)
    assert 0.3 < paper.mean() < 0.98
    red, green, blue = seen[..., 0], seen[..., 1], seen[..., 2]
    # 6 red and 3 blue samples of some 80 x 82 pixels, and the views
    assert ((red > 140) & (green < 130) & (blue < 130)).sum() > 6 * 80 * 82 / 2
    assert ((blue > 140) & (green < 130) & (red < 130)).sum() > 3 * 80 * 82 / 2
    # the bars of the classes, in the accent colour of the style
    assert (np.abs(seen - (0x25, 0x63, 0xA8)).sum(axis=2) < 12).sum() > 300
    # text down to the last section: dark rows in each part of the page
    dark = (seen.sum(axis=2) < 250).any(axis=1)
    used = np.flatnonzero(~paper.all(axis=1))
    parts = np.array_split(dark[: used.max()], 8)
    assert all(part.any() for part in parts)
