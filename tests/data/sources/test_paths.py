"""Which image a text in a list means."""

import unicodedata

import pytest

from unfreeze.data.sources.paths import AMBIGUOUS, ImageLookup

NAMES = [
    "wrap/a/1.png",
    "wrap/a/2.png",
    "wrap/b/1.png",
    "wrap/b/3.jpg",
    "x/007.png",
    "x/caf\u00e9.png",
]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("wrap/a/2.png", 1),
        ("./wrap/a/2.png", 1),
        ("a/1.png", 0),
        ("/data/old/wrap/b/1.png", 2),
        ("C:\\Users\\me\\wrap\\b\\1.png", 2),
        ("b\\3.jpg", 3),
        ("2.png", 1),
        ("3", 3),
        ("a/2", 1),  # without the ending
        ("3.0", 3),  # as pandas writes a number beside a gap
        ("7", 4),  # zeros that a spreadsheet dropped
        ("caf\u00e9.png", 5),
        (unicodedata.normalize("NFD", "caf\u00e9.png"), 5),
        ("1.png", AMBIGUOUS),
        ("1", AMBIGUOUS),
        ("c/3.jpg", None),
        ("8", None),
        ("", None),
        ("/", None),
    ],
)
def test_texts_and_the_images_they_mean(text, place):
    assert ImageLookup(NAMES)(text) == place


def test_a_name_as_it_stands_comes_first():
    odd = ["a\\1.png", "a/1.png", "1.png", "b/1.png", "caf\u00e9", "cafe\u0301"]
    lookup = ImageLookup(odd)
    assert [lookup(name) for name in odd] == [*range(6)]
