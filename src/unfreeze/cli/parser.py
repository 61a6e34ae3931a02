"""Argument parsers generated from the settings classes.

Values are passed on as text; `unfreeze.config.layering` checks types, choices and bounds. Only
flags that were typed are passed on, so that a settings file can come between the defaults and the
command line.
"""

import argparse
import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from unfreeze import __version__
from unfreeze.cli.registry import EXAMPLES, SETTINGS, description, settings_class
from unfreeze.config.field import Setting, flag, settings_of, split_type
from unfreeze.config.layering import load_settings
from unfreeze.errors import UsageError
from unfreeze.runtime.text_layout import command_lines, facts, wrapped

GROUPS = {
    "basic": "basic options",
    "options": "options",
    "model": "model: layers, weights, normalisation",
    "training": "training: optimizer, schedule, augmentation, regularisation",
    "multilabel": "several labels for an image: where they are",
    "segmentation": "segmentation: masks",
    "text-classification": "text classification: columns and tokens",
    "cache": "feature cache",
    "swav": "SwAV: crops, assignments, learning rate",
    "data": "data: labels, splits, decoding, pixel cache",
    "run": "run: checkpoints, time, trackers",
    "machine": "machine: device, precision, workers",
    "call": "call",
}
WIDEST, USUAL = 98, 80  # columns of the help: maximum, and default
LONGEST = 40  # columns of choices shown beside their flag; longer ones are listed in its help


class _Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        sentence = message[:1].upper() + message[1:]
        raise UsageError(f"{sentence.rstrip('.')}.", f"See {self.prog} --help.")


class _Help(argparse.HelpFormatter):
    """Breaks lines between words only, never inside flags or choices."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(wrapped(indent + " ".join(text.split()), width))


def _format(width: int | None) -> Callable[[str], argparse.HelpFormatter]:
    wide = min(WIDEST, width or USUAL)
    return partial(_Help, max_help_position=34 if wide >= 80 else 24, width=wide)


def overview(width: int | None = None) -> str:
    """The help of `unfreeze` alone: one line for each command."""
    wide = min(WIDEST, width or USUAL)
    verbs = facts([(f"  {verb}", description(verb)) for verb in SETTINGS], wide)
    about = (
        "Image classifiers from unlabelled images and a few labels: SwAV pretraining, then "
        "transfer learning."
    )
    more = f"`unfreeze COMMAND --help` lists the options of a command. Version {__version__}."
    return "\n".join(
        [
            "usage: unfreeze COMMAND ...",
            "",
            *wrapped(about, wide),
            "",
            "commands:",
            *verbs,
            "",
            *wrapped(more, wide),
        ]
    )


def known_command(word: str) -> str:
    """`word` if it is a command; else UsageError with the closest match."""
    if word in SETTINGS:
        return word
    close = difflib.get_close_matches(word, SETTINGS, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Commands: {', '.join(SETTINGS)}."
    raise UsageError(f"Unknown command {word!r}.", hint)


def command_parser(verb: str, width: int | None = None) -> argparse.ArgumentParser:
    """The argparse parser of one command; its namespace has only the flags that were typed.

    `width`: of the help, in columns.
    """
    parser = _Parser(
        prog=f"unfreeze {verb}",
        usage="\n       ".join(wrapped(usage(verb), min(WIDEST, width or USUAL) - len("usage: "))),
        description=description(verb),
        epilog="[auto]: derived from the images or the weights; --dry-run shows the reason.",
        formatter_class=_format(width),  # type: ignore[arg-type]  # it is only called
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for name, entry in in_order_of_help(settings_of(settings_class(verb))).items():
        if entry[0].positional:
            _add_positional(parser, name, entry)
        else:
            _add_flag(groups[help_group(entry[0])], name, entry)
    groups["call"].add_argument("-h", "--help", action="store_true", help="show this help and exit")
    return parser


def help_group(spec: Setting) -> str:
    """The key of the group of options that a setting is shown in."""
    return "basic" if spec.basic else spec.group


def in_order_of_help(
    known: dict[str, tuple[Setting, Any, Any]],
) -> dict[str, tuple[Setting, Any, Any]]:
    """Settings as in the help: by group, basic ones by their rank."""
    order = list(GROUPS)
    return dict(
        sorted(
            known.items(), key=lambda pair: (order.index(help_group(pair[1][0])), pair[1][0].basic)
        )
    )


def usage(verb: str) -> str:
    """`unfreeze finetune DATA... --out RUN [options]`."""
    known = settings_of(settings_class(verb))
    words = [
        f"{name.upper()}..." if split_type(kind)[1] else name.upper()
        for name, (spec, kind, _) in known.items()
        if spec.positional
    ]
    words += [f"{s.flag(name)} {s.metavar}" for name, (s, _, _) in known.items() if s.needed]
    return " ".join(["unfreeze", verb, *words, "[options]"])


def help_text(verb: str, width: int | None = None) -> str:
    """The help of a command: its options and examples."""
    wide = min(WIDEST, width or USUAL)
    examples = [
        description
        for example in EXAMPLES[verb]
        for description in command_lines(f"unfreeze {example}", wide)
    ]
    return "\n".join(
        [command_parser(verb, width).format_help().rstrip(), "", "examples:", *examples]
    )


def _add_positional(
    parser: argparse.ArgumentParser, name: str, entry: tuple[Setting, Any, Any]
) -> None:
    many = split_type(entry[1])[1]
    parser.add_argument(
        name, nargs="*" if many else "?", metavar=name.upper(), help=_plain(entry[0].help)
    )


def _add_flag(group: Any, name: str, entry: tuple[Setting, Any, Any]) -> None:
    spec, kind, _ = entry
    scalar, many, _ = split_type(kind)
    shape: dict[str, Any] = {"metavar": _metavar(scalar, spec)}
    if scalar is bool and not spec.verbatim:
        shape = {"action": "store_const", "const": "true"}
    elif many and not spec.choices:
        shape["nargs"] = "+"
    elif spec.bare is not None:
        shape["nargs"] = "?"
    group.add_argument(spec.flag(name), dest=name, help=_plain(help_with_default(entry)), **shape)
    if spec.flag(name) != flag(name):  # with dashes it is understood too
        group.add_argument(flag(name), dest=name, help=argparse.SUPPRESS, **shape)


def _metavar(scalar: Any, spec: Setting) -> str:
    if spec.bare is not None:
        return "|".join(choice for choice in spec.choices if choice != spec.bare)
    if spec.metavar:
        return spec.metavar
    if spec.choices and len(choices := "{" + ",".join(spec.words) + "}") <= LONGEST:
        return choices
    if spec.choices:
        return "NAME"
    return {int: "N", float: "X", bool: "{true,false}"}.get(scalar, "TEXT")


def help_with_default(entry: tuple[Setting, Any, Any]) -> str:
    """A setting's help with its default; `auto` for derived values."""
    shown, help = default_text(entry), entry[0].help
    shape = _metavar(split_type(entry[1])[0], entry[0])
    if entry[0].choices and entry[0].bare is None and not shape.startswith("{"):
        help += f"; one of: {', '.join(entry[0].words)}"
    return help if not shown or "(auto:" in help else f"{help} [{shown}]"


