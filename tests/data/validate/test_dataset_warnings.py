"""What about a dataset is likely to be a mistake, and what is not."""

import unicodedata

import numpy as np
import pytest

from unfreeze.data.index.index import build_index
from unfreeze.data.index.labels import names_differing_by_case
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.warnings import cropped_away, dataset_warnings, labels_differ_by_case
from unfreeze.errors import DataError

CAFE = "caf\u00e9"


def indexed(made, names, **how):
    return build_index(open_source(str(made.zip(made.members(names)))), **how)


def test_a_healthy_dataset_has_none(made):
    names = [f"{s}/{label}/{n}.png" for s in ("train", "test") for label in "ab" for n in range(2)]
    assert dataset_warnings(indexed(made, names)) == []


def test_classes_that_a_person_would_take_for_one():
    names = [
        "Cat",
        "cat",
        "cat ",
        " dog",
        "dog",
        "bird",
        "CAF\u00c9",
        unicodedata.normalize("NFD", "caf\u00e9"),
    ]
    groups = names_differing_by_case(names)
    assert [set(group) for group in groups] == [{" dog", "dog"}, set(names[6:]), {*names[:3]}]
    message = labels_differ_by_case(("Cat", "bird", "cat", "cat "))
    assert "'Cat', 'cat', 'cat '" in message
    assert labels_differ_by_case(("cat", "cats", "bird")) is None
    many = labels_differ_by_case([f"{a}{n}" for n in range(9) for a in "xX"])
    assert "and 4 more" in many


def test_what_the_folders_make_doubtful(made):
    names = [
        f"{place}/{label}/{n}.png" for place in ("oslo", "rome") for label in "ab" for n in "12"
    ]
    ((code, message),) = dataset_warnings(indexed(made, names))
    assert (
        code == "splits_look_like_classes" and "oslo, rome all contain the same folders" in message
    )
    # whoever says which are meant is not doubted
    assert dataset_warnings(indexed(made, names, labels="^[^/]+/([^/]+)/")) == []


def test_what_cannot_be_classes_is_refused_where_labels_are_learned_from(made):
    names = [f"fold{k}/{label}/{n}.png" for k in "12" for label in "ab" for n in "12"]
    with pytest.raises(DataError, match="the outer or the inner ones may be the classes"):
        indexed(made, names)
    assert indexed(made, names, labels="^[^/]+/([^/]+)/").classes == ("a", "b")
    index = indexed(made, names, strange_classes=True)
    assert [code for code, _ in dataset_warnings(index)] == ["splits_look_like_classes"]


def test_labels_that_are_all_words_for_splits_are_refused(made):
    folder = made.folder(made.members(["1.png", "2.png"]))
    (folder / "list.csv").write_text("path,label\n1.png,train\n2.png,Validation\n")
    with pytest.raises(DataError, match="Validation, train are names of splits"):
        build_index(open_source(str(folder / "list.csv")))


def test_long_images_are_counted():
    heights, widths = np.array([100, 100, 50, 0]), np.array([100, 250, 100, 0])
    found = cropped_away(heights, widths)
    assert (found.count, found.images) == (2, 3)
    assert found.sentence.startswith("2 of 3 images are much wider than a square")
    assert "up to 2.5 to 1" in found.warning and "taller" not in found.warning
    assert "taller" in cropped_away([300], [100]).sentence
    assert "wider or taller" in cropped_away([300, 100], [100, 300]).sentence
    assert "sampled (of 5,000)" in cropped_away(heights, widths, of=5_000).sentence
    assert cropped_away([100], [199]) is None
    assert cropped_away([], []) is None


def test_one_long_image_among_many_is_no_warning():
    found = cropped_away([100] * 101, [100] * 100 + [300])
    assert (found.count, found.warning) == (1, None)


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_the_unicode_forms_of_a_name_are_one_class_in_every_split(made, forms):
    names = [
        f"{split}/{unicodedata.normalize(form, label)}/1.png"
        for split, form in zip(("train", "test"), forms, strict=True)
        for label in ("caf\u00e9", "tea")
    ]
    index = indexed(made, names)
    assert index.classes == ("caf\u00e9", "tea")  # as they are stored with the model
    assert sorted(index.labels.tolist()) == [0, 0, 1, 1]
    assert dataset_warnings(index) == []


def test_two_forms_of_one_name_are_one_class(made):
    names = [f"{unicodedata.normalize(form, CAFE)}/{form}.png" for form in ("NFC", "NFD")]
    assert indexed(made, [*names, "tea/1.png"]).classes == ("caf\u00e9", "tea")


def test_a_class_that_differs_from_one_of_train_by_case_is_named_beside_it(made):
    with pytest.raises(DataError, match="which has 'Cat': the names differ only by case or spaces"):
        indexed(made, ["train/Cat/1.png", "train/dog/1.png", "test/cat/1.png"])
