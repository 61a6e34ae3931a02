"""Settings from what people gave: defaults <- file <- command line or keywords."""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from unfreeze.errors import UsageError
from unfreeze.settings.knob import Knob, coerce, flag, knobs

S = TypeVar("S")
FACT_TABLES = ("reasons", "facts", "tuned")  # tables a run writes beside its settings; no knobs


def build(cls: type[S], given: Mapping[str, Any]) -> S:
    """A settings object; UsageError for unknown names, wrong types and values out of bounds."""
    known = knobs(cls)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
            raise UsageError(f"There is no setting {name!r} here.", hint)
    return cls(**{name: coerce(name, value, known[name]) for name, value in given.items()})


def layered(cls: type[S], given: Mapping[str, Any]) -> S:
    """Defaults <- the TOML file `config` in `given` <- `given`.

    A resumed run's own config.toml is its file, where none is named.
    """
    config = given.get("config")
    if config is None and given.get("resume") and given.get("out"):
        own = Path(str(given["out"])) / "config.toml"
        if own.exists():
            return build(cls, {**_of_run(cls, own), **given})
    return build(cls, {**(read_toml(config) if config else {}), **given})


def _of_run(cls: type, own: Path) -> dict[str, Any]:
    found = read_toml(str(own))
    strange = sorted(set(found) - set(knobs(cls)))
    if strange:
        raise UsageError(
            f"{own.parent} is the run of another verb: it was begun with {flag(strange[0])}.",
            "Resume it with that verb, or name another --out.",
        )
    return found


def read_toml(path: str) -> dict[str, Any]:
    """The settings in a TOML file; keys may be kebab-case or snake_case."""
    try:
        loaded = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The settings file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The settings file {path} is not TOML: {error}.") from error
    return {k.replace("-", "_"): v for k, v in loaded.items() if k not in FACT_TABLES}


def as_dict(settings: Any) -> dict[str, Any]:
    """The settings that say what to do (not how the call was made); several values as lists."""
    known = knobs(type(settings))
    return {
        name: _listed(value, known[name][0])
        for name, value in dataclasses.asdict(settings).items()
        if not known[name][0].cli_only
    }


def _listed(value: Any, spec: Knob) -> Any:
    if not isinstance(value, tuple):
        return value
    return value[0] if spec.whole and len(value) == 1 else list(value)


def to_toml(settings: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML text: one line a setting, then one table for each of `tables`.

    TOML has no null: what is None stands there as a comment, and reads back as the default.
    """
    lines = [
        f"# {key} is not set" if value is None else f"{key} = {_value(value)}"
        for key, value in settings.items()
    ]
    for title, table in tables.items():
        lines += ["", f"[{title}]", *(f"{json.dumps(k)} = {_value(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if value is None:
        return '"auto"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return json.dumps(value)
