"""The Korean pages say what the English ones say: headings, commands, code, links and numbers.

Words are not compared. Numbers are read with their units. A number that English spells out ("five
minutes") may stand as a numeral in Korean ("5분") or as a word, which is not compared.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAIRS = {"README.md": "README.ko.md", "docs/guides/start.md": "docs/guides/start.ko.md"}
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"\s*(?<!\S)# .*$", re.MULTILINE)
HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(!?)\[(?:[^\[\]])*\]\(([^)\s]+)\)")
FLAG = re.compile(r"--[a-z][a-z-]*")
UNITS = {
    "%": r"%",
    "hours": r"hours?|시간",
    "minutes": r"minutes?|분",
    "bit": r"bits?|비트",
}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBER = re.compile(
    rf"\b({'|'.join(WORDS)})\b(?:[ -]({UNITS['hours']}|{UNITS['minutes']}))?"
    rf"|(\d+(?:,\d{{3}})*(?:\.\d+)*(?:e-?\d+)?)(?:[ -]?({'|'.join(UNITS.values())}))?",
    re.IGNORECASE,
)


def switch(korean):
    """The line under the title that leads to the other language, for the Korean file's name."""
    english = korean.replace(".ko.md", ".md")
    return f"English | [한국어]({korean})", f"[English]({english}) | 한국어"


def unit(text):
    """The unit's common name, of English or Korean text; "" for none."""
    return next((u for u, names in UNITS.items() if re.fullmatch(names, text or "")), "")


def numbers(text):
    """(numerals, numbers spelled out in English), each a Counter of (number, unit)."""
    numerals, spelled = Counter(), Counter()
    for word, word_unit, digits, digits_unit in NUMBER.findall(text):
        if word:
            spelled[str(WORDS.index(word.lower())), unit(word_unit)] += 1
        else:
            numerals[digits, unit(digits_unit)] += 1
    return numerals, spelled


def sections(text):
    """What each section has, from the title on: heading level, code, flags, links, numbers."""
    blocks = []

    def shelved(match):
        """Take a block out; its comments stay as text."""
        blocks.append((match[2], COMMENT.sub("", match[3])))
        comments = COMMENT.findall(match[3])
        return f"\n§{len(blocks) - 1}§\n" + "\n".join(c.replace("#", " ") for c in comments)

    text = BLOCK.sub(shelved, text)
    starts = [match.start() for match in HEADING.finditer(text)]
    assert starts[:1] == [0]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        part = text[start:end]
        taken = [blocks[int(i)] for i in re.findall(r"§(\d+)§", part)]
        prose = re.sub(r"§\d+§", "", part)
        links = Counter((mark, to.replace(".ko.md", ".md")) for mark, to in LINK.findall(prose))
        code = Counter(CODE.findall(prose))
        words = re.sub(r"\]\([^)\s]+\)", "]", CODE.sub("", prose))
        yield {
            "heading": len(HEADING.match(part)[1]),
            "blocks": taken,
            "code": code,
            "flags": Counter(FLAG.findall(CODE.sub("", prose))),
            "links": links,
            "numbers": numbers(words),
        }


def differences(english, korean, name):
    """In what the two texts differ, as sentences; [] if one says what the other says."""
    ours, theirs = switch(Path(name).name)
    found = [
        f"the second paragraph is not {line!r}"
        for text, line in ((english, ours), (korean, theirs))
        if text.split("\n\n")[1] != line
    ]
    one = list(sections(english.replace(ours, "", 1)))
    other = list(sections(korean.replace(theirs, "", 1)))
    levels = [[part["heading"] for part in parts] for parts in (one, other)]
    if levels[0] != levels[1]:
        return [*found, f"headings: {levels[0]} and {levels[1]}"]
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        for what in ("blocks", "code", "flags", "links"):
            if a[what] != b[what]:
                found.append(f"section {i}, {what}: {a[what]} and {b[what]}")
        (numerals, spelled), (korean_numerals, _) = a["numbers"], b["numbers"]
        absent, more = numerals - korean_numerals, korean_numerals - numerals - spelled
        if absent or more:
            found.append(f"section {i}, numbers: {dict(absent)} absent, {dict(more)} added")
    return found


