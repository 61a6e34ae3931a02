"""Where labels of images are read from, what unlabelled means, and what is refused."""

import pytest
import torch
from PIL import Image

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError, UsageError
from unfreeze.tasks.multilabel.labels import listed_names, names_in, separator_of
from unfreeze.tasks.multilabel.task import MultilabelTask

NAN = float("nan")


@pytest.fixture
def table(tmp_path):
    """`table(header, *rows)`: a CSV file, and an image for each of its rows."""

    def make(header, *rows, name="l.csv"):
        for row in rows:
            Image.new("RGB", (8, 8), "white").save(tmp_path / row.partition(",")[0])
        (tmp_path / name).write_text("\n".join([header, *rows]) + "\n")
        return tmp_path / name

    return make


def read(path, labels=None, **settings):
    """(task fitted on all images, targets, index)."""
    task = MultilabelTask()
    task.configure(FinetuneSettings(**settings))
    index = task.index(open_source(str(path)), labels=labels)
    known = [index.classes[label] for label in index.labels.tolist() if label >= 0]
    task.fit(known)
    return task, task.targets(known), index


def test_names_are_united_stripped_and_counted_once():
    assert names_in(" dog;cat ;dog; ", ";") == ["dog", "cat"]
    assert names_in(";", ";") == [] and names_in("a b", ";") == ["a b"]
    assert separator_of(["a", "a|b"]) == "|" and separator_of(["a|b;c"]) == ";"
    assert separator_of(["a"]) == ";"
    assert listed_names(["a, b", "c d"]) == ("a", "b", "c d")


def test_names_with_a_separator(table):
    path = table("path,label", "0.png,cat;dog", "1.png,dog", "2.png,;", "3.png,", "4.png,dog; cat")
    task, targets, index = read(path)
    assert task.classes == ("cat", "dog") and task.separator == ";"
    # an image without a label is unlabelled, not without any of the classes
    assert index.labels.tolist().count(-1) == 1 and index.labels[3] == -1
    assert targets.tolist() == [[1, 1], [0, 1], [0, 0], [1, 1]]
    notes = " ".join(index.notes)
    assert "separated by ';': cat 2, dog 3; 1 images have none" in notes


@pytest.mark.parametrize("sign", ["|", ",", "/", " "])
def test_another_separator(table, sign):
    given = {} if sign == "|" else {"label_separator": sign}
    path = table("path,label", f'0.png,"cat{sign}dog"', "1.png,dog", "2.png,bird")
    task, targets, _ = read(path, **given)
    assert task.classes == ("bird", "cat", "dog")
    assert targets.tolist() == [[0, 1, 1], [0, 0, 1], [1, 0, 0]]


def test_columns_of_0_and_1(table):
    path = table(
        "path,dog,cat,split", "0.png,1,1,train", "1.png,1,0,train", "2.png,0,0,val",
        "3.png,,,train", "4.png,0,,train", "5.png,True,1.0,test",
    )  # fmt: skip
    task, targets, index = read(path, label_columns=("dog,cat",))
    assert task.classes == ("cat", "dog")
    expected = torch.tensor([[1, 1], [0, 1], [0, 0], [NAN, 0], [1, 1]])
    assert torch.equal(targets.nan_to_num(9), expected.nan_to_num(9))
    assert index.labels.tolist().count(-1) == 1  # nothing is known of the fourth
    assert index.layout == "splits"
    assert "in columns: cat 2, dog 3" in " ".join(index.notes)


def test_columns_of_a_label_file_for_a_folder(table, tmp_path):
    path = table("path,dog,cat,group", "0.png,1,1,a", "1.png,1,0,a", "2.png,0,0,b")
    _, targets, index = read(path.parent, labels=str(path), label_columns=("cat", "dog"))
    assert targets.tolist() == [[1, 1], [0, 1], [0, 0]] and index.groups == ["a", "a", "b"]


def test_unknown_labels_weigh_nothing_in_the_loss(table):
    path = table("path,a,b", "0.png,1,0", "1.png,0,1", "2.png,1,", "3.png,,1")
    task, targets, _ = read(path, label_columns=("a", "b"))
    outputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = task.loss(outputs, targets)
    losses.sum().backward()
    assert (outputs.grad == 0).tolist() == targets.isnan().tolist()
    full = task.loss(outputs, torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]))
    assert torch.equal(full[:2], losses[:2]) and (full[2:] > losses[2:]).all()


@pytest.mark.parametrize(
    ("header", "row", "settings", "words"),
    [
        ("path,a,b", "0.png,1,-1", {"label_columns": ("a", "b")}, "'-1' in the column 'b'"),
        ("path,a,b", "0.png,1,0", {"label_columns": ("a", "c")}, "no column 'c'"),
        ("path,a,b", "0.png,1,0", {"label_columns": ("a", "b")}, "has a 1 in the column 'b'"),
        ("path,label", "0.png,;", {}, "No training image has a label"),
        ("path,label", "0.png,", {}, "has no labels"),
    ],
)
def test_labels_that_cannot_be_are_named(table, header, row, settings, words):
    with pytest.raises(DataError, match=words):
        read(table(header, row), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_columns": ("a", "a")}, "names 'a' twice"),
        ({"label_columns": (",",)}, "names no column"),
        ({"label_columns": ("a;b",)}, "has ';' in its name"),
        ({"loss": "ce"}, "no --loss ce"),
    ],
)
def test_settings_that_cannot_be_are_named(table, settings, words):
    with pytest.raises(UsageError, match=words):
        read(table("path,label,a,a;b", "0.png,x,1,1", "1.png,y,0,0"), **settings)


def test_a_name_that_train_lacks_is_named_with_one_that_is_like_it(table):
    task, *_ = read(table("path,label", "0.png,cat;dog", "1.png,dog"))
    with pytest.raises(DataError, match=r"'Cat' \(in 'Cat;dog'\) .* which has 'cat'"):
        task.targets(["Cat;dog"])


def test_names_that_differ_by_case_are_pointed_out(table):
    _, _, index = read(table("path,label", "0.png,cat;dog", "1.png,Cat;dog"))
    assert any("'Cat', 'cat' differ only by case" in note for note in index.notes)
