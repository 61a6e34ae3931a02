"""Which column says what, under the names that lists have in the wild."""

import pytest

from unfreeze.data.sources.columns import (
    find_column,
    find_columns,
    guessed_column_notes,
    normalize_label_column,
)
from unfreeze.errors import DataError

IMAGES = ["1", "2", "3", "4"]
CLASSES = ["x", "y", "x", "y"]


def of(header, **values):
    """A list with these columns: paths, classes and splits by the name, else what `values` say."""
    known = {"P": IMAGES, "L": CLASSES, "S": ["train", "test", "train", "val"]}
    return {name: values.get(name, known[kind]) for name, kind in header.items()}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"path": "P", "label": "L"}, ("path", "label", None)),
        ({"id": "P", "breed": "L"}, ("id", "breed", None)),
        ({"image": "P", "labels": "L"}, ("image", "labels", None)),
        ({"id_code": "P", "diagnosis": "L"}, ("id_code", "diagnosis", None)),
        ({"image_id": "P", "label": "L"}, ("image_id", "label", None)),
        ({"Image": "P", "Id": "L"}, ("Image", "Id", None)),  # whales by their fins
        ({"FILE NAME": "P", "Class-Name": "L"}, ("FILE NAME", "Class-Name", None)),
        ({"filepaths": "P", "labels": "L", "data set": "S"}, ("filepaths", "labels", "data set")),
        ({"Filename": "P", "ClassId": "L"}, ("Filename", "ClassId", None)),
        ({"img": "P", "what it is": "L"}, ("img", "what it is", None)),  # the only other one
        ({"path": "P", "patient": "L"}, ("path", None, None)),  # describes the image
        ({"path": "P", "set": "L"}, ("path", "set", None)),  # no words for splits
        ({"path": "P", "split": "S"}, ("path", None, "split")),
        ({"path": "P", "a": "L", "b": "L"}, ("path", None, None)),
    ],
)
def test_columns_by_their_usual_names(header, expected):
    found = find_columns(of(header), "list.csv")
    assert (found.get("path"), found.get("label"), found.get("split")) == expected


def test_a_column_that_names_each_image_once_is_no_label():
    assert "label" not in find_columns({"path": IMAGES, "caption of it": list("abcd")}, "list.csv")
    assert "label" not in find_columns({"path": IMAGES, "row": ["0", "1", "2", "3"]}, "list.csv")


def test_of_several_columns_of_paths_the_first_that_names_images_counts():
    columns = {
        "id": ["a", "b"],
        "name": ["n", "m"],
        "scan": ["1.png", "2.png"],
        "label": ["x", "y"],
    }
    assert find_columns(columns, "list.csv")["path"] == "name"
    known = {"1.png", "2.png"}
    assert find_columns(columns, "list.csv", names_image=known.__contains__)["path"] == "scan"
    assert guessed_column_notes({"path": "scan", "label": "label"}, "l.csv") == (
        "Images are read from the column 'scan' of l.csv.",
    )


def test_the_column_that_is_asked_for():
    columns = of({"path": "P", "label": "L", "Other": "L"})
    assert find_columns(columns, "list.csv", label="other")["label"] == "Other"
    with pytest.raises(DataError, match="no column 'absent'; its columns are path, label, Other"):
        find_columns(columns, "list.csv", label="absent")


def test_two_columns_of_one_name_are_refused():
    for twice in (("label", "Label"), ("class name", "class_name")):
        with pytest.raises(DataError, match="two columns named"):
            find_columns({"path": IMAGES} | dict.fromkeys(twice, CLASSES), "list.csv")


def test_a_column_is_named_in_any_case():
    assert find_column({"Patient ID": []}, "patient_id") == "Patient ID"
    assert find_column({"a": [], "A": []}, "A") == "A"
    assert find_column({"a": [], "A": []}, "a ") is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["3.0", "4", "nan", ""], ["3", "4", "", ""]),
        (["0.0", "1.00"], ["0", "1"]),
        (["1.5", "2.0"], ["1.5", "2.0"]),  # no whole numbers
        (["3.0", "cat"], ["3.0", "cat"]),
        (["nan", "cat"], ["nan", "cat"]),  # may be a name
        (["03", "3"], ["03", "3"]),
    ],
)
def test_whole_numbers_are_labels_without_a_fraction(given, expected):
    assert normalize_label_column(given) == expected
