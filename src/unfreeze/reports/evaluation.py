"""What the page says of an evaluation: figures with their doubts, and the worst mistakes."""

from dataclasses import dataclass
from typing import Any

from unfreeze.reports.findings import Findings
from unfreeze.reports.gallery import strip
from unfreeze.reports.interval import wilson

FIGURES = (
    ("balanced accuracy", "balanced_accuracy", True),
    ("macro-F1", "macro_f1", False),
    ("top-5", "top5", True),
    ("loss", "loss", False),
    ("calibration error", "calibration_error", True),
)


@dataclass(frozen=True)
class Mistake:
    """A picture that was taken for something else; `picture`: PNG or None."""

    path: str
    label: str
    predicted: str
    probability: float
    picture: bytes | None


def mistakes(findings: Findings) -> list[Mistake]:
    """The most certain ones first."""
    told = (findings.evaluation or {}).get("mistakes") or []
    return [
        Mistake(
            one["path"],
            one["label"],
            one["predicted"],
            one["probability"],
            strip([findings.mistaken[one["path"]]]) if one["path"] in findings.mistaken else None,
        )
        for one in told
    ]


def figures(evaluation: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    """(name, value, interval or "") of what stands beside the accuracy."""
    found = evaluation or {}
    rows = []
    for name, key, share in FIGURES:
        if found.get(key) is None:
            continue
        value = f"{100 * found[key]:.1f} %" if share else f"{found[key]:.3f}"
        rows.append((name, value, _range(found.get("balanced_interval")) if "bal" in key else ""))
    return rows


def notes(evaluation: dict[str, Any] | None) -> list[str]:
    """Sentences: which epoch, what the last one gives, temperature, uses of the test pictures."""
    found, said = evaluation or {}, []
    if found.get("last"):
        last = found["last"]
        said.append(
            f"These are the weights of epoch {found['epoch']}, selected on validation; those of "
            f"the last, {last['epoch']}, are {100 * last['accuracy']:.1f} % right "
            f"({_range(last['interval'])})."
        )
    if found.get("temperature"):
        warm = found["temperature"]
        said.append(
            f"A temperature of {warm['value']:.3g}, fitted on {warm['n']:,} validation pictures, "
            f"gives a calibration error of {100 * warm['calibration_error']:.1f} %."
        )
    if found.get("test_uses"):
        uses = found["test_uses"]
        times = "once" if uses == 1 else f"{uses} times: choices made since the first flatter it"
        said.append(f"Test pictures were read with this run {times}.")
    return said


def interval(evaluation: dict[str, Any] | None) -> tuple[float, float] | None:
    """Of the accuracy, 95 %."""
    if not evaluation or evaluation.get("accuracy") is None or not evaluation.get("n"):
        return None
    return wilson(round(evaluation["accuracy"] * evaluation["n"]), evaluation["n"])


def _range(limits: Any) -> str:
    return f"{100 * limits[0]:.1f} % to {100 * limits[1]:.1f} %" if limits else ""
