"""Several labels to an image: told from names with a sign in them, refused or not used."""

import pytest

from unfreeze.data.index.index import build_index
from unfreeze.data.index.labels import label_separator
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError


@pytest.mark.parametrize(
    ("labels", "sign"),
    [
        (["cat", "dog", None, ""], None),
        (["cat;dog", "cat"], ";"),
        (["cat;dog", "dog ; bird"], ";"),
        (["Mass|Nodule", "Nodule"], "|"),
        (["cat;dog", "cat;dog", "bird"], None),  # a name with a sign in it
        (["A|B", "C|D"], None),
        (["a;", "a"], ";"),
        ([], None),
    ],
)
def test_what_separates(labels, sign):
    assert label_separator(labels) == sign


@pytest.fixture
def several(made):
    root = made.folder(made.members([f"{n}.png" for n in range(4)]))
    (root / "l.csv").write_text("path,label\n0.png,cat\n1.png,cat;dog\n2.png,dog\n3.png,dog;cat\n")
    return root / "l.csv"


def test_where_one_is_needed_it_is_refused_with_what_to_do(several):
    with pytest.raises(DataError, match=r"2 of 4 .*first: 1\.png, 'cat;dog'") as raised:
        build_index(open_source(str(several)))
    assert "another character than ';'" in raised.value.next_step


def test_elsewhere_the_images_are_read_and_it_is_said(several):
    index = build_index(open_source(str(several)), strange_classes=True)
    assert len(index) == 4 and index.classes == () and set(index.labels.tolist()) == {-1}
    assert any("2 images have several labels ('cat;dog')" in note for note in index.notes)


def test_labels_from_elsewhere_are_looked_at_too(several):
    with pytest.raises(DataError, match="several labels"):
        build_index(open_source(str(several.parent)), labels=str(several))