def default_text(entry: tuple[Setting, Any, Any]) -> str:
    """The default as text for the command line; "" for flags that are off."""
    spec, kind, default = entry
    if spec.positional or (split_type(kind)[0] is bool and not spec.verbatim):
        return ""
    if default is None:
        # options of the call are not derived from anything: no default to show
        return "" if spec.cli_only else spec.unset
    if isinstance(default, bool):
        return str(default).lower()
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _plain(text: str) -> str:
    return text.replace("%", "%%")  # argparse formats help with %


def parse(verb: str, argv: Sequence[str]) -> Any:
    """The command's settings: defaults <- the file of --config <- the command line."""
    cls = settings_class(verb)
    given = typed_values(verb, argv)
    settings = load_settings(cls, given)
    for name, (spec, _, _) in settings_of(cls).items():
        if spec.positional and not getattr(settings, name):
            raise UsageError(
                f"unfreeze {verb} needs {name.upper()}: {spec.help}.",
                f"See unfreeze {verb} --help.",
            )
    return settings


def typed_values(verb: str, argv: Sequence[str]) -> dict[str, Any]:
    """Name -> text of each flag on the command line; UsageError for an unknown flag."""
    known = settings_of(settings_class(verb))
    namespace, rest = command_parser(verb).parse_known_intermixed_args(_spelled_out(argv, known))
    if rest:
        raise _unknown(verb, rest, [spec.flag(name) for name, (spec, _, _) in known.items()])
    given = {}
    for name, value in vars(namespace).items():
        entry = known[name]
        if value is None or value == []:
            continue  # a positional that was not given
        is_text = split_type(entry[1])[0] is str
        given[name] = value if isinstance(value, str) or is_text else " ".join(value)
    return given


def _spelled_out(argv: Sequence[str], known: dict[str, tuple[Setting, Any, Any]]) -> list[str]:
    # `--resume DATA` must not consume DATA: a flag with an optional value gets its default here
    bare = {spec.flag(name): spec for name, (spec, _, _) in known.items() if spec.bare is not None}
    spelled = []
    for word, after in zip(argv, [*argv[1:], ""], strict=False):
        alone = word in bare and after not in bare[word].choices
        spelled.append(f"{word}={bare[word].bare}" if alone else word)
    return _joined(spelled, known)


def _joined(argv: Sequence[str], known: dict[str, tuple[Setting, Any, Any]]) -> list[str]:
    # `--logger wandb mlflow DATA`: a list of choices ends at the first word that is not a choice
    lists = {
        spec.flag(name): set(spec.choices)
        for name, (spec, kind, _) in known.items()
        if spec.choices and split_type(kind)[1]
    }
    joined: list[str] = []
    current = ""  # the flag whose list is being read
    for word in argv:
        continues = current and set(word.split(",")) <= lists[current]
        if continues and joined[-1] != current:
            joined[-1] += f",{word}"
        else:
            joined.append(word)
        current = word if word in lists else current if continues else ""
    return joined


def _unknown(verb: str, rest: Sequence[str], flags: Sequence[str]) -> UsageError:
    word = next((w for w in rest if w.startswith("-")), rest[0]).split("=")[0]
    if not word.startswith("-"):
        return UsageError(
            f"unfreeze {verb}: unexpected argument {word!r}.",
            f"See unfreeze {verb} --help.",
        )
    close = difflib.get_close_matches(word, flags, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"See unfreeze {verb} --help."
    return UsageError(f"unfreeze {verb} has no flag {word}.", hint)
