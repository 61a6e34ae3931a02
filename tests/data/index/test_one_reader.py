"""A list means the same as DATA, for --labels and for --split-from, however it is written."""

import unicodedata

import pytest

from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError

NAMES = [f"{folder}/{number:03}.png" for folder in ("caf\u00e9", "b") for number in range(1, 4)]
CLASSES = ["1", "0", "1", "0", "1", "0"]


@pytest.fixture
def three(made):
    """The index of a list as DATA, and as --labels of the folder and of a zip."""
    root = made.folder(made.members(NAMES))
    packed = made.zip(made.members(NAMES))

    def read(text, name="list.csv"):
        (root / name).write_bytes(text)
        labels = str(root / name)
        sources = (labels, {}), (str(root), {"labels": labels}), (str(packed), {"labels": labels})
        return [build_index(open_source(data), **told) for data, told in sources]

    return read


def lines(header="path,label", path=str, label=str, separator=","):
    rows = [
        header,
        *(f"{path(n)}{separator}{label(k)}" for n, k in zip(NAMES, CLASSES, strict=True)),
    ]
    return "\n".join(rows)


FORMS = {
    "plain": lines().encode(),
    "other names": lines("Image_ID,Class").encode(),
    "the only other column": lines("id,what").encode(),
    "backslashes": lines(path=lambda n: n.replace("/", "\\")).encode(),
    "another machine": lines(path=lambda n: "D:\\data\\" + n.replace("/", "\\")).encode(),
    "without endings": lines(path=lambda n: n.removesuffix(".png")).encode(),
    "floats": lines(label=lambda k: f"{k}.0").encode(),
    "semicolons": lines("path;label", separator=";").encode(),
    "UTF-16": lines().encode("utf-16"),
    "Windows-1252": lines().encode("cp1252"),
    "decomposed": unicodedata.normalize("NFD", lines()).encode(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_means_the_same_everywhere(three, form):
    for index in three(form):
        said = dict(zip(index.paths, index.labels.tolist(), strict=True))
        assert [index.classes[said[name]] for name in NAMES] == CLASSES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,label\nb/001.png,x,y\n", "two columns named 'label'"),
        ("path,Label,label\nb/001.png,x,y\n", "two columns named 'Label' and 'label'"),
        ("label\nx\n", "no column `path`"),
        ("path,label\n001.png,x\n", "matches several (files|images)"),
        ("path,label\nb/001,x\nb/001.png,y\n", "twice"),
        ("path,label\nb/999.png,x\n", "b/999.png"),
    ],
)
def test_what_is_wrong_is_refused_everywhere(made, text, message):
    root = made.folder(made.members(NAMES))
    (root / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        build_index(open_source(str(root / "list.csv")))
    with pytest.raises(DataError, match=message):
        build_index(open_source(str(root)), labels=str(root / "list.csv"))


def test_splits_come_under_any_name_too(three):
    text = "file;kind;Data Set\n" + "".join(
        f"{name};{label};{split}\n"
        for name, label, split in zip(
            NAMES, CLASSES, ["Training", "training", "test"] * 2, strict=True
        )
    )
    for index in three(text.encode()):
        said = dict(zip(index.paths, index.splits.tolist(), strict=True))
        assert [said[name] for name in NAMES] == [1, 1, 3] * 2
        assert index.classes == ("0", "1")


def test_the_column_of_labels_can_be_named(three, made):
    text = "path,a,b\n" + "".join(
        f"{name},{k},{1 - int(k)}\n" for name, k in zip(NAMES, CLASSES, strict=True)
    )
    path = made.folder(made.members(NAMES)) / "two.csv"
    path.write_text(text)
    for data, labels in ((path, None), (path.parent, str(path))):
        source = open_source(str(data))
        index = build_index(source, labels=labels, label_column="B")
        said = dict(zip(index.paths, index.labels.tolist(), strict=True))
        assert [said[name] for name in NAMES] == [1 - int(k) for k in CLASSES]
    with pytest.raises(DataError, match="no column `label`") as raised:
        build_index(open_source(str(path.parent)), labels=str(path))
    assert "--label-column" in raised.value.next_step


def test_a_split_file_is_read_in_the_same_way(made):
    root = made.folder(made.members(NAMES))
    (root / "split.tsv").write_bytes(
        "Image\tSplit\n".encode("utf-16")
        + "".join(f"{n[:-4]}\tdev\n" for n in NAMES[:2]).encode("utf-16-le")
        + "".join(f"{n}\tTrain\n" for n in NAMES[2:]).encode("utf-16-le")
    )
    index = build_index(open_source(str(root)), split_from=str(root / "split.tsv"))
    said = dict(zip(index.paths, index.splits.tolist(), strict=True))
    assert [said[name] for name in NAMES] == [2, 2, 1, 1, 1, 1]
