"""Empty texts are left out, duplicates are found and stay in one split."""

import numpy as np
import pytest

from unfreeze.data.index.index import build_index
from unfreeze.data.texts.checks import check_texts, say_duplicates, similar_texts
from unfreeze.data.texts.source import open_texts
from unfreeze.errors import DataError
from unfreeze.runtime.console import Console


def index_of(tmp_path, rows):
    lines = ["text,label,split", *(f'"{text}",{label},{split}' for text, label, split in rows)]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return build_index(open_texts(str(tmp_path / "data.csv")))


LONG = "the committee will meet again on the second of may to discuss the new rules for parking"


def test_empty_texts_are_problems(tmp_path):
    rows = [("one", "a", "train"), ("", "a", "train"), ("  ", "b", "train"), ("two", "b", "train")]
    index = index_of(tmp_path, rows)
    checked = check_texts(index)
    assert checked.usable.tolist() == [0, 3]
    assert [problem.path for problem in checked.problems] == ["data.csv:2", "data.csv:3"]
    with pytest.raises(DataError, match="empty"):
        check_texts(index.take([1, 2]))


def test_copies_and_near_copies_are_groups(tmp_path):
    rows = [
        (LONG, "a", "train"),
        (LONG.upper() + "!", "a", "train"),
        (LONG.replace("second", "third"), "a", "train"),
        ("another text about the weather in the mountains this week", "b", "train"),
        ("short", "b", "train"),
        ("Short.", "b", "train"),
        ("shore", "b", "train"),
    ]
    index = index_of(tmp_path, rows)
    groups = similar_texts(index, np.arange(len(index)))
    assert sorted(map(sorted, groups)) == [[0, 1, 2], [4, 5]]


def test_random_texts_are_no_duplicates_and_edited_ones_are(tmp_path):
    """Recall and precision of the hashes over 200 texts and as many edited copies."""
    draw, letters = np.random.default_rng(0), list("abcdefghijklmnopqrstuvwxyz ")
    texts = ["".join(draw.choice(letters, 150)) for _ in range(200)]
    edited = [text[:70] + "##" + text[72:] for text in texts]
    rows = [(text, "ab"[n % 2], "train") for n, text in enumerate([*texts, *edited])]
    index = index_of(tmp_path, rows)
    groups = similar_texts(index, np.arange(len(index)))
    right = [group for group in groups if len(group) == 2 and group[1] - group[0] == 200]
    assert len(right) == len(groups) and len(right) >= 195


def test_duplicates_across_splits_and_with_other_labels_are_named(tmp_path):
    rows = [
        (LONG, "a", "train"),
        (LONG, "a", "test"),
        ("x y z", "a", "train"),
        ("X y z", "b", "train"),
    ]
    index = index_of(tmp_path, rows)
    lines = []

    class Heard(Console):
        def say(self, text: str) -> None:
            lines.append(text)

        def warn(self, text: str) -> None:
            lines.append(text)

    say_duplicates(index, similar_texts(index, np.arange(4)), Heard())
    told = " ".join(lines)
    assert "data.csv:1 and data.csv:2" in told and "several splits" in told
    assert "data.csv:3 and data.csv:4" in told and "another label" in told
