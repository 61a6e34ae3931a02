"""Collapse detector: compares the loss with ln K and the features' effective rank with 1.

Constant features or codes are SwAV's usual failure: the loss then stays at ln K. A healthy run is
near ln K too at first, during warm-up and while prototypes are frozen; the thresholds for later
steps were measured (docs/LOG.md). Inputs are the same in every process, and so is the verdict.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unfreeze.swav.recipe import Plan

# collapsed runs: loss 0.9995 to 1.0003 of ln K with code entropy of at least 0.996; healthy runs
# after the start: loss of at most 0.97, or (slow starts) code entropy of at most 0.95
STUCK, BLANK = 0.995, 0.99  # shares of ln K: the loss, and the entropy of the codes
DIVERGED = 1.1  # share of ln K
LEARNED, BACK = 0.97, 0.03  # shares of ln K: a loss that shows learning, and its allowed rise
POINT = 1.5  # effective rank of the projected features, below which they collapsed
SHORTEST, WINDOW = 50, 100  # steps over which the loss is averaged: an epoch, within these limits
LATEST = 5  # minimum steps for the verdict at the end of a run
EARLY = 4  # the start phase ends after 1/4 of the run at the latest


@dataclass(frozen=True)
class Verdict:
    """A collapse: its step, kind, and a diagnosis with the numbers."""

    step: int
    kind: str  # stuck, diverged or shrunk
    diagnosis: str


@dataclass(frozen=True)
class Seen:
    """A training record: mean loss over `steps` steps, and entropy of the last codes."""

    step: int
    steps: int
    loss: float
    code_entropy: float


class Guard:
    """Gets every training record and feature evaluation; returns a verdict on collapse."""

    def __init__(self, prototypes: int, *, start: int, window: int) -> None:
        self.K, self.start, self.window = prototypes, start, window
        self.chance = max(math.log(prototypes), 1e-9)
        self.seen: list[Seen] = []
        self.share = self.lowest = math.inf  # loss as a share of ln K, now and at best
        self.spoken = False  # whether an ignored verdict was reported

    @classmethod
    def of(cls, plan: Plan) -> "Guard":
        """Build for a plan: no verdict while prototypes are frozen or during warm-up."""
        s = plan.settings
        start = min(max(s.freeze_prototypes_niters or 0, plan.warmup_steps), plan.steps // EARLY)
        window = max(SHORTEST, min(WINDOW, plan.steps_per_epoch))
        return cls(s.nmb_prototypes or 1, start=start, window=window)

    def record(self, step: int, steps: int, loss: float, code_entropy: float) -> Verdict | None:
        """Check a training record: mean loss over `steps` steps, code entropy (share of ln K).

        None for a healthy run.
        """
        if step - steps < self.start:
            return None
        self.seen.append(Seen(step, steps, loss, code_entropy))
        while sum(record.steps for record in self.seen[1:]) >= self.window:
            del self.seen[0]
        covered = sum(record.steps for record in self.seen)
        if covered < self.window:
            return None
        loss = sum(record.loss * record.steps for record in self.seen) / covered
        entropy = min(record.code_entropy for record in self.seen)
        return self._from_loss(step, covered, loss, entropy)

    def _from_loss(self, step: int, covered: int, loss: float, entropy: float) -> Verdict | None:
        self.share = share = loss / self.chance
        self.lowest = min(self.lowest, share)
        if share >= STUCK and entropy >= BLANK:
            return Verdict(
                step,
                "stuck",
                f"the loss has stayed at {loss:.3f} for {covered} steps, which is ln {self.K} = "
                f"{self.chance:.3f}, and the codes' entropy is {entropy:.2%} of its maximum: "
                "every image gets the same code",
            )
        if share >= DIVERGED:
            return Verdict(
                step,
                "diverged",
                f"the loss has been {loss:.3f} over {covered} steps, {share:.2f} times ln {self.K} "
                f"= {self.chance:.3f}: worse than chance",
            )
        return None

    def at_end(self, step: int, figures: Mapping[str, float] | None) -> Verdict | None:
        """Verdict at the end of a run, also for runs shorter than the window.

        At the end a loss of ln K is no slow start any more, whatever the codes are.
        """
        if figures is not None and (verdict := self._from_features(step, figures)) is not None:
            return verdict
        last, covered = list[Seen](), 0
        enough = max(LATEST, sum(record.steps for record in self.seen) // 4)
        for record in reversed(self.seen):
            last, covered = [*last, record], covered + record.steps
            if covered >= enough:
                break
        if not covered:
            return None
        loss = sum(record.loss * record.steps for record in last) / covered
        if loss < STUCK * self.chance:
            return None
        return Verdict(
            step,
            "diverged" if self.lowest < LEARNED else "stuck",
            f"the loss was {loss:.3f} over the last {covered} of {step} steps, no lower than "
            f"ln {self.K} = {self.chance:.3f}, which is chance level",
        )

    @property
    def good(self) -> bool:
        """Whether this state is worth recovering: the loss has fallen and is near its minimum."""
        return self.share < min(LEARNED, self.lowest + BACK)

    def look(self, step: int, figures: Mapping[str, float]) -> Verdict | None:
        """Check a feature evaluation; None for a healthy run and during its first steps."""
        return None if step < self.start + self.window else self._from_features(step, figures)

    def _from_features(self, step: int, figures: Mapping[str, float]) -> Verdict | None:
        rank, used = figures["effective_rank_projected"], figures["prototypes_in_use"]
        if rank >= POINT and (used > 1 or self.K < 4):
            return None
        return Verdict(
            step,
            "shrunk",
            f"the features have an effective rank of {rank:.2f}, and {used:.0f} of {self.K} "
            "prototypes are nearest to any image: all images have the same features",
        )

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        records = [asdict(record) for record in self.seen]
        shares = [None if math.isinf(value) else value for value in (self.share, self.lowest)]
        return {"seen": records, "shares": shares, "spoken": self.spoken}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore `state()`."""
        self.seen = [Seen(**record) for record in state["seen"]]
        shares = [math.inf if value is None else value for value in state["shares"]]
        (self.share, self.lowest), self.spoken = shares, state["spoken"]
