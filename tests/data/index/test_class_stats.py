import numpy as np
import pytest

from unfreeze.data.index.class_stats import class_counts
from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.runtime.console import pluralised


def counted(made, *names):
    index = build_index(open_source(str(made.zip(dict.fromkeys(names, b"")))), strange_classes=True)
    return class_counts(index)


def of(split, label, count):
    return [f"{split}/{label}/{n}.png" for n in range(count)]


def test_splits_and_classes_are_counted(made):
    found = counted(
        made, *of("train", "a", 30), *of("train", "b", 2), *of("val", "a", 3), *of("test", "c", 1)
    )
    assert found.splits == {"train": 32, "val": 3, "test": 1}
    assert found.counts["a"] == {"train": 30, "val": 3, "test": 0}
    assert found.imbalance == 15
    assert found.unknown == {"test": ["c"]}
    assert found.missing == {"val": ["b"], "test": ["a", "b"]}
    assert found.notes() == [
        "Imbalanced classes: a has 30 images, b 2 (15 to 1). Read the balanced accuracy, and "
        "use --select balanced.",
        "Classes with fewer than 5 training images: b.",
        "Classes of test missing in train: c.",
        "Classes of train missing in val: b.",
        "Classes of train missing in test: a, b.",
    ]


def test_without_splits_and_without_labels(made):
    found = counted(made, *[f"a/{n}.png" for n in range(9)], *[f"b/{n}.png" for n in range(9)])
    assert (found.splits, found.imbalance, found.notes()) == ({"all": 18}, 1, [])
    flat = counted(made, "1.png", "2.png")
    assert (flat.counts, flat.unlabelled, flat.imbalance) == ({}, {"all": 2}, None)
    assert flat.notes() == []


def test_unlabelled_rows_of_a_list_are_said(made):
    made.folder({f"{n}.png": b"x" for n in range(4)}, ".")
    (made.root / "list.csv").write_text("path,label\n0.png,a\n1.png,\n2.png,b\n3.png,\n")
    found = class_counts(build_index(open_source(str(made.root / "list.csv"))))
    assert found.unlabelled == {"all": 2}
    assert "2 images are unlabelled." in found.notes()


@pytest.mark.parametrize("classes", [7])
def test_many_names_are_cut_short(made, classes):
    found = counted(made, *[f"{n}/{m}.png" for n in range(classes) for m in range(2)])
    assert "Classes with fewer than 5 training images: 0, 1, 2, 3, 4 and 2 more." in found.notes()
    assert np.array([row["all"] for row in found.counts.values()]).sum() == 14


def test_one_is_said_as_one():
    assert pluralised(1, "image has", "images have") == "1 image has"
    assert pluralised(1000, "image has", "images have") == "1,000 images have"
