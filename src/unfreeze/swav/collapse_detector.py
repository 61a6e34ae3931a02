"""Collapse detector: compares the loss with ln K and the features' effective rank with 1.

Constant features or codes are SwAV's usual failure: the loss then stays at ln K. A healthy run is
near ln K too at first, during warm-up and while prototypes are frozen; the thresholds for later
steps were measured (docs/LOG.md). Inputs are the same in every process, and so is the verdict.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.errors import DivergedError
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.collapse_remedies import Remedy, remedies
from unfreeze.training.callbacks import Action, Callback, Logs, StopTraining
from unfreeze.training.state import TrainState

# collapsed runs: loss 0.9995 to 1.0003 of ln K with code entropy of at least 0.996; healthy runs
# after the start: loss of at most 0.97, or (slow starts) code entropy of at most 0.95
STUCK, BLANK = 0.995, 0.99  # shares of ln K: the loss, and the entropy of the codes
DIVERGED = 1.1  # share of ln K
LEARNED = 0.97  # share of ln K: a loss that shows learning
POINT = 1.5  # effective rank of the projected features, below which they collapsed
SHORTEST, WINDOW = 50, 100  # steps over which the loss is averaged: an epoch, within these limits
LATEST = 5  # minimum steps for the verdict at the end of a run
EARLY = 4  # the start phase ends after 1/4 of the run at the latest


@dataclass(frozen=True)
class Collapse:
    """A collapse: its step, kind, and a diagnosis with the numbers."""

    step: int
    kind: str  # stuck, diverged or shrunk
    diagnosis: str


@dataclass(frozen=True)
class LossRecord:
    """A training record: mean loss over `steps` steps, and entropy of the last codes."""

    step: int
    steps: int
    loss: float
    code_entropy: float


class CollapseDetector(Callback):
    """Gets every training record and feature evaluation, and ends a run that collapsed."""

    key = "collapse"

    def __init__(
        self,
        prototypes: int,
        *,
        start: int,
        window: int,
        remedies: Sequence[Remedy] = (),
        run: RunFolder | None = None,
        ignore: bool = False,
    ) -> None:
        self.K, self.start, self.window = prototypes, start, window
        self.remedies, self.run, self.ignore = list(remedies), run, ignore
        self.chance = max(math.log(prototypes), 1e-9)
        self.seen: list[LossRecord] = []
        self.share = self.lowest = math.inf  # loss as a share of ln K, now and at best
        self.reported = False  # whether an ignored verdict is in the log

    @classmethod
    def of(
        cls, s: PretrainSettings, *, steps_per_epoch: int, images: int, run: RunFolder | None = None
    ) -> "CollapseDetector":
        """Build from complete settings: no verdict while prototypes are frozen or in warm-up."""
        steps, warmup = (steps_per_epoch * (n or 0) for n in (s.epochs, s.warmup_epochs))
        return cls(
            s.nmb_prototypes or 1,
            start=min(max(s.freeze_prototypes_niters or 0, warmup), steps // EARLY),
            window=max(SHORTEST, min(WINDOW, steps_per_epoch)),
            remedies=remedies(s, steps_per_epoch=steps_per_epoch, images=images),
            run=run,
            ignore=s.on_collapse == "ignore",
        )

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """Stop the run at a collapse, unless it is ignored."""
        verdict = None
        if "loss" in logs:
            verdict = self.record(state.step, logs["steps"], logs["loss"], logs["code_entropy"])
        if "figures" in logs:
            verdict = verdict or self.check_features(state.step, logs["figures"])
        if verdict is None:
            return None
        collapsed = CollapseError(verdict, self.remedies)
        note = " Ignored by --on-collapse ignore." if self.ignore else ""
        if self.run is not None and not self.reported:
            self.run.log(collapsed.sentence + note)
        if not self.ignore:
            return StopTraining(collapsed)
        self.reported = True
        return None

    def record(self, step: int, steps: int, loss: float, code_entropy: float) -> Collapse | None:
        """Check a training record: mean loss over `steps` steps, code entropy (share of ln K).

        None for a healthy run.
        """
        if step - steps < self.start:
            return None
        self.seen.append(LossRecord(step, steps, loss, code_entropy))
        while sum(record.steps for record in self.seen[1:]) >= self.window:
            del self.seen[0]
        covered = sum(record.steps for record in self.seen)
        if covered < self.window:
            return None
        loss = sum(record.loss * record.steps for record in self.seen) / covered
        entropy = min(record.code_entropy for record in self.seen)
        return self._from_loss(step, covered, loss, entropy)

    def _from_loss(self, step: int, covered: int, loss: float, entropy: float) -> Collapse | None:
        self.share = share = loss / self.chance
        self.lowest = min(self.lowest, share)
        if share >= STUCK and entropy >= BLANK:
            return Collapse(
                step,
                "stuck",
                f"the loss has stayed at {loss:.3f} for {covered} steps, which is ln {self.K} = "
                f"{self.chance:.3f}, and the codes' entropy is {entropy:.2%} of its maximum: "
                "every image gets the same code",
            )
        if share >= DIVERGED:
            return Collapse(
                step,
                "diverged",
                f"the loss has been {loss:.3f} over {covered} steps, {share:.2f} times ln {self.K} "
                f"= {self.chance:.3f}: worse than chance",
            )
        return None

    def at_end(self, step: int, figures: Mapping[str, float] | None) -> Collapse | None:
        """Verdict at the end of a run, also for runs shorter than the window.

        At the end a loss of ln K is no slow start any more, whatever the codes are.
        """
        if figures is not None and (verdict := self._from_features(step, figures)) is not None:
            return verdict
        last, covered = list[LossRecord](), 0
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
        return Collapse(
            step,
            "diverged" if self.lowest < LEARNED else "stuck",
            f"the loss was {loss:.3f} over the last {covered} of {step} steps, no lower than "
            f"ln {self.K} = {self.chance:.3f}, which is chance level",
        )

    def check_features(self, step: int, figures: Mapping[str, float]) -> Collapse | None:
        """Check a feature evaluation; None for a healthy run and during its first steps."""
        return None if step < self.start + self.window else self._from_features(step, figures)

    def _from_features(self, step: int, figures: Mapping[str, float]) -> Collapse | None:
        rank, used = figures["effective_rank_projected"], figures["prototypes_in_use"]
        if rank >= POINT and (used > 1 or self.K < 4):
            return None
        return Collapse(
            step,
            "shrunk",
            f"the features have an effective rank of {rank:.2f}, and {used:.0f} of {self.K} "
            "prototypes are nearest to any image: all images have the same features",
        )

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        records = [asdict(record) for record in self.seen]
        shares = [None if math.isinf(value) else value for value in (self.share, self.lowest)]
        return {"seen": records, "shares": shares, "reported": self.reported}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.seen = [LossRecord(**record) for record in state["seen"]]
        shares = [math.inf if value is None else value for value in state["shares"]]
        (self.share, self.lowest), self.reported = shares, state["reported"]


class CollapseError(DivergedError):
    """Training collapsed: the detector's `verdict`, and the `remedies`, best first."""

    def __init__(self, verdict: Collapse, options: list[Remedy]) -> None:
        self.verdict, self.remedies = verdict, options
        super().__init__(
            f"Training collapsed by step {verdict.step}: {verdict.diagnosis}.",
            remedies_text(options),
        )


def remedies_text(options: list[Remedy]) -> str:
    """The next step of the error: each remedy as a flag with its value."""
    if not options:
        return "The last checkpoint is intact. Check the images with `unfreeze show`."
    flags = "; ".join(f"{remedy.flags} ({remedy.why})" for remedy in options)
    return (
        f"Start a new run with the first of these that helps: {flags}. "
        "--on-collapse ignore continues unchanged."
    )