def pair(name):
    """The English and the Korean text."""
    return [(ROOT / path).read_text(encoding="utf-8") for path in (name, PAIRS[name])]


@pytest.mark.parametrize("name", PAIRS)
def test_the_korean_page_says_what_the_english_one_says(name):
    assert differences(*pair(name), PAIRS[name]) == []


# one change of one page, and the kind of difference that it must be
CHANGES = [
    ("README.md", "scan photos.zip ", "scan photos.tar ", "blocks"),
    ("README.md", "epochs=100", "epochs=200", "blocks"),
    ("README.md", "--top 3", "--top 5", "numbers"),
    ("README.md", "--probabilities", "--probs", "flags"),
    ("README.md", "`--dry-run`", "`--plan`", "code"),
    ("README.md", "(docs/LOG.md)", "(docs/RESULTS.md)", "links"),
    ("README.md", "images/demo.png", "images/other.png", "links"),
    ("README.md", "## ", "### ", "headings"),
    ("README.md", "1e-9", "1e-8", "numbers"),
    ("README.md", "1e-4", "1e-3", "numbers"),
    ("README.md", "float64", "float32", "numbers"),
    ("README.md", "3.11", "3.12", "numbers"),
    ("README.md", "ResNet-50", "ResNet-18", "numbers"),
    ("docs/guides/start.md", "--budget 50", "--budget 20", "code"),
    ("docs/guides/start.md", "90.8 %", "91.8 %", "blocks"),
    ("docs/guides/start.md", "0.0136", "0.0135", "blocks"),
    ("docs/guides/start.md", "--time-budget 1h", "--time-budget 2h", "blocks"),
    ("docs/guides/start.md", "(freeze-layers.md)", "(freeze-batch-norm.md)", "links"),
]


@pytest.mark.parametrize("side", [0, 1], ids=["English", "Korean"])
@pytest.mark.parametrize(("name", "old", "new", "what"), CHANGES, ids=[c[1] for c in CHANGES])
def test_a_change_of_one_page_alone_is_found(name, old, new, what, side):
    texts = pair(name)
    assert old in texts[side]
    texts[side] = texts[side].replace(old, new, 1)
    assert any(what in line for line in differences(*texts, PAIRS[name]))


@pytest.mark.parametrize(
    ("old", "new"), [("1,437장", "1,473장"), ("2분", "3분"), ("2분", "2시간"), ("16비트", "16배")]
)
def test_a_number_or_unit_of_the_korean_page_is_found(old, new):
    name = next(name for name in PAIRS if old in pair(name)[1])
    english, korean = pair(name)
    assert any(
        "numbers" in line for line in differences(english, korean.replace(old, new, 1), PAIRS[name])
    )


def test_translated_comments_are_no_difference():
    english, korean = pair("README.md")
    changed = re.sub(r"# 깨진 파일.*", "# 다른 말", korean)
    assert changed != korean and differences(english, changed, "README.ko.md") == []


@pytest.mark.parametrize("side", [0, 1])
def test_the_link_to_the_other_language_stands_below_the_title(side):
    texts = pair("README.md")
    texts[side] = texts[side].replace(switch("README.ko.md")[side], "", 1)
    assert any("second paragraph" in line for line in differences(*texts, "README.ko.md"))


@pytest.mark.parametrize("path", PAIRS.values())
def test_links_of_the_korean_page_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    targets = [to for _, to in LINK.findall(text) if "://" not in to]
    assert [to for to in targets if not ((ROOT / path).parent / to).exists()] == []
    assert all(to.endswith((".ko.md", ".md", ".png", "/")) for to in targets)


@pytest.mark.parametrize("path", PAIRS.values())
def test_one_word_for_one_thing(path):
    """The spelling that the project chose stands alone; the other one is also in use elsewhere."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for other in ("라벨", "자가지도", "자기 지도", "파인튜닝", "전이 학습", "사전학습", "미세조정"):
        assert other not in text
