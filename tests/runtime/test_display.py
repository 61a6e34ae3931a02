"""One description of a result: as text, in colour, as HTML, as a table of pandas."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from unfreeze.runtime.display import Display, Displayed, html, text
from unfreeze.runtime.text_layout import TextTable

SHOWN = Display(
    lead=["It went <well>."],
    warnings=["One doubt."],
    facts=[("network", "resnet18")],
    tables=[TextTable(("class", "n"), [("a", "1"), ("of many",), ("b", "22")], title="Classes")],
    notes=["A note."],
    files=[("report", "r/report.html")],
    next=["unfreeze predict r IMAGE..."],
)


@dataclass(frozen=True, repr=False)
class Result(Displayed):
    lines: int

    def display(self):
        return Display(tables=[TextTable(("n",), [(str(n),) for n in range(self.lines)])])

    def rows(self):
        return [{"n": n} for n in range(self.lines)]


def test_blocks_stand_in_order():
    assert text(SHOWN).split("\n\n") == [
        "It went <well>.",
        "warning: One doubt.",
        "network  resnet18",
        "Classes\nclass   n\n─────────\na       1\nof many\nb      22",
        "A note.",
        "report  r/report.html",
        "Next:\n  unfreeze predict r IMAGE...",
    ]


def test_colour_marks_the_lead_and_the_warning():
    drawn = text(SHOWN, 60, colour=True)
    assert "\x1b[1mIt went <well>.\x1b[0m" in drawn and "\x1b[1;33mwarning:\x1b[0m" in drawn
    assert "\x1b" not in text(SHOWN, 60)


def test_html_is_escaped_and_complete():
    drawn = html(SHOWN)
    for part in ("It went &lt;well&gt;.", "One doubt.", "resnet18", ">22</td>", 'colspan="2"'):
        assert part in drawn
    assert "<script" not in drawn and drawn.count("<table") == drawn.count("</table>") == 3


def test_a_repr_fits_a_screen_and_str_is_all_of_it():
    result = Result(500)
    assert len(repr(result).splitlines()) < 25 and "and 484 more" in repr(result)
    assert len(str(result).splitlines()) > 500
    drawn = result._repr_html_()
    assert "overflow:auto" in drawn and drawn.count("<tr>") == 202 and "and 300 more" in drawn


def test_many_warnings_and_notes_are_cut_too():
    many = Display(warnings=["w"] * 500, notes=["n"] * 9)
    assert text(many.short()).count("warning: w") == 8
    assert "warning: and 492 more" in text(many.short()) and text(many.short()).endswith(
        "\nand 1 more"
    )
    assert text(many).count("warning: w") == 500


def test_rows_become_a_table_of_pandas():
    made = Result(3).to_pandas()
    assert list(made.columns) == ["n"] and made.n.tolist() == [0, 1, 2]


def test_pandas_is_loaded_only_when_it_is_wanted():
    code = "import sys, unfreeze, unfreeze.commands.finetune; print('pandas' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "False\n"


def test_without_pandas_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'unfreeze\[pandas\]'"):
        Result(3).to_pandas()
