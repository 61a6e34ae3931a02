"""What a trainer trains: a model, the loss of a batch, and the state that only this task has.

The trainer does everything else: batches, precision, data parallel gradients, accumulation, the
learning rate, checkpoints, exact resume, evaluation and signals.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.loading.loader import Batch, Loader
from unfreeze.evaluation.feature_metrics import alignment, effective_rank, feature_std, uniformity
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder

Views = list[Tensor]  # uint8 [B, S, S, 3] each, the large crops first
Forward = Callable[[Views], Any]  # output of `model` for views: normalised, in the run's precision


class Task:
    """A model and the loss of a batch; the hooks are listed in the order in which they are called.

    `adds_losses`: the losses of data parallel processes are parts of one sum, so gradients are
    added; otherwise they are means over each process's images, and gradients are averaged.
    """

    model: nn.Module
    adds_losses: ClassVar[bool] = False

    def begin(self, loader: Loader, forward: Forward) -> None:
        """Called before the first step of a run, also after a resume."""

    def begin_step(self, step: int, epoch: int) -> None:
        """Called before each step; steps and epochs count from 0."""

    def split_batch(self, batch: Batch, count: int, forward: Forward) -> Sequence[Any]:
        """Split a batch into `count` parts for gradient accumulation (1: no accumulation).

        `forward` computes outputs of the model without data parallelism, to look ahead.
        """
        raise NotImplementedError

    def part_loss(self, part: Any, forward: Forward) -> Tensor:
        """The loss of one part, a scalar; the losses of a batch's parts add up to its loss."""
        raise NotImplementedError

    def before_update(self, step: int) -> None:
        """Called after the backward pass and before the optimizer's step."""

    def metrics(self) -> dict[str, float]:
        """Metrics of the steps since the last training record. Collective."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What only this task has besides the model, for a checkpoint. Collective."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore `state_dict()`: its tensors are on the CPU and are used on `device`."""

    def snapshot(self) -> Any:
        """What `revert` needs to undo a step's changes of this state."""
        return None

    def revert(self, snapshot: Any, bad: Tensor | None = None) -> None:
        """Undo the changes since `snapshot`: all, or on the device where `bad` (bool []) is true.

        A step with a NaN or infinite gradient is skipped like this.
        """

    def growing(self, snapshot: Any) -> bool:
        """Whether this state still changes its size, so that `revert` needs the host to wait."""
        return False


@dataclass(frozen=True)
class MicroBatch:
    """A part of a pretraining batch; `shared`: its part of what `PretrainTask.share` returned."""

    views: Views
    batch: Batch
    shared: Any
    count: int  # parts of the batch


@dataclass(frozen=True)
class TeacherFeatures:
    """What a trained network computes of the training images, for methods that learn from one.

    `parts`: float32 `[n, D]` on the CPU, together one row for each of `TaskContext.positions`, in
    their order. `sha256`: digest of the teacher's weights and preprocessing.
    """

    parts: Sequence[Tensor]
    sha256: str


@dataclass(frozen=True)
class TaskContext:
    """What a pretraining task is built for.

    `backbone` maps `[B, 3, S, S]` to `[B, width]`. `settings` are complete: nothing is None that
    the method uses. `positions` `[N]`: the training images. `processes`: this process and the
    others of a data parallel run. `teacher`: for a method that `needs_teacher`; None if it is built
    to measure steps only.
    """

    backbone: nn.Module
    width: int
    settings: PretrainSettings
    positions: npt.NDArray[np.int64]
    processes: Distributed
    teacher: TeacherFeatures | None = None


class PretrainTask(Task):
    """A pretraining method: subclasses build `model` and define `loss`; the rest is optional.

    `model` holds every trained parameter, with the backbone as `model.backbone`. Its forward takes
    a list of float views `[B, 3, S, S]`, and its output goes to `loss`.
    """

    # settings of the group "swav" that this method uses; others are refused if given
    uses: ClassVar[frozenset[str]] = frozenset()
    selection_metric: ClassVar[str] = "effective_rank"  # selects the best epoch without labels
    needs_teacher: ClassVar[bool] = False  # whether it learns from the features of `--teacher`

    def __init__(self, context: TaskContext) -> None:
        self.settings, self.processes = context.settings, context.processes
        self.images = len(context.positions)
        self.model = self.build_model(context)

    @property
    def backbone(self) -> nn.Module:
        """The part of the model that is kept after pretraining."""
        return self.model.backbone  # type: ignore[return-value]

    def build_model(self, context: TaskContext) -> nn.Module:
        """The network around `context.backbone`."""
        raise NotImplementedError

    def loss(self, output: Any, views: int) -> Tensor:
        """The loss, a scalar, of the model's output for `views` views: a mean over images."""
        raise NotImplementedError

    def share(self, parts: list[Views], batch: Batch, forward: Forward) -> Sequence[Any]:
        """With gradient accumulation: what each micro-batch needs to know of the complete batch.

        Called before the forward passes that are trained; `forward` here computes no gradient.
        Empty if micro-batches are independent.
        """
        return ()

    def training_step(self, views: Views, batch: Batch, forward: Forward, shared: Any) -> Tensor:
        """The loss of one micro-batch; `shared`: its part of what `share` returned, or None."""
        return self.loss(forward(views), len(views))

    def split_batch(self, batch: Batch, count: int, forward: Forward) -> list[MicroBatch]:
        """Micro-batches with all views of their images."""
        chunks = [view.chunk(count) for view in batch.views]
        parts = [list(views) for views in zip(*chunks, strict=True)]
        shared = self.share(parts, batch, forward) if len(parts) > 1 else ()
        return [
            MicroBatch(views, batch, shared[k] if shared else None, len(parts))
            for k, views in enumerate(parts)
        ]

    def part_loss(self, part: MicroBatch, forward: Forward) -> Tensor:
        """The loss of a micro-batch, divided by their number."""
        return self.training_step(part.views, part.batch, forward, part.shared) / part.count

    # ------------------------------------------------------------------------------- evaluation

    def project(self, h: Tensor) -> Tensor:
        """Unit features `[B, d]` of backbone features `[B, width]`, as the loss sees them."""
        return F.normalize(h.float(), dim=1)

    def feature_metrics(self, h: Tensor, Z: Tensor, pair: Sequence[Tensor]) -> dict[str, float]:
        """Label-free metrics of fixed images.

        `h` `[N, width]`: backbone features of the centre crops; `Z` `[N, d]`: their projections;
        `pair`: projections `[M, d]` of two views of the same images.
        """
        return {
            "effective_rank": effective_rank(h),
            "effective_rank_projected": effective_rank(Z),
            "feature_std": feature_std(h),
            "alignment": alignment(pair[0], pair[1]),
            "uniformity": uniformity(Z),
        }

    # -------------------------------------------------------------------- before and after a run

    def callbacks(self, run: RunFolder, steps_per_epoch: int) -> Sequence[Any]:
        """Callbacks (`unfreeze.training.callbacks`) of this method, such as a collapse detector."""
        return ()

    def for_timing(self) -> None:
        """Make single steps measurable: drop what needs earlier epochs or other processes."""

    def example_loss(self, output: Any, views: int) -> Tensor:
        """A loss with the memory use of a training step, to estimate it from shapes."""
        return self.loss(output, views)

    def load_head(self, tensors: Mapping[str, Tensor]) -> Sequence[str]:
        """Load what weights hold besides the backbone; sentences about what was loaded."""
        return ()
