"""Settings from what people gave: defaults <- file <- command line or keywords."""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from unfreeze import __version__
from unfreeze.errors import UsageError
from unfreeze.settings.knob import Knob, coerce, flag, knobs
from unfreeze.text import as_name, as_text, clean_all, decoded

S = TypeVar("S")
MARK = "# unfreeze"  # how every settings file of a run begins
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
    known = knobs(cls)
    places = {name for name in ("config", "out") if name in known and given.get(name) is not None}
    given = {**given, **{name: coerce(name, given[name], known[name]) for name in places}}
    config = given.get("config")
    if config is None and given.get("resume") and given.get("out"):
        own = Path(given["out"]) / "config.toml"
        if os.path.isfile(own):  # noqa: PTH113 - False, too, for a name that no system takes
            return build(cls, {**_of_run(cls, own), **given})
    return build(cls, {**(read_toml(config) if config else {}), **given})


def _of_run(cls: type, own: Path) -> dict[str, Any]:
    if not is_own_toml(own):
        raise UsageError(
            f"--resume: {own} is not the settings file of a run: nothing was changed.",
            "Name the run's folder, or a new one.",
        )
    found = read_own_toml(own)
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
        loaded = tomllib.loads(decoded(Path(path).read_bytes()))
    except OSError as error:
        raise UsageError(f"The settings file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The settings file {path} is not TOML: {error}.") from error
    return {k.replace("-", "_"): v for k, v in loaded.items() if k not in FACT_TABLES}


def read_own_toml(path: Path) -> dict[str, Any]:
    """The settings in a run's config.toml, as `to_toml` wrote them: names as the system's."""
    return {name: _texts(as_name, value) for name, value in read_toml(str(path)).items()}


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
    """TOML text of a run: one line a setting, then one table for each of `tables`.

    TOML has no null: what is None stands there as a comment, and reads back as the default.
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
    """Tables by their titles; a dot in one means a table inside another."""
    whole: dict[str, Any] = {}
    for title, table in tables.items():
        place = whole
        for part in title.split("."):
            place = place.setdefault(part, {})
        place |= clean_all(_plain(table))
    return whole


def is_own_toml(path: Path) -> bool:
    """Whether the file is a run's config.toml; OSError where it cannot be read."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARK) + 1) == f"{MARK} ".encode()


def _texts(change: Callable[[str], str], value: Any) -> Any:
    """The value, every text in it changed."""
    if isinstance(value, str):
        return change(value)
    return [_texts(change, item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """What TOML knows: None as the word for "derived"."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return "auto" if value is None else value
