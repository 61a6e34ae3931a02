"""`init` writes what `--config` reads, shows each default as it is, and overwrites nothing."""

import io
import re
import tomllib

import pytest

from unfreeze.cli.init import settings_file
from unfreeze.cli.main import main
from unfreeze.cli.parser import parse
from unfreeze.cli.registry import SETTINGS, settings_class
from unfreeze.config.field import settings_of
from unfreeze.config.layering import read_toml
from unfreeze.runtime.terminal import Environment

NO_FILE = {"cache", "init", "completion"}  # nothing of theirs may stand in a file
VERBS = [verb for verb in SETTINGS if verb not in NO_FILE]


def call(*words):
    out, err = io.StringIO(), io.StringIO()
    code = main(list(map(str, words)), Environment(out, err))
    return code, out.getvalue(), err.getvalue()


def uncommented(text):
    return re.sub(r"^#(?! |$)", "", text, flags=re.M)


@pytest.mark.parametrize("verb", VERBS)
def test_all_uncommented_the_file_is_every_default(verb, tmp_path):
    file = tmp_path / "all.toml"
    file.write_text(uncommented(settings_file(verb)))
    known = settings_of(settings_class(verb))
    given = read_toml(str(file))
    yours = {
        name: value
        for name, value in given.items()
        if known[name][0].positional
        or known[name][0].needed
        or (value and value == known[name][0].metavar)
    }
    settings = parse(verb, ["--config", str(file)])  # positional ones come from the file too
    plain = {name: entry[2] for name, entry in known.items() if name not in yours}
    assert {name: getattr(settings, name) for name in plain} == {**plain, "config": str(file)}
    # a placeholder only where a value must be given, or where TOML has no word for "none"
    optional = [name for name in yours if not (known[name][0].positional or known[name][0].needed)]
    assert all(known[name][2] is None and known[name][0].path for name in optional), optional


@pytest.mark.parametrize("verb", VERBS)
def test_it_lists_every_setting_but_those_of_one_call(verb):
    listed = {key.replace("-", "_") for key in tomllib.loads(uncommented(settings_file(verb)))}
    left_out = set(settings_of(settings_class(verb))) - listed
    switches = {"resume", "overwrite", "dry_run", "no_browser", "improve_numerical_stability"}
    assert left_out <= {"config", "json", "debug", *switches}
    assert {"config", "json", "debug"} <= left_out


@pytest.mark.parametrize("verb", VERBS)
def test_as_written_it_sets_nothing(verb):
    text = settings_file(verb)
    assert tomllib.loads(text) == {}
    assert max(map(len, text.splitlines())) <= 100


def test_one_line_uncommented_is_what_a_run_does(tmp_path, colours, monkeypatch):
    monkeypatch.chdir(tmp_path)
    colours(tmp_path / "DATA", {"red": 6, "green": 6})
    assert call("init")[0] == 0
    file = tmp_path / "unfreeze.toml"
    plan = ["finetune", "DATA", "--arch", "unfreeze/tiny", "--weights", "none", "--dry-run"]
    assert call("init", "--out", "all.toml")[0] == 0
    every = tmp_path / "all.toml"
    every.write_text(uncommented(every.read_text()))
    code, plain, _ = call(*plan, "--json")
    assert code == 0
    assert call(*plan, "--json", "--config", every)[1] == plain  # all defaults: the same plan
    file.write_text(file.read_text().replace('#epochs = "auto"', "epochs = 3"))
    code, changed, _ = call(*plan, "--json", "--config", file)
    assert code == 0 and changed != plain and '"epochs": 3' in changed


def test_nothing_is_overwritten_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("init", "pretrain")
    assert code == 0 and "unfreeze pretrain --config unfreeze.toml" in out
    file = tmp_path / "unfreeze.toml"
    mine = file.read_text() + "epochs = 7\n"
    file.write_text(mine)
    code, _, err = call("init", "pretrain")
    assert code == 2 and "--overwrite" in err and file.read_text() == mine
    assert call("init", "pretrain", "--overwrite")[0] == 0
    assert file.read_text() == settings_file("pretrain")
    file.write_text("[tool.mine]\n")  # not written by init: not even with --overwrite
    assert call("init", "--overwrite")[0] == 2 and file.read_text() == "[tool.mine]\n"


@pytest.mark.parametrize(
    ("verb", "words"),
    [(verb, "has no settings for a file") for verb in sorted(NO_FILE)]
    + [("pretrian", "Did you mean 'pretrain'")],
)
def test_a_command_without_a_file_is_refused(verb, words, tmp_path):
    code, _, err = call("init", verb, "--out", tmp_path / "x.toml")
    assert code == 2 and words in err and not list(tmp_path.iterdir())
