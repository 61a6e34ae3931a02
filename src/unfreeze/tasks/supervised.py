"""The interface of a supervised task: what the labels of images mean, and what is predicted.

Classification and segmentation are built in; other tasks are classes of other packages. `finetune
--task NAME` trains them like classification, with layer freezing, the feature cache, schedules,
EMA, early stopping, exact resume and several processes.
"""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.data.augment.config import CropSpec
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import Index, build_index
from unfreeze.data.loading.loader import Make
from unfreeze.data.sources.source import Source
from unfreeze.errors import UnfreezeError, UsageError

STRATA = 5  # groups of similar targets, from each of which images are held out
LEAST = 10  # images in each of them
FEW = 4  # images to check the methods with


class SupervisedTask:
    """Learns from labels that are not classes; subclasses define the methods that raise.

    A label is the text that a CSV file or a folder gives an image. `outputs`: width of the
    network's last layer, set by `fit` at the latest.
    """

    metric: ClassVar[str]  # of `metrics`: selects the best epoch
    lower_is_better: ClassVar[bool] = False
    limits: ClassVar[tuple[float, float] | None] = None  # of the metric, such as (0, 1)
    # factor on SGD's default learning rates, which suit cross-entropy; squared errors need less
    lr_scale: ClassVar[float] = 1.0
    # whether outputs are maps [B, outputs, h, w] of a network `smp/DECODER/ENCODER`
    dense: ClassVar[bool] = False
    # settings of classification that the task has as well
    supports: ClassVar[frozenset[str]] = frozenset()
    name: str = ""
    outputs: int = 1
    classes: tuple[str, ...] = ()  # names of the outputs, if these are classes
    calibrated: bool = False  # whether `calibrate` has chosen something

    def configure(self, settings: Any) -> None:
        """Called first, with the settings of the command."""

    def index(self, source: Source, **arguments: Any) -> Index:
        """The images of a source, each with the text of its label.

        `arguments`: those of `build_index` for label files, columns and split files.
        """
        # only classes must be the same in all splits
        return build_index(source, strange_classes=True, **arguments)

    def fit(self, labels: Sequence[str]) -> None:
        """Called once, before the network is built and before images are held out for validation.

        `labels`: of all images except those of splits named val or test. A resumed run is not
        fitted again: it gets `load_state_dict`.
        """

    def check(self, index: Index) -> None:
        """Refuse labels, or a task that does not work, before anything is trained."""
        check_task(self.name, self, [index.classes[label] for label in index.labels.tolist()])

    def targets(self, labels: Sequence[str]) -> Tensor:
        """Targets `[N, ...]` of labels; DataError for a label that cannot be one."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image `[B]`, of outputs `[B, outputs]` in float32 and targets."""
        raise NotImplementedError

    def summarize(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What evaluation keeps `[B, ...]` of the outputs of a batch, on the CPU.

        `metrics`, `mean_loss` and `predict` get it as their `outputs`. By default the outputs.
        """
        return outputs.cpu()

    def fingerprint(self, index: Index) -> str:
        """What a resumed run must find again besides the files of the source; "" for nothing."""
        return ""

    def resampled(self, outputs: Tensor, counts: Tensor) -> Tensor | None:
        """For each resample, given as `counts` [R, N] of the images: an image with its metrics.

        For metrics that depend on sums over images alone; None: images are repeated instead.
        """
        return None

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> float:
        """The mean loss of a data set."""
        return float(self.loss(outputs.float(), targets).mean())

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics of all images of a data set, by name: outputs `[N, outputs]` and targets."""
        raise NotImplementedError

    def details(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """More fields for the result of `evaluate`, such as metrics of each class."""
        return {}

    def predict(self, outputs: Tensor) -> list[dict[str, Any]]:
        """The prediction for each image: the same fields for all, plain values."""
        raise NotImplementedError

    def calibrate(self, outputs: Tensor, targets: Tensor) -> str:
        """Called at the end with what `summarize` kept of the validation images.

        For values that are chosen on them, such as thresholds: they belong to the state, which is
        stored with the model. A sentence for people about them; "" if there are none.
        """
        return ""

    def decision_thresholds(self) -> list[float] | None:
        """Of a task that decides for each class alone, whose network can then be exported.

        The probability of each class, a sigmoid of its output, from which on an image has it.
        """
        return None

    def cells(self, prediction: Mapping[str, Any]) -> dict[str, Any]:
        """A prediction as texts and numbers, for the columns of a table: the same for all images.

        By default its values.
        """
        return dict(prediction)

    def view_maker(
        self, targets: Tensor, spec: CropSpec | None, preprocess: Preprocess, seed: int
    ) -> Make | None:
        """The loader's transform of images with these targets `[N, ...]`; None: the usual one.

        `spec`: random crop and colours, None for evaluation preprocessing.
        """
        return None

    def strata(self, targets: Tensor) -> npt.NDArray[np.int32] | npt.NDArray[np.bool_]:
        """A group `[N]` of similar images for each: a validation set gets its share of every group.

        Bool `[N, C]` if images belong to several of C groups: the split is an iterative
        stratification, and `--sampling balanced` draws by each image's rarest group. By default
        five groups of the first target, from low to high.
        """
        first = targets.reshape(len(targets), -1)[:, 0].double().numpy()
        ranks = np.argsort(np.argsort(first, kind="stable"), kind="stable")
        count = max(1, min(STRATA, len(first) // LEAST))
        return (ranks * count // max(1, len(first))).astype(np.int32)

    def example_outputs(self) -> Tensor:
        """What `summarize` returns for one image, with any values."""
        return torch.zeros(1, self.outputs)

    def state_dict(self) -> dict[str, Any]:
        """Plain values that `fit` has computed; stored in model.json."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""


def check_task(name: str, task: SupervisedTask, labels: Sequence[str]) -> None:
    """Call each method once with few images; raises what `targets` raises for a label.

    UsageError, with the place, if a method fails or returns something else than it should.
    """
    targets = _called(name, lambda: task.targets(labels))
    _expect(name, isinstance(targets, Tensor), "targets() must return a tensor")
    _expect(name, len(targets) == len(labels), f"targets() returned {len(targets)} targets for "
            f"{len(labels)} labels")  # fmt: skip
    some = targets[:FEW]
    outputs = torch.zeros(len(some), task.outputs)
    losses = _called(name, lambda: task.loss(outputs, some))
    shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    _expect(name, shape == (len(some),), f"loss() must return one loss for each image, [B]; for "
            f"{len(some)} images it returned {shape}")  # fmt: skip
    metrics = _called(name, lambda: task.metrics(outputs, some))
    _expect(name, task.metric in metrics, f"metrics() has no {task.metric!r}, which `metric` names")
    reserved = sorted({"loss", "total", "step", "epoch", "split"} & set(metrics))
    _expect(name, not reserved, f"a metric cannot be called {', '.join(reserved)}")
    predicted = _called(name, lambda: task.predict(outputs))
    _expect(name, len(predicted) == len(some), f"predict() returned {len(predicted)} predictions "
            f"for {len(some)} images")  # fmt: skip
    _expect(name, all("path" not in row for row in predicted), "a prediction cannot have a `path`")
    state = _called(name, task.state_dict)
    _called(f"{name}, state_dict()", lambda: json.dumps(state))
    _called(f"{name}, predict()", lambda: json.dumps(predicted))


def _expect(name: str, condition: bool, sentence: str) -> None:
    if not condition:
        raise UsageError(f"Task {name}: {sentence}.", "Correct the class of the task.")


def _called(name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except UnfreezeError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"Task {name} failed in {place.filename}, line {place.lineno}: "
            f"{type(error).__name__}: {error}.",
            "Correct the class of the task; --debug shows the traceback.",
        ) from error
