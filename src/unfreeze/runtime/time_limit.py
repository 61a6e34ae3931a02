"""`--time-limit`: decides when a run must save and stop to stay within it."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from unfreeze.errors import UsageError

SPARE = 5.0  # seconds for unmeasured work: closing files, interpreter shutdown
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


class TimeLimit:
    """Checks after each step whether there is time for another step and for stopping after it.

    `limit`: seconds after `began` (on `clock`), None for no limit. The time for stopping is twice
    the sum of the longest times of its parts, as measured by `timing`.
    """

    def __init__(
        self,
        limit: float | None = None,
        began: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit, self.began, self.clock = limit, began, clock
        self.ending: dict[str, float] = {}  # part of stopping -> longest seconds
        self._step = 0.0

    @classmethod
    def of(cls, text: str | None, began: float | None = None) -> "TimeLimit":
        """The deadline of `--time-limit text`, by default counted from the process start."""
        limit = None if text is None else parse_duration(text)
        return cls(limit, process_start() if began is None else began)

    def reached(self, step_seconds: float) -> bool:
        """Whether another step and stopping would exceed the limit.

        `step_seconds`: duration of the last step.
        """
        self._step = max(step_seconds, 0.9 * self._step)  # decaying maximum
        if self.limit is None:
            return False
        left = self.limit - (self.clock() - self.began)
        return left < self._step + 2 * sum(self.ending.values()) + min(SPARE, 0.1 * self.limit)

    @property
    def unmeasured(self) -> bool:
        """Whether there is a limit and no save has been timed yet."""
        return self.limit is not None and "save" not in self.ending

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Times the block as a part of stopping (`save`, ...)."""
        began = self.clock()
        yield
        self.ending[part] = max(self.ending.get(part, 0.0), self.clock() - began)


def parse_duration(text: str, flag: str = "--time-limit") -> float:
    """Seconds of `90s`, `30m`, `2h`, `1h30m`, `1d`, of minutes, or of SLURM's `D-HH:MM:SS`.

    As in SLURM, `30` is minutes, `30:00` minutes and seconds, `1-12` days and hours. UsageError
    for anything else and for 0; `flag` is the option it names.
    """
    words = re.fullmatch(r"(?:[\d.]+[dhms])+", text.lower())
    if words:
        amounts = re.findall(r"(\d+\.?\d*|\.\d+)([dhms])", words[0])
        seconds = sum(float(number) * _UNITS[unit] for number, unit in amounts)
        written = "".join(number + unit for number, unit in amounts) == words[0]
        return _require_positive(text, seconds if written else 0.0, flag)
    if re.fullmatch(r"\d+\.?\d*|\.\d+", text):
        return _require_positive(text, 60.0 * float(text), flag)
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", text)
    if not clock:
        raise _duration_error(text, flag)
    parts = [int(part) for part in clock[2].split(":")]
    if clock[1]:  # days, then hours first
        hours, minutes, rest = [*parts, 0, 0][:3]
    else:  # two are minutes and seconds
        hours, minutes, rest = [0, *parts][-3:]
    seconds = int(clock[1] or 0) * 86400 + hours * 3600 + minutes * 60 + rest
    return _require_positive(text, float(seconds), flag)


def process_start() -> float:
    """Start time of this process on time.monotonic(); now, if the OS does not provide it."""
    try:
        stat = Path("/proc/self/stat").read_text()
        ticks = int(stat.rpartition(")")[2].split()[19])
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        age = since_boot - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):  # not Linux
        return time.monotonic()
    return time.monotonic() - max(0.0, age)


def _require_positive(text: str, seconds: float, flag: str) -> float:
    if seconds <= 0:
        raise _duration_error(text, flag)
    return seconds


def _duration_error(text: str, flag: str) -> UsageError:
    return UsageError(
        f"{flag} {text} is not a duration.", "Write 30m, 2h, 1-12:00:00, or a number of minutes."
    )


MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def rough_duration(seconds: float) -> str:
    """`less than a minute`, `about 3 minutes`, `about 1.7 hours`, `about 68 hours`, ..."""
    if seconds < 50:
        return "less than a minute"
    if seconds < 90:
        return "about a minute"
    for unit, name in ((MINUTE, "minutes"), (HOUR, "hours")):
        if seconds < 99.5 * unit:
            count = seconds / unit
            short = name == "minutes" or count >= 9.95
            return f"about {count:.0f} {name}" if short else f"about {count:.1f} {name}"
    return f"about {seconds / DAY:,.0f} days"
