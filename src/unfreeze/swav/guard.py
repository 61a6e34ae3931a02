"""The guard against collapse: it knows ln K, and says when a run has stopped to learn anything.

Features or codes that are the same for all images are SwAV's usual failure: the loss then stands
at ln K and stays there. A healthy run is near ln K too at first, while its learning rate warms up
and its prototypes stand still; what it looks like afterwards was measured (docs/LOG.md). Pure: what
it is told is the same in every process, and so is its verdict.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unfreeze.swav.recipe import Plan

# collapsed runs: loss 0.9995 to 1.0003 of ln K with code entropy 0.996 and more; healthy ones after
# their start: loss 0.97 at most, or (slow starts) code entropy 0.95 at most
STUCK, BLANK = 0.995, 0.99  # shares of ln K: the loss, and the entropy of the codes
DIVERGED = 1.1  # share of ln K
LEARNED, BACK = 0.97, 0.03  # shares of ln K: a loss that shows learning, and how far it may return
POINT = 1.5  # effective rank of the projected features
SHORTEST, WINDOW = 50, 100  # steps over which the loss is judged, an epoch between these
LATEST = 5  # steps at least that say how a run ended
EARLY = 4  # at the latest after this part of the run (a quarter) nothing counts as a start


@dataclass(frozen=True)
class Verdict:
    """A collapse: at which step, of what kind, and the figures in words."""

    step: int
    kind: str  # stuck, diverged or shrunk
    diagnosis: str


@dataclass(frozen=True)
class Seen:
    """A training record: the mean loss of `steps` steps, and the entropy of the last codes."""

    step: int
    steps: int
    loss: float
    code_entropy: float


class Guard:
    """Told of every record and look, it gives a verdict as soon as a run has collapsed."""

    def __init__(self, prototypes: int, *, start: int, window: int) -> None:
        self.K, self.start, self.window = prototypes, start, window
        self.chance = max(math.log(prototypes), 1e-9)
        self.seen: list[Seen] = []
        self.share = self.lowest = math.inf  # of ln K: the loss over the window, now and at best
        self.spoken = False  # whether a verdict was given that is ignored

    @classmethod
    def of(cls, plan: Plan) -> "Guard":
        """The one for a plan: silent while its prototypes are frozen and its rate warms up."""
        s = plan.settings
        start = min(max(s.freeze_prototypes_niters or 0, plan.warmup_steps), plan.steps // EARLY)
        window = max(SHORTEST, min(WINDOW, plan.steps_per_epoch))
        return cls(s.nmb_prototypes or 1, start=start, window=window)

    def record(self, step: int, steps: int, loss: float, code_entropy: float) -> Verdict | None:
        """A training record's mean loss over `steps` steps and its codes' entropy (share of ln K).

        None while all is well.
        """
        if step - steps < self.start:
            return None
        self.seen.append(Seen(step, steps, loss, code_entropy))
        while sum(seen.steps for seen in self.seen[1:]) >= self.window:
            del self.seen[0]
        covered = sum(seen.steps for seen in self.seen)
        if covered < self.window:
            return None
        loss = sum(seen.loss * seen.steps for seen in self.seen) / covered
        entropy = min(seen.code_entropy for seen in self.seen)
        return self._judged(step, covered, loss, entropy)

    def _judged(self, step: int, covered: int, loss: float, entropy: float) -> Verdict | None:
        self.share = share = loss / self.chance
        self.lowest = min(self.lowest, share)
        if share >= STUCK and entropy >= BLANK:
            return Verdict(
                step,
                "stuck",
                f"the loss has stood at {loss:.3f} for {covered} steps, which is ln {self.K} = "
                f"{self.chance:.3f}, and the codes' entropy is {entropy:.2%} of the most there is: "
                "every image gets the same code",
            )
        if share >= DIVERGED:
            return Verdict(
                step,
                "diverged",
                f"the loss has been {loss:.3f} over {covered} steps, {share:.2f} times ln {self.K} "
                f"= {self.chance:.3f}: worse than guessing",
            )
        return None

    def at_end(self, step: int, figures: Mapping[str, float] | None) -> Verdict | None:
        """A verdict on the run as it ended, also where it was too short to be stopped by one.

        By now a loss that is no lower than ln K is no slow start any more, whatever the codes are.
        """
        if figures is not None and (verdict := self._shrunk(step, figures)) is not None:
            return verdict
        last, covered = list[Seen](), 0
        enough = max(LATEST, sum(seen.steps for seen in self.seen) // 4)
        for seen in reversed(self.seen):
            last, covered = [*last, seen], covered + seen.steps
            if covered >= enough:
                break
        if not covered:
            return None
        loss = sum(seen.loss * seen.steps for seen in last) / covered
        if loss < STUCK * self.chance:
            return None
        return Verdict(
            step,
            "diverged" if self.lowest < LEARNED else "stuck",
            f"the loss was {loss:.3f} over the last {covered} of {step} steps, no lower than "
            f"ln {self.K} = {self.chance:.3f}, which is what guessing gives",
        )

    @property
    def good(self) -> bool:
        """Whether one may go back to this state: it has learned, and lost nothing since."""
        return self.share < min(LEARNED, self.lowest + BACK)

    def look(self, step: int, figures: Mapping[str, float]) -> Verdict | None:
        """The figures of a look; None while all is well, and before there was time to learn."""
        return None if step < self.start + self.window else self._shrunk(step, figures)

    def _shrunk(self, step: int, figures: Mapping[str, float]) -> Verdict | None:
        rank, used = figures["effective_rank_projected"], figures["prototypes_in_use"]
        if rank >= POINT and (used > 1 or self.K < 4):
            return None
        return Verdict(
            step,
            "shrunk",
            f"the features have an effective rank of {rank:.2f}, and of {self.K} prototypes "
            f"{used:.0f} is the nearest one of any image: all images look alike",
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        seen = [asdict(seen) for seen in self.seen]
        shares = [None if math.isinf(value) else value for value in (self.share, self.lowest)]
        return {"seen": seen, "shares": shares, "spoken": self.spoken}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.seen = [Seen(**seen) for seen in state["seen"]]
        shares = [math.inf if value is None else value for value in state["shares"]]
        (self.share, self.lowest), self.spoken = shares, state["spoken"]
