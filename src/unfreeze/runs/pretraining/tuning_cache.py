"""The cache of `--tune`: the fastest settings measured on this machine, by network and batch."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from unfreeze import __version__
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.cache.folder import TUNING_CACHE
from unfreeze.errors import ResourceError
from unfreeze.runtime import atomic
from unfreeze.runtime.processor import cpu_quota, processor_capabilities, processor_name
from unfreeze.runtime.threads import threads_spin
from unfreeze.swav.throughput import LAYOUTS, StepConfig, StepTime, TuningResult, TuningScope

FORMAT = 1  # version of the entries and of the measurement
DAYS = 30  # other programs may have been busy, and drivers change: later it is measured again
MOST = 256  # entries; the oldest are removed

# settings that decide what a step computes; the others of the key describe the machine
_STEP_SETTINGS = (
    *("arch", "stem", "method", "optimizer", "image_size", "channels"),
    *("size_crops", "nmb_crops", "augment", "views_on", "store"),
    *("batch_size", "accumulate", "crops_for_assign"),
    *("nmb_prototypes", "clusterings", "hidden_mlp", "feat_dim"),
    *("precision", "workers"),
)


@dataclass(frozen=True)
class StoredTuning:
    """A stored measurement: the settings, their record for config.toml, and when.

    `measured`: (images, time) of the largest step measured with these settings; None if unknown.
    """

    way: StepConfig
    record: dict[str, Any]
    measured: tuple[int, StepTime] | None
    date: str  # 2026-11-29, in UTC

    @property
    def sentence(self) -> str:
        """Where the settings come from."""
        return f"measured on this machine on {self.date}"


def tuning_key(s: PretrainSettings, scope: TuningScope, device: torch.device) -> dict[str, Any]:
    """What a measurement depends on, as plain values; call it before threads are set.

    `s`: all settings, the derived ones included.
    """
    step = {name: getattr(s, name) for name in _STEP_SETTINGS}
    machine = {
        "format": FORMAT,
        "unfreeze": __version__,
        "torch": torch.__version__,
        "processor": processor_name(),
        "capabilities": processor_capabilities(),
        "processors": scope.processors,
        "quota": cpu_quota(),
        "threads": torch.get_num_threads(),
        "threads_spin": threads_spin(),
        "device": scope.device,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "precisions": scope.precisions,
        "given": dict(scope.given),
    }
    plain: dict[str, Any] = json.loads(json.dumps({**machine, "step": step}))
    return plain


def load_tuning(key: dict[str, Any]) -> StoredTuning | None:
    """The stored measurement; None if there is none, or it is damaged or older than `DAYS`."""
    try:
        entry = json.loads(_path(key).read_text(encoding="utf-8"))
        return _checked(entry, key)
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return None  # missing or damaged: it is measured and written again


def store_tuning(key: dict[str, Any], result: TuningResult) -> str:
    """Store a measurement, and remove old ones; returns why that failed, "" if it did not."""
    measured = result.measured
    entry = {
        "key": key,
        "seconds": time.time(),
        "record": result.record(key["device"]),
        "measured": [measured[0], measured[1].data, measured[1].step] if measured else None,
    }
    try:
        atomic.write_json(_path(key), entry)
        _remove_old()
    except (OSError, ResourceError) as error:
        return f"{error.strerror if isinstance(error, OSError) else error}"
    return ""


def _path(key: dict[str, Any]) -> Path:
    text = json.dumps(key, sort_keys=True)
    return TUNING_CACHE.folder / f"{hashlib.sha1(text.encode()).hexdigest()}.json"


def _checked(entry: dict[str, Any], key: dict[str, Any]) -> StoredTuning | None:
    """The entry if it can be used; LookupError, TypeError or ValueError if it is damaged."""
    record, measured, stored = entry["record"], entry["measured"], float(entry["seconds"])
    if entry["key"] != key or not 0 <= time.time() - stored <= DAYS * 86_400:
        return None
    way = StepConfig(**{name: record[name] for name in StepConfig.__dataclass_fields__})
    precisions = (*key["precisions"], key["step"]["precision"])
    most = max(key["processors"], key["threads"])
    exists = way.precision in precisions and way.precision != "auto" and way.layout in LAYOUTS
    if not (exists and way.threads in range(1, most + 1) and way.workers in range(most + 1)):
        raise ValueError("settings that do not exist")
    if not (_are_texts(record["reasons"]) and _are_texts(record["steps"])):
        raise ValueError("no figures")
    step = None
    if measured is not None:
        rows, data, seconds = int(measured[0]), float(measured[1]), float(measured[2])
        step = rows, StepTime(data, seconds)
    date = datetime.fromtimestamp(stored, UTC).strftime("%Y-%m-%d")
    plain = {
        **asdict(way),
        "device": key["device"],
        "probe_seconds": float(record["probe_seconds"]),
    }
    tables = {"reasons": record["reasons"], "steps": record["steps"]}
    return StoredTuning(way, {**plain, "cached": True, "measured_on": date, **tables}, step, date)


def _are_texts(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, str) for value in values.values())


def _remove_old() -> None:
    """Remove the entries that are too old, and the oldest above `MOST`."""
    entries = []
    for path in TUNING_CACHE.folder.glob("*.json"):
        try:
            entries.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue  # removed by another run
    newest = sorted(entries, reverse=True)
    for position, (seconds, path) in enumerate(newest):
        if position >= MOST or time.time() - seconds > DAYS * 86_400:
            path.unlink(missing_ok=True)
