"""What the pages say is there: their commands are taken, the messages that they quote are ours."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from unfreeze.cli.parser import parse
from unfreeze.errors import UsageError

ROOT = Path(__file__).parents[2]
EXAMPLES = "EXTENDING.md"  # its commands need the packages that it installs
PAGES = [
    ROOT / "README.md",
    ROOT / "README.ko.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != EXAMPLES),
]
BLOCK = re.compile(r"^ *```(?:bash|sh|console)?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^ *(?:torchrun .*? -m )?unfreeze ([a-z]+)\b(.*)$", re.MULTILINE)


def commands(page):
    """(command, its words) of each whole `unfreeze` line in a block of the page."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.findall(text):
        for verb, rest in COMMAND.findall(block.replace("\\\n", " ")):
            words = shlex.split(rest.split(" > ")[0], comments=True)  # without a redirection
            if not {"...", "X", "S", "$s"}.intersection(words):
                yield verb, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_is_taken(page):
    for verb, words in commands(page):
        try:
            parse(verb, words)
        except UsageError as error:
            pytest.fail(f"unfreeze {verb} {shlex.join(words)}: {error}")


def test_commands_are_found():
    """Were the pattern wrong, the test above would hold for anything."""
    found = [command for page in PAGES for command in commands(page)]
    assert len(found) > 120
    with pytest.raises(UsageError):
        parse("finetune", ["photos", "--freezes", "all"])


def messages():
    """Every string of the source with its gaps as …"""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(getattr(part, "value", "…")) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def quoted(page):
    """Messages that the page quotes, as patterns: those with a gap, in a heading or as code."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [
        *re.findall(r"^### (.*)$", text, re.MULTILINE),
        *re.findall(r"`([^`\n]*…[^`\n]*)`", text),
    ]
    return [line for line in lines if "…" in line]


def test_the_messages_of_troubleshooting_are_ours():
    ours = " \n ".join(messages())
    absent = []
    for line in quoted(ROOT / "docs/TROUBLESHOOTING.md"):
        parts = [part.strip(" '.:;,()") for part in line.split("…")]
        absent += [(line, part) for part in parts if len(part) > 3 and part not in ours]
    assert absent == []
    assert len(quoted(ROOT / "docs/TROUBLESHOOTING.md")) >= 25
