"""`init`: a commented settings file for `--config`, made of a command's settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfreeze import __version__
from unfreeze.cli.parser import GROUPS, help_group, in_order_of_help, known_command
from unfreeze.cli.registry import ABOUT_THE_COMMAND_LINE, EXAMPLES, description, settings_class
from unfreeze.config.command_line import InitSettings
from unfreeze.config.field import Setting, coerce, settings_of, split_type
from unfreeze.errors import UsageError
from unfreeze.runtime.atomic import write_text
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.output_files import check_output_file
from unfreeze.runtime.text_layout import wrapped

MARK = "# Settings of `unfreeze "  # first characters of every file that init writes
COLUMNS = 98
Entry = tuple[Setting, Any, Any]


@dataclass(frozen=True, repr=False)
class InitResult(Displayed):
    """The settings file `out` for `command`; `settings`: how many it lists."""

    out: str
    command: str
    settings: int

    def display(self) -> Display:
        """The content to display on a console."""
        lead = f"{self.settings} settings of {self.command}, all commented out: delete the # of a"
        return Display(
            lead=[f"{lead} line to set it."],
            files=[("settings", self.out)],
            next=[f"unfreeze {self.command} --config {self.out}"],
        )


def run_init(settings: InitSettings, console: Console) -> InitResult:
    """Write the file; UsageError for a command without settings, or if the file exists."""
    verb, known = settings.command, _settings_for_file(settings.command)
    path = check_output_file(settings.out, ours=_is_ours)
    if path.is_file() and path.stat().st_size and not settings.overwrite:
        raise UsageError(f"--out {settings.out} exists.", "Name a new file, or add --overwrite.")
    write_text(path, settings_file(verb))
    return InitResult(out=settings.out, command=verb, settings=len(known))


def settings_file(verb: str) -> str:
    """The text of the file: each setting as `#name = default` below its help.

    Lines of text begin with `# `, settings with `#`: without the `#` of every setting the file is
    TOML that `--config` accepts.
    """
    known = _settings_for_file(verb)
    intro = (
        f"{MARK.removeprefix('# ')}{verb}`, for --config (unfreeze {__version__}). "
        f"{description(verb)} Delete the # of a line to set it: each shows the default, or, below "
        'required, a word in capitals in place of yours. "auto" is derived from the data or the '
        "weights; --dry-run, where a command has it, shows the reason. Flags on the command line "
        "override this file."
    )
    lines = [*_comment(intro), "#", f"# For example: unfreeze {EXAMPLES[verb][-1]}"]
    group = ""
    for name, entry in known.items():
        title = "required" if _is_required(entry) else GROUPS[help_group(entry[0])]
        if title != group:
            lines += ["", "", *_comment(f"===== {title} =====")]
            group = title
        lines += ["", *_comment(_help(entry)), f"#{_assignment(name, entry)}"]
    return "\n".join(lines) + "\n"


def _settings_for_file(verb: str) -> dict[str, Entry]:
    """Name -> entry of each setting that may stand in a file, positional ones first.

    Options of a single call are left out (--json, --resume, --overwrite): a file that holds one
    would do it in every run.
    """
    known = settings_of(settings_class(known_command(verb)))
    kept = {
        name: entry
        for name, entry in in_order_of_help(known).items()
        if entry[0].group != "call" and not (entry[0].cli_only and _is_switch(entry))
    }
    if verb in ABOUT_THE_COMMAND_LINE or not kept:
        raise UsageError(
            f"unfreeze {verb} has no settings for a file.",
            "Name another command, such as pretrain or finetune.",
        )
    # sorted() is stable: DATA first, then what else a command needs, then the order of the help
    by_need = sorted(kept.items(), key=lambda pair: not _is_required(pair[1]))
    return dict(sorted(by_need, key=lambda pair: not pair[1][0].positional))


def _is_required(entry: Entry) -> bool:
    return entry[0].positional or entry[0].needed


def _is_switch(entry: Entry) -> bool:
    return split_type(entry[1])[0] is bool or entry[0].bare is not None


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrapped(text, COLUMNS - 2)]


def _help(entry: Entry) -> str:
    """Help, allowed values, and what is used if nothing is given."""
    spec, kind, default = entry
    text = spec.help
    if spec.choices:
        text += f"; one of: {', '.join(spec.words)}"
    if default is None and spec.unset not in ("auto", ""):
        text += f" [{spec.unset}]"
    return f"{text} (a list is allowed)" if split_type(kind)[1] else text


def _assignment(name: str, entry: Entry) -> str:
    """`name = default` as TOML; a word in capitals for what has no default."""
    spec, kind, default = entry
    value = default
    if _is_required(entry):
        value = spec.choices[0] if spec.choices else spec.metavar or name.upper()
        if split_type(kind)[0] is int:
            value = int(spec.low or 1)
    elif default is None:
        value = _word_for_none(name, entry)
    return f"{spec.flag(name).removeprefix('--')} = {_toml(value)}"


def _toml(value: Any) -> str:
    """The value in TOML, on one line."""
    import tomli_w

    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _word_for_none(name: str, entry: Entry) -> str:
    """TOML has no null: the word that means it here, or a placeholder where there is none."""
    spec = entry[0]
    for word in ("auto", spec.unset):
        if word and _is_none(name, word, entry):
            return word
    return spec.metavar or name.upper()


def _is_none(name: str, word: str, entry: Entry) -> bool:
    try:
        return coerce(name, word, entry) is None
    except UsageError:
        return False


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MARK.encode())) == MARK.encode()
