"""Files for people and their tools: what they name exists, and says what the code says."""

import io
import json
import os
import re
import shlex
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import unfreeze
from unfreeze.cli.main import main
from unfreeze.cli.registry import SETTINGS
from unfreeze.runtime.terminal import Environment

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALL = (ROOT / "docs/INSTALL.md").read_text(encoding="utf-8")


def package_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_every_extra_is_documented_with_what_it_adds():
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", INSTALL, flags=re.M)
    extras = PROJECT["optional-dependencies"]
    assert [name for name, _ in rows if name != "dev"] and {name for name, _ in rows} == set(extras)
    for name, adds in rows:
        if name != "dev":
            assert set(adds.strip().split(", ")) == {package_of(r) for r in extras[name]}, name


def test_the_extras_that_errors_name_exist():
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        named |= set(re.findall(r"unfreeze\[([a-z0-9]+)\]", path.read_text(encoding="utf-8")))
    assert named and named <= set(PROJECT["optional-dependencies"])


def test_the_python_version_is_that_of_the_package():
    version = PROJECT["requires-python"].removeprefix(">=")
    assert INSTALL.splitlines()[2].startswith(f"Python {version} or newer")


def test_commands_in_the_page_exist():
    words = re.findall(r"^(?:\S*/)?unfreeze (\w+)", INSTALL, flags=re.M)
    assert words and set(words) <= set(SETTINGS)


def test_the_citation_is_of_this_version():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert about["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(about)
    assert str(about["version"]) == PROJECT["version"] == unfreeze.__version__
    assert about["license"] == PROJECT["license"]
    (paper,) = about["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2006.09882"


@pytest.mark.parametrize("name", ["bug", "wish"])
def test_issue_forms_are_forms(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text("utf-8"))
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(part["type"] in ("input", "textarea", "markdown") for part in form["body"])
    assert all(part["attributes"]["label"] for part in form["body"])
    assert "unfreeze --version" in (ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text("utf-8")


def test_hooks_are_local_and_their_programs_are_those_of_make_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in hooks["repos"][0]["hooks"]:
        program, *words = shlex.split(hook["entry"])
        assert hook["language"] == "system" and program.startswith(".venv/bin/")
        line = " ".join([program.replace(".venv/bin/", "$(BIN)/"), *words])
        assert line.replace(" --force-exclude", "") in makefile
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))


# --- Dockerfile -------------------------------------------------------------------------------


def instructions():
    """(instruction, its rest) of each line of the Dockerfile, lines that continue joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_what_the_image_copies_is_there_and_not_ignored():
    copied = [s for name, rest in instructions() if name == "COPY" for s in rest.split()[:-1]]
    assert copied and all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored and {f"!{source}" for source in copied} <= set(ignored)
    # all that the build of the package needs
    needed = {"pyproject.toml", "src", PROJECT["readme"], *PROJECT["license-files"]}
    assert needed <= set(copied)


@pytest.mark.parametrize("index", ["", "https://wheels.example/cpu"])
def test_the_steps_of_the_image_run_as_a_shell_script(index, tmp_path):
    """With programs that record how they are called: pip's downloads are not tested."""
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "unfreeze"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n')
        (programs / name).chmod(0o755)
    folder = tmp_path / "root"
    folder.mkdir()
    steps = [rest for name, rest in instructions() if name == "RUN"]
    script = "\n".join(steps).replace(" /home/", f" {folder}/").replace(" /work", f" {folder}/work")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "TORCH_INDEX": index}
    subprocess.run(["sh", "-eu", "-c", script], env=environment, check=True)
    asked = log.read_text().splitlines()
    expected = f"--index-url {index} torch torchvision" if index else "txt torch torchvision"
    assert len(asked) == 3 and asked[0].endswith(expected)
    assert asked[1].endswith(" /source") and asked[2] == "unfreeze --version"
    assert all(stat.S_IMODE(made.stat().st_mode) == 0o1777 for made in folder.iterdir())


def test_the_image_starts_a_command_and_names_no_index():
    said = dict(instructions())
    words = [*json.loads(said["ENTRYPOINT"]), *json.loads(said["CMD"])]
    assert words[0] in PROJECT["scripts"]
    out = io.StringIO()
    assert main([*words[1:], "--help"], Environment(out, io.StringIO())) == 0
    assert said["ARG"] == 'TORCH_INDEX=""'  # an address is the user's choice
    assert "http" not in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    version = re.search(r"python:(3\.\d+)", said["FROM"])[1]
    assert tuple(map(int, version.split("."))) >= (3, 11)
