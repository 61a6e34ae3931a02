"""The front door: what stands on it, and that it costs nothing to open."""

import importlib
import subprocess
import sys
import types

import pytest

import unfreeze

VERBS = [
    "audit",
    "cache",
    "compare",
    "demo",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "label",
    "load",
    "predict",
    "pretrain",
    "report",
    "scan",
    "show",
    "suggest",
    "summary",
]
MODULES = {"load": "predict"}  # each other verb has a module of its name
HEAVY = ("torch", "numpy", "PIL", "matplotlib", "rich", "cv2", "jinja2")


def in_a_fresh_interpreter(code):
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_the_list_is_locked():
    errors = [n for n in unfreeze.__all__ if n.endswith("Error") or n == "Interrupted"]
    assert sorted(unfreeze.__all__) == sorted([*VERBS, *errors, "swav"])
    assert set(unfreeze.__all__) <= set(dir(unfreeze))


def test_import_is_instant():
    seen = in_a_fresh_interpreter(
        f"import sys, unfreeze; print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert seen.strip() == "[]"


def test_help_imports_nothing_heavy():
    seen = in_a_fresh_interpreter(
        "import io, sys\n"
        "from unfreeze.cli.main import main\n"
        "from unfreeze.runtime.terminal import Environment\n"
        "world = Environment(io.StringIO(), io.StringIO())\n"
        "assert main(['--help'], world) == main(['pretrain', '--help'], world) == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert seen.strip() == "[]"


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        unfreeze.pretrian  # noqa: B018


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_a_function(name):
    verb = getattr(unfreeze, name)
    assert isinstance(verb, types.FunctionType)
    assert verb.__module__ == f"unfreeze.commands.{MODULES.get(name, name)}"


def test_rooms_do_not_hide_verbs():
    """Importing a room puts its name on the package: it must not be a verb's name."""
    rooms = "reports checkpoints models data config runtime transfer swav evaluation optim cli"
    for room in [*rooms.split(), "exports", "runs", "experiments", "commands"]:
        importlib.import_module(f"unfreeze.{room}")
    for name in VERBS:
        importlib.import_module(f"unfreeze.commands.{MODULES.get(name, name)}")
    assert all(callable(getattr(unfreeze, name)) for name in VERBS)
    assert callable(unfreeze.swav.sinkhorn)


def test_every_verb_of_the_command_line_works_from_a_settings_object():
    from unfreeze.cli.registry import SETTINGS, command_function

    assert all(callable(command_function(verb)) for verb in SETTINGS)


@pytest.mark.parametrize(
    ("verb", "given"),
    [
        ("scan", ["data"]),
        ("show", ["data"]),
        ("pretrain", ["data"]),
        ("finetune", ["data"]),
        ("compare", ["data", ["none", "imagenet"]]),
        ("evaluate", ["run", "data"]),
        ("predict", ["run", "image.png"]),
        ("embed", ["run", "data", "f.npz"]),
        ("summary", ["unfreeze/tiny"]),
        ("export", ["run", "safetensors", "out"]),
        ("report", ["run"]),
        ("demo", []),
        ("cache", []),
    ],
)
def test_the_keyword_config_is_read_as_the_flag_is(verb, given, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("no-such-setting = 1\n")
    with pytest.raises(unfreeze.UsageError, match="no_such_setting"):
        getattr(unfreeze, verb)(*given, config=str(file))


def test_keywords_go_above_the_file_of_the_keyword_config(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('classes = 7\nfreeze = "all"\n')
    told = unfreeze.summary("unfreeze/tiny", config=file)
    asked = unfreeze.summary("unfreeze/tiny", classes=3, config=file)
    assert told.parameters_trainable / asked.parameters_trainable == 7 / 3
