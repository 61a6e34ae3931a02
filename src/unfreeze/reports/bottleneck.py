"""Reports a run's throughput bottleneck in one sentence, from its metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

DATA_BOUND_SHARE = 0.2  # from this share of the time on, data loading is the bottleneck
_NEGLIGIBLE = 0.05


@dataclass(frozen=True)
class ThroughputSettings:
    """Settings of a run that affect its throughput.

    `store`: the pixel cache, `memory`, `disk` or `none`; `views`: where crops are computed, on the
    `device` or the `host`; `processors`: CPUs available to the workers.
    """

    device: str
    precision: str
    workers: int
    processors: int
    store: str
    views: str

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "ThroughputSettings | None":
        """From the facts in a run's config.toml; None if any is missing."""
        names = [field.name for field in fields(cls)]
        if any(name not in facts for name in names):
            return None
        device = str(facts["device"]).partition(":")[0]
        return cls(**{**{name: facts[name] for name in names}, "device": device})


def data_and_step_seconds(records: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """(seconds waiting for data, seconds in steps) over all training records; None without any.

    A record is the mean over the steps since the previous one. The first is dropped as warm-up if
    there are others.
    """
    train = [record for record in records if record.get("split") == "train"]
    timed = [r for r in train if "seconds_data" in r and "seconds_step" in r]
    data = step = 0.0
    before = 0
    for index, record in enumerate(timed):
        steps, before = record["step"] - before, record["step"]
        if index or len(timed) == 1:
            data += steps * record["seconds_data"]
            step += steps * record["seconds_step"]
    return (data, step) if data + step > 0 else None


def bottleneck(records: Sequence[Mapping[str, Any]], where: ThroughputSettings | None) -> str:
    """The sentence, with advice if `where` is given; "" if nothing was timed."""
    seconds = data_and_step_seconds(records)
    if seconds is None:
        return ""
    data, step = seconds
    share = data / (data + step)
    if share >= DATA_BOUND_SHARE:
        sentence = f"Waiting for data took {_percent(share)} of the time"
        advice = _data_advice(where) if where else ""
    else:
        sentence = f"The network took {_percent(1 - share)} of the time"
        if share >= _NEGLIGIBLE:
            sentence += f", waiting for data {_percent(share)}"
        advice = _network_advice(where) if where else ""
    return f"{sentence}: {advice}." if advice else f"{sentence}."


def _data_advice(where: ThroughputSettings) -> str:
    ways = []
    most = where.processors - (1 if where.device == "cpu" else 0)
    if where.views == "host" and where.workers < most:
        ways.append(f"--workers {min(most, max(1, 2 * where.workers))}")
    if where.store == "none":
        ways.append("--store memory or disk")
    if not ways:
        return "fewer or smaller crops (--nmb-crops, --image-size) or more processors would help"
    return f"{' and '.join(ways)} would help"


def _network_advice(where: ThroughputSettings) -> str:
    ways = ["a smaller --arch", "smaller crops (--image-size)"]
    if where.device == "cpu":
        ways.insert(0, "a GPU")
    else:
        ways.append("more GPUs (torchrun)")
        if where.precision == "fp32":
            ways.insert(0, "--precision auto")
    return f"{', '.join(ways[:-1])} or {ways[-1]} would make it faster"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
