"""Words are never broken, and lines keep to their width."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.runtime.text_layout import (
    TextTable,
    cell_width,
    command_lines,
    facts,
    wrapped,
    wrapped_with_command,
)
from unfreeze.text import for_screen

WORDS = st.lists(st.text("abcdefghij-/.", min_size=1, max_size=30), min_size=1, max_size=40)
ROWS = [
    ("batch-size", "256", "half of 2,527 images, and no more than the memory of the device holds"),
    ("nmb-prototypes", "64", "grows with 1,437 images (3,000 for a million)"),
]


@given(WORDS, st.integers(20, 120))
def test_wrapping_keeps_every_word_whole(words, width):
    lines = wrapped(" ".join(words), width)
    assert " ".join(lines).split() == words
    assert all(cell_width(line) <= width or " " not in line.strip() for line in lines)


def test_wide_characters_take_two_cells():
    assert cell_width("猫") == 2 and wrapped("猫 " * 10, 20)[0] == "猫 猫 猫 猫 猫 猫 猫"


def test_what_goes_on_is_indented_as_it_began():
    assert wrapped("  one two three", 10) == ["  one two", "  three"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_wrapped_command_is_the_same_command(width):
    words = "unfreeze finetune 'my photos' --labels 'a b.csv' --weights runs/pretrain --epochs 30"
    words += " --learning-rate 0.01 --out runs/one"
    pasted = "\n".join(command_lines(words, width))
    assert all(len(line) <= width for line in pasted.splitlines())
    assert shlex.split(pasted.replace("\\\n", "")) == shlex.split(words)


def test_a_command_at_the_end_of_a_sentence_stands_alone():
    said = "Stopped after 3 epochs. Resume with: unfreeze finetune data --out runs/one --resume"
    assert wrapped_with_command(said, 60) == [
        "Stopped after 3 epochs. Resume with:",
        "  unfreeze finetune data --out runs/one --resume",
    ]
    assert wrapped_with_command(said, None) == [said]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200, None])
def test_a_table_keeps_to_its_width_and_its_words(width):
    table = TextTable(("setting", "value", "why"), ROWS)
    lines = table.lines(width)
    assert width is None or max(map(len, lines)) <= width
    assert all(word in " ".join(lines) for row in ROWS for cell in row for word in cell.split())


@pytest.mark.parametrize("width", [60, 80])
def test_a_path_gives_way_to_the_other_columns(width):
    path = "/data/of/some/project/weights/squeezenet1_1-imagenet.pth"
    lines = TextTable(("setting", "value", "why"), [("weights", path, ROWS[0][2])]).lines(width)
    assert max(map(len, lines)) <= width and "…/squeezenet1_1-imagenet.pth" in lines[2]
    assert path in TextTable(("setting", "value"), [("weights", path)]).lines()[2]


def test_a_row_of_one_cell_is_a_subtitle():
    table = TextTable(("layer", "n"), [("stage 1: everything in it",), ("conv", "9")])
    assert table.lines() == ["layer  n", "─" * 25, "stage 1: everything in it", "conv   9"]


def test_numbers_stand_to_the_right():
    head, rule, first, last = TextTable(("name", "n"), [("a", "5"), ("long name", "1,234")]).lines()
    assert (head, first, last) == ("name           n", "a              5", "long name  1,234")
    assert rule == "─" * len(last)


def test_a_table_says_how_much_it_leaves_out():
    short = TextTable(("name", "n"), [(str(n), str(n)) for n in range(9)]).first(3)
    assert short.rows[-1] == ("and 6 more", "")
    assert short.lines() and TextTable(("n",), [("1",)]).first(3).rows == [("1",)]


def test_facts_go_on_below_themselves():
    assert facts([("run", "r"), ("network", "one two three four five")], 28) == [
        "run      r",
        "network  one two three four",
        "         five",
    ]


@given(st.text())
def test_no_control_character_is_left(text):
    shown = for_screen(text)
    assert all(letter.isprintable() or letter in "\n\t" or ord(letter) > 159 for letter in shown)
    assert for_screen(shown) == shown
    assert for_screen("a\tb\nc\u00fc") == "a\tb\nc\u00fc"
    assert for_screen("\x1b[31mred\x07\r\x9b") == r"\x1b[31mred\x07\x0d\x9b"
