"""What a fine-tuning computes and holds, counted from shapes; seconds follow from a speed."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from unfreeze.backbones.trace import trace
from unfreeze.backbones.work import Work, work_of
from unfreeze.errors import UsageError
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.transfer.freeze import FreezeSchedule
from unfreeze.transfer.stretches import stretches, wanted

_STATES = {"sgd": 1, "lars": 1, "adamw": 2}  # tensors that an optimizer keeps for each parameter
EVALUATED = 64  # images of a batch that is only evaluated


@dataclass(frozen=True)
class Case:
    """What the cost depends on beside the settings; `runs`: more than one with folds or repeats."""

    network: nn.Module
    schedule: FreezeSchedule
    head: Collection[str]
    images: int
    held_out: int
    runs: int = 1


@dataclass(frozen=True)
class Amount:
    """Operations of a run's training steps and of its evaluations; `views`: images cut for them.

    `works`: of each stretch of the run, (frozen parameters, work for one image).
    """

    training: float
    evaluation: float
    views: int
    works: tuple[tuple[frozenset[str], Work], ...]

    @property
    def operations(self) -> float:
        """All of them."""
        return self.training + self.evaluation

    @property
    def heaviest(self) -> tuple[frozenset[str], Work]:
        """The stretch that takes most memory and arithmetic for an image."""
        return max(self.works, key=lambda entry: entry[1].kept)


def amount(s: FinetuneSettings, case: Case) -> Amount | None:
    """The amount of work of planned settings; None for a network that has to see numbers."""
    side = s.image_size or 0
    training = evaluation = 0.0
    views, works = 0, []
    for part in stretches(case.network, case.schedule, s.epochs, case.head):
        work = work_of(case.network, part.frozen, side)
        if work is None:
            return None
        works.append((part.frozen, work))
        if s.head_solver == "logistic":
            count = s.cache_views or 1
            evaluation += work.forward * (count * case.images + case.held_out)
            views += count * case.images
        elif s.cache not in ("off", "auto") and wanted(s.cache, part):
            passes = len(part.views(s.cache_views or 1))
            # a backward pass costs about two forward ones of what learns
            after = (work.training - work.forward) / 2
            evaluation += work.forward * (passes * case.images + case.held_out)
            again = case.runs * part.epochs
            training += 3 * after * again * case.images
            evaluation += after * again * case.held_out
            views += passes * case.images
        else:
            again = case.runs * part.epochs
            training += work.training * again * case.images
            evaluation += work.forward * again * case.held_out
            views += again * case.images
    return Amount(training, evaluation, views, tuple(works))


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one process in the heaviest moment."""

    parameters: int
    gradients: int
    optimizer: int
    inputs: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        parts = (self.parameters, self.gradients, self.optimizer, self.inputs, self.activations)
        return sum(parts)


def memory(s: FinetuneSettings, case: Case, found: Amount, processes: int = 1) -> Memory:
    """The bytes of planned settings."""
    side, (frozen, work) = s.image_size or 0, found.heaviest
    sizes = {name: p.numel() * p.element_size() for name, p in case.network.named_parameters()}
    learning = sum(size for name, size in sizes.items() if name not in frozen)
    solved = s.head_solver == "logistic"
    rows = max(1, (s.batch_size or 1) // processes // s.accumulate)
    half = 1 if s.precision == "fp32" else 2
    kept = 0 if solved else rows * work.kept // half
    evaluated = min(EVALUATED, max(case.images if solved else 0, case.held_out))
    return Memory(
        parameters=sum(sizes.values()),
        gradients=0 if solved else learning,
        optimizer=0 if solved else learning * _STATES[s.optimizer],
        inputs=max(0 if solved else rows, evaluated) * 3 * side**2 * 4,
        # evaluation holds the input and the output of a layer at a time
        activations=max(kept, evaluated * 2 * _largest(case.network, side)),
    )


def _largest(network: nn.Module, side: int) -> int:
    """Bytes of the largest output of a layer for one image."""
    try:
        shapes = trace(network, (side, side)).shapes.values()
    except UsageError:
        return 0
    sizes = [4]
    for shape in shapes:
        size = 4
        for length in shape[1:]:
            size *= length
        sizes.append(size)
    return max(sizes)
