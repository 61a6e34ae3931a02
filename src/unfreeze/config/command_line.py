"""Settings of `init` and `completion`, the commands about the command line itself."""

from dataclasses import dataclass

from unfreeze.config.field import setting
from unfreeze.config.shared import CallOptions

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class InitSettings(CallOptions):
    """Writes a settings file for --config: every setting of a command with default and help."""

    command: str = setting("finetune", "the command that the file is for", positional=True)
    out: str = setting(
        "unfreeze.toml",
        "the TOML file to write",
        cli_only=True,
        metavar="FILE",
        path="output",
        basic=1,
    )
    overwrite: bool = setting(
        False, "replace an earlier file of init, and what you changed in it", cli_only=True
    )


@dataclass(frozen=True)
class CompletionSettings(CallOptions):
    """Prints a script that completes commands, flags, choices and paths in a shell."""

    shell: str = setting(
        "", "the shell that completes: bash, zsh or fish", positional=True, choices=SHELLS
    )
