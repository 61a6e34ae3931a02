"""A table of runs: each in its own folder, trained once, with its result stored in that folder."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from unfreeze.config.field import flag
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import as_dict
from unfreeze.errors import DataError, Interrupted, UsageError
from unfreeze.runs.finetuning.resume import FREE
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console
from unfreeze.runtime.distributed import Distributed
from unfreeze.text import clean_all

RESULT_FILE = "experiment.json"


@dataclass(frozen=True)
class RunSpec:
    """A row of the table: the run's name in messages, its folder, and its settings."""

    name: str
    folder: Path
    settings: FinetuneSettings

    def result_settings(self) -> dict[str, Any]:
        """The settings that determine the result, as JSON values."""
        values = clean_all(as_dict(self.settings))
        return {name: values[name] for name in values if name not in FREE | {"repeats"}}


Spec = TypeVar("Spec", bound=RunSpec)
Result = TypeVar("Result")


def stored_result(spec: RunSpec, from_record: Callable[[dict[str, Any]], Result]) -> Result | None:
    """The stored result of a finished run; None if the run is not finished.

    `from_record` makes it from its JSON fields. UsageError if it was trained with other settings,
    DataError if the file cannot be read.
    """
    path = spec.folder / RESULT_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        result, settings = from_record(record["result"]), dict(record["settings"])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", "Remove its folder to train this run again."
        ) from error
    for name, old, new in changed_settings(settings, spec.result_settings()):
        raise UsageError(
            f"{spec.folder.name} was trained with {flag(name)} {old}, not {new}.",
            "Use the same value, or a new --out.",
        )
    return result


def changed_settings(
    old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """(name, old value, new value) of each setting that differs, `free` ones excepted."""
    for name, value in new.items():
        if name not in free and old.get(name) != value:
            yield name, old.get(name), value


def run_all(
    specs: Sequence[Spec],
    run_one: Callable[[Spec], Result],
    from_record: Callable[[dict[str, Any]], Result],
    console: Console,
    *,
    summary: Callable[[Result], str],
    stopped: Callable[[int, Interrupted], str],
    resume: str,
    finished: str = "",
    processes: Distributed | None = None,
) -> list[Result]:
    """The results of all runs in order; runs without a stored result are run, and it is stored.

    Collective. Says one line per run: its number, its name, the `summary` of its result, and
    `finished` if it was stored. A run that is interrupted raises Interrupted with the sentence
    `stopped(number, error)` and the next step `resume`. `from_record` and errors: as in
    `stored_result`.
    """
    processes, results = processes or Distributed(), []
    stored = processes.on_rank_zero(lambda: [stored_result(spec, from_record) for spec in specs])
    for number, (spec, result) in enumerate(zip(specs, stored, strict=True), 1):
        mark = "" if result is None else finished
        if result is None:
            try:
                result = run_one(spec)
            except Interrupted as error:
                raise Interrupted(stopped(number, error), resume) from error
            processes.on_rank_zero(partial(_store, spec, result))
        results.append(result)
        console.say(f"{number}/{len(specs)} {spec.name}: {summary(result)}{mark}")
    return results


def _store(spec: RunSpec, result: Any) -> None:
    record = {"settings": spec.result_settings(), "result": asdict(result)}
    write_json(spec.folder / RESULT_FILE, record)
