"""Builds settings: defaults <- TOML file <- command line or keywords; reads and writes TOML."""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from unfreeze import __version__
from unfreeze.config.field import Setting, coerce, flag, settings_of
from unfreeze.errors import UsageError
from unfreeze.text import as_name, as_text, clean_names, decode_text

S = TypeVar("S")
MARK = "# unfreeze"  # first characters of every run's config.toml
FACT_TABLES = ("reasons", "facts", "tuned")  # tables of config.toml that are not settings


def build(cls: type[S], given: Mapping[str, Any]) -> S:
    """A settings object; UsageError for unknown names, wrong types or values out of bounds."""
    known = settings_of(cls)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Settings: {', '.join(known)}."
            raise UsageError(f"Unknown setting {name!r}.", hint)
    return cls(**{name: coerce(name, value, known[name]) for name, value in given.items()})


def load_settings(cls: type[S], given: Mapping[str, Any]) -> S:
    """Settings: defaults <- the TOML file `given["config"]` <- `given`.

    Without `config`, a resumed run reads its own config.toml.
    """
    known = settings_of(cls)
    paths = {name for name in ("config", "out") if name in known and given.get(name) is not None}
    given = {**given, **{name: coerce(name, given[name], known[name]) for name in paths}}
    config = given.get("config")
    if config is None and given.get("resume") and given.get("out"):
        path = Path(given["out"]) / "config.toml"
        if os.path.isfile(path):  # noqa: PTH113 - also False for a name that the system rejects
            return build(cls, {**_settings_of_run(cls, path), **given})
    return build(cls, {**(read_toml(config) if config else {}), **given})


def _settings_of_run(cls: type, path: Path) -> dict[str, Any]:
    if not is_run_config(path):
        raise UsageError(
            f"--resume: {path} is not the config.toml of a run; nothing was changed.",
            "Give the run's folder, or a new one.",
        )
    settings = read_run_config(path)
    unknown = sorted(set(settings) - set(settings_of(cls)))
    if unknown:
        raise UsageError(
            f"{path.parent} is a run of another command: it has the setting {flag(unknown[0])}.",
            "Resume it with that command, or use another --out.",
        )
    return settings


def read_toml(path: str) -> dict[str, Any]:
    """The settings in a TOML file; keys may be kebab-case or snake_case."""
    try:
        loaded = tomllib.loads(decode_text(Path(path).read_bytes()))
    except OSError as error:
        raise UsageError(f"The settings file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The settings file {path} is not TOML: {error}.") from error
    return {k.replace("-", "_"): v for k, v in loaded.items() if k not in FACT_TABLES}


def read_run_config(path: Path) -> dict[str, Any]:
    """The settings in a run's config.toml; paths decoded as `to_toml` encoded them."""
    return {name: _texts(as_name, value) for name, value in read_toml(str(path)).items()}


def as_dict(settings: Any) -> dict[str, Any]:
    """The settings without the options of the call; tuples as lists."""
    known = settings_of(type(settings))
    return {
        name: _listed(value, known[name][0])
        for name, value in dataclasses.asdict(settings).items()
        if not known[name][0].cli_only
    }


def _listed(value: Any, spec: Setting) -> Any:
    if not isinstance(value, tuple):
        return value
    return value[0] if spec.whole and len(value) == 1 else list(value)


def to_toml(settings: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of a run's config.toml: one line per setting, then `tables`.

    TOML has no null: None is written as a comment and reads back as the default.
    """
    import tomli_w

    lines = [f"{MARK} {__version__}: the settings of a run, and what was measured and chosen\n"]
    lines += [
        f"# {key} is not set\n"
        if value is None
        else tomli_w.dumps({key: _texts(as_text, _plain(value))})
        for key, value in settings.items()
    ]
    return "".join(lines) + "\n" + tomli_w.dumps(_nested(tables))


def _nested(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Nested tables; a dot in a title separates a table from the one inside it."""
    root: dict[str, Any] = {}
    for title, table in tables.items():
        node = root
        for part in title.split("."):
            node = node.setdefault(part, {})
        node |= clean_names(_plain(table))
    return root


def is_run_config(path: Path) -> bool:
    """Whether the file is a run's config.toml; OSError if it cannot be read."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARK) + 1) == f"{MARK} ".encode()


def _texts(change: Callable[[str], str], value: Any) -> Any:
    """The value with `change` applied to every string in it."""
    if isinstance(value, str):
        return change(value)
    return [_texts(change, item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """The value as TOML types; None as "auto"."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return "auto" if value is None else value
