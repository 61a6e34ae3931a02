"""Completion in a shell: asked as bash asks it, of the script that `completion` prints."""

import io
import shlex
import shutil
import subprocess
import sys

import pytest

from unfreeze.cli.main import main
from unfreeze.cli.registry import SETTINGS, settings_class
from unfreeze.config.command_line import SHELLS
from unfreeze.config.field import settings_of
from unfreeze.runtime.terminal import Environment

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed")
TRY = """
source ./unfreeze.bash
COMP_WORDS=(%s) COMP_CWORD=%d COMPREPLY=()
_shtab_unfreeze
printf '%%s\\n' "${COMPREPLY[@]}"
"""


def call(*words):
    out, err = io.StringIO(), io.StringIO()
    code = main(list(map(str, words)), Environment(out, err))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def shell_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shell")
    code, script, _ = call("completion", "bash")
    assert code == 0
    (folder / "unfreeze.bash").write_text(script)
    (folder / "photos.zip").touch()
    (folder / "photos-run").mkdir()
    return folder


def completed(folder, *words):
    """What bash offers for the last of `words`."""
    script = TRY % (" ".join(map(shlex.quote, ("unfreeze", *words))), len(words))
    made = subprocess.run(
        [BASH, "--norc", "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    assert made.stderr == ""
    return set(made.stdout.split())


@needs_bash
def test_the_script_is_bash(shell_folder):
    subprocess.run([BASH, "-n", shell_folder / "unfreeze.bash"], check=True)


@needs_bash
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pre"], {"pretrain", "predict"}),
        ([""], set(SETTINGS)),
        (["pretrain", "--opt"], {"--optimizer"}),
        (["pretrain", "photos.zip", "--out", "photos-run", "--opt"], {"--optimizer"}),
        (["pretrain", "--optimizer", ""], {"larc", "adamw", "sgd"}),
        (["pretrain", "--optimizer", "a"], {"adamw"}),
        (["pretrain", "--resume", ""], {"auto"}),
        (["finetune", "photos"], {"photos.zip", "photos-run"}),
        (["finetune", "--weights", "photos"], {"photos.zip", "photos-run"}),
        (["pretrain", "photos.zip", "--out", "photos"], {"photos-run"}),
        (["compare", "photos.zip", "--weights", "none", "imagenet", "--ou"], {"--out"}),
        (["evaluate", "photos-run", "--spl"], {"--split", "--split-from"}),
        (["swav", "--use_fp16", ""], {"true", "false"}),
        (["init", "pretr"], {"pretrain"}),
        (["completion", ""], set(SHELLS)),
        (["--ver"], {"--version"}),
    ],
)
def test_bash_completes(shell_folder, words, expected):
    assert completed(shell_folder, *words) == expected


@needs_bash
def test_every_flag_of_every_command_is_offered(shell_folder):
    for verb in ("pretrain", "finetune", "predict", "swav"):
        known = settings_of(settings_class(verb)).items()
        flags = {spec.flag(name) for name, (spec, _, _) in known if not spec.positional}
        assert flags <= completed(shell_folder, verb, "--")


def test_a_method_of_another_package_is_offered(monkeypatch):
    monkeypatch.setattr("unfreeze.config.field.registered", lambda kind: {"simsiam": "a:B"})
    code, script, _ = call("completion", "bash")
    assert (
        code == 0
        and "_pretrain___method_choices=(swav deepcluster-v2 simclr distill auto simsiam)\n"
        in script
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_all_commands_and_flags(shell):
    """bash is asked above; of zsh and fish only that every flag is named."""
    code, script, err = call("completion", shell)
    assert (code, err) == (0, "")
    assert all(verb in script for verb in SETTINGS)
    assert "nmb-prototypes" in script and "nmb_crops" in script


def test_what_is_no_shell_is_refused():
    code, out, err = call("completion", "cmd")
    assert (code, out) == (2, "") and "SHELL does not accept 'cmd'" in err and "bash, zsh" in err
    assert call("completion")[0] == 2


def test_neither_imports_torch(tmp_path):
    code = (
        "import io, sys\n"
        "from unfreeze.cli.main import main\n"
        "from unfreeze.runtime.terminal import Environment\n"
        "world = Environment(io.StringIO(), io.StringIO())\n"
        "assert main(['completion', 'bash'], world) == main(['init'], world) == 0\n"
        "print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() == "[]"
