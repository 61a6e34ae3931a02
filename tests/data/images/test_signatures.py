import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unfreeze.data.images.signatures import (
    HEAD,
    format_of_signature,
    has_image_suffix,
    is_junk,
    lacks_end_marker,
    may_be_junk,
)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("PNG", "PNG"),
        ("JPEG", "JPEG"),
        ("GIF", "GIF"),
        ("BMP", "BMP"),
        ("TIFF", "TIFF"),
        ("WEBP", "WebP"),
        ("PPM", "PNM"),
        ("AVIF", "AVIF or HEIF"),
        ("JPEG2000", "JPEG 2000"),
        ("DDS", "DDS"),
    ],
)
def test_signatures_of_what_pillow_writes(made, kind, name):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    assert format_of_signature(made.encoded(kind=kind)[:HEAD]) == name


@pytest.mark.parametrize("head", [b"", b"<html>", b"BMW is a car, not an image", b"Plan", b"PK\3"])
def test_text_and_archives_are_no_images(head):
    assert format_of_signature(head) is None


def test_names():
    assert has_image_suffix("a/B.JPG")
    assert has_image_suffix("x.tar.jpeg")
    assert not has_image_suffix("jpg")
    assert not has_image_suffix("a.jpg/readme")
    assert is_junk("__MACOSX/a/._b.jpg")
    assert is_junk("a/.ipynb_checkpoints/b.png")
    assert is_junk("a/Thumbs.db")
    assert not is_junk("a/b.png")


PARTS = st.sampled_from(
    ["a", ".b", "__MACOSX", "Thumbs.db", "thumbs.DB", "x.y", "..", "desktop.ini.png"]
)


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_junk_is_a_hidden_or_a_named_part(parts):
    named = {"thumbs.db", "desktop.ini", "__macosx"}
    expected = any(part.startswith(".") or part.lower() in named for part in parts)
    assert is_junk("/".join(parts)) == expected


@given(st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), max_size=3))
def test_names_that_may_be_junk_are_looked_at(names):
    assert may_be_junk(names) or not any(map(is_junk, names))


def test_ordinary_names_are_not_looked_at_one_by_one():
    assert not may_be_junk(["train/a.b/image.jpg", "database.db/thumbs.jpg", "b..png"])


def test_end_marks(made):
    files = {kind: made.encoded(kind=kind) for kind in ("PNG", "JPEG", "GIF", "BMP")}
    assert not any(map(lacks_end_marker, files.values()))
    assert lacks_end_marker(files["PNG"][:-20])
    assert lacks_end_marker(files["JPEG"][:-2])
