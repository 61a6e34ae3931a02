"""Python's keywords: each setting with its type and default, in the function and in the stub."""

import inspect
import re
from pathlib import Path

import pytest

import unfreeze
from unfreeze.cli.registry import settings_class
from unfreeze.cli.stub import document
from unfreeze.config.field import settings_of

VERBS = ["cache", "compare", "demo", "embed", "evaluate", "export", "finetune", "predict"]
VERBS += ["pretrain", "report", "scan", "show", "summary"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_signature_lists_every_setting_with_type_and_default(verb):
    function = getattr(unfreeze, verb)
    known = inspect.signature(function).parameters
    for name, (spec, _, default) in settings_of(settings_class(verb)).items():
        if name in ("json", "debug"):
            assert name not in known  # of the command line alone
            continue
        one = known[name]
        assert one.annotation is not inspect.Parameter.empty
        if one.kind is inspect.Parameter.KEYWORD_ONLY:
            assert one.default == default and not spec.positional
        first = re.split(r"--| \(auto:|DATA", spec.help)[0]  # as Python's words go on from there
        assert f"    {name}: {first}" in function.__doc__
    assert known["progress"].default is None
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())


def test_help_is_in_the_words_of_python():
    for verb in VERBS:
        assert not re.search(r"--[a-z]|\(auto:", getattr(unfreeze, verb).__doc__), verb
    said = inspect.getdoc(unfreeze.finetune)
    assert "\n    lr: peak learning rate, after the warm-up.\n" in said
    assert "    resume: resume from the last checkpoint" in said and "'auto', True." in said


def test_choices_are_literals_and_flags_are_bools():
    known = inspect.signature(unfreeze.finetune).parameters
    assert str(known["optimizer"].annotation) == "typing.Literal['auto', 'sgd', 'adamw', 'lars']"
    assert known["overwrite"].annotation is bool
    assert "bool" in str(known["resume"].annotation) and "auto" in str(known["resume"].annotation)
    assert "PathLike" in str(known["out"].annotation)


def test_the_stub_is_made_from_the_settings():
    """`make docs` writes it; an editor completes from it, a type checker goes by it."""
    stub = Path(unfreeze.__file__).with_name("__init__.pyi")
    assert stub.read_text(encoding="utf-8") == document()


def test_a_type_checker_knows_names_types_and_results(tmp_path, monkeypatch):
    from mypy import api

    stub = document()  # with classes of the same names: torch need not be read for them
    stub = re.sub(r"^from unfreeze import swav.*$", "", stub, flags=re.M)
    stub = re.sub(r"^from unfreeze\..* as ([A-Z]\w+)$", r"class \1: ...", stub, flags=re.M)
    stub = re.sub(r"^from unfreeze\..* as ([a-z]\w+)$", r"def \1() -> None: ...", stub, flags=re.M)
    (tmp_path / "unfreeze").mkdir()
    (tmp_path / "unfreeze" / "__init__.pyi").write_text(stub)
    program = tmp_path / "program.py"
    program.write_text(
        "import unfreeze\n"
        "made = unfreeze.finetune('d', out='r', freeze='all', epochs=3, progress=False)\n"
        "reveal_type(made)\n"
        "reveal_type(unfreeze.finetune('d', dry_run=True))\n"
        "unfreeze.finetune('d', frezze='all')\n"
        "unfreeze.finetune('d', optimizer='adam')\n"
        "unfreeze.scan('d', workers='two')\n"
    )
    monkeypatch.setenv("MYPYPATH", str(tmp_path))
    said, _, _ = api.run(["--config-file=", f"--cache-dir={tmp_path / 'cache'}", str(program)])
    lines = said.splitlines()
    assert any(":3:" in line and "FinetuneResult" in line for line in lines), said
    assert any(":4:" in line and "FinetunePlan" in line for line in lines), said
    assert all(any(f":{n}: error" in line for line in lines) for n in (5, 6, 7)), said
    assert not any(f":{n}: error" in line for line in lines for n in (2, 3, 4)), said
