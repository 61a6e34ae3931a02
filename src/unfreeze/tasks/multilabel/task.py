"""The task of several labels for an image: a decision for each class, with its own threshold."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.config.commands import EvaluateSettings, PredictSettings
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.data.index.index import Index, build_index
from unfreeze.data.index.labels import similar_name
from unfreeze.data.sources.source import Source
from unfreeze.errors import DataError
from unfreeze.tasks.multilabel.labels import (
    UNKNOWN,
    index_of_columns,
    label_notes,
    listed_names,
    names_in,
    separator_of,
)
from unfreeze.tasks.multilabel.losses import DEFAULT, loss_function, positive_weights
from unfreeze.tasks.multilabel.metrics import (
    ENOUGH,
    Floats,
    LabelCounts,
    Threshold,
    average_precision,
    choose_thresholds,
    class_rows,
    mean_of_defined,
)
from unfreeze.tasks.supervised import SupervisedTask

NAMED = 5  # classes named in a sentence


class MultilabelTask(SupervisedTask):
    """A label holds names of classes; its target is 1, 0 or NaN (unknown) for each class.

    Until `calibrate` has chosen thresholds on the validation images, training reports no F1.
    """

    metric = "map"
    limits = (0.0, 1.0)
    supports: ClassVar[frozenset[str]] = frozenset({"class_weights", "sampling", "probabilities"})

    def __init__(self) -> None:
        self.separator: str | None = None
        self.columns: tuple[str, ...] = ()  # of 0 and 1; () if labels are names
        self.loss_name, self.class_weights = DEFAULT, "none"
        self.weights: list[float] = []
        self.thresholds: list[Threshold] = []
        self.training = False  # thresholds are still to be chosen
        self.every = False  # whether predictions have the probability of every class

    # -------------------------------------------------------------------------------------- data

    def configure(self, settings: Any) -> None:
        """Take `--label-separator`, `--label-columns`, `--loss`, `--class-weights` and others."""
        if isinstance(settings, PredictSettings):
            self.every = settings.probabilities
            return
        self.every = True
        if settings.label_columns is not None:
            self.columns = listed_names(settings.label_columns)
        elif settings.label_separator is not None:
            self.columns = ()
        if settings.label_separator is not None:
            self.separator = settings.label_separator
        if isinstance(settings, EvaluateSettings):
            return  # the model has the rest
        if isinstance(settings, FinetuneSettings):
            self.training = True
            self.loss_name, self.class_weights = settings.loss or DEFAULT, settings.class_weights
            loss_function(self.loss_name)  # refuse an unknown name before anything is read

    def index(self, source: Source, **arguments: Any) -> Index:
        """All images; a label is the text of its names, as in `names_in`."""
        if self.columns:
            self.separator = self.separator or ";"
            index = index_of_columns(source, self.columns, self.separator, arguments, self.classes)
        else:
            index = build_index(source, strange_classes=True, label_sets=True, **arguments)
            self.separator = self.separator or separator_of(index.classes)
        if not index.classes:
            raise DataError(
                f"{source.where} has no labels.",
                "Give a CSV with the columns path and label (`cat;dog`), or --label-columns.",
            )
        notes = label_notes(index, self.separator, columns=bool(self.columns))
        return replace(index, notes=(*index.notes, *notes))

    def fit(self, labels: Sequence[str]) -> None:
        """The classes: all names in the labels, sorted; and the weights of the loss."""
        parsed = [self._names(label) for label in dict.fromkeys(labels)]
        names = {name for names, _ in parsed for name in names}
        if self.columns:
            absent = [name for name in self.columns if name not in names]
            if absent:
                raise DataError(
                    f"No training image has a 1 in the column {absent[0]!r}.",
                    "Add images that do, or leave it out of --label-columns.",
                )
        if not names:
            raise DataError("No training image has a label.", "Add images that have one.")
        self.classes = tuple(sorted(names))
        self.outputs = len(self.classes)
        self.weights = positive_weights(self.targets(labels), self.class_weights)

    def _names(self, label: str) -> tuple[list[str], list[str]]:
        """(names of classes that an image has, and of those that are unknown)."""
        names = names_in(label, self.separator or ";")
        if not self.columns:
            return names, []
        unknown = [name for name in names if name.startswith(UNKNOWN)]
        return [name for name in names if name not in unknown], [
            name.removeprefix(UNKNOWN) for name in unknown
        ]

    def targets(self, labels: Sequence[str]) -> Tensor:
        """Targets float32 [N, C]: 1, 0, or NaN if it is unknown; DataError for an unknown name."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        rows = dict[str, npt.NDArray[np.float32]]()
        for label in dict.fromkeys(labels):
            row = np.zeros(len(self.classes), np.float32)
            for names, value in zip(self._names(label), (1.0, np.nan), strict=True):
                for name in names:
                    if name not in numbers:
                        raise self._unknown_label(name, label)
                    row[numbers[name]] = value
            rows[label] = row
        table = [rows[label] for label in labels]
        return torch.from_numpy(np.array(table, np.float32).reshape(-1, len(self.classes)))

    def _unknown_label(self, name: str, label: str) -> DataError:
        similar = similar_name(name, self.classes)
        near = f", which has {similar!r}" if similar else ""
        return DataError(
            f"The label {name!r} (in {label!r}) does not exist in train{near}.",
            "Rename or remove it, or add it to train; if it is several labels, give "
            "--label-separator.",
        )

    def fingerprint(self, index: Index) -> str:
        """Hex digest of the labels."""
        digest = hashlib.sha256("\n".join(index.classes).encode("utf-8", "surrogateescape"))
        digest.update(index.labels.tobytes() + str(self.separator).encode())
        return digest.hexdigest()[:16]

    def strata(self, targets: Tensor) -> npt.NDArray[np.bool_]:
        """The classes of each image."""
        members: npt.NDArray[np.bool_] = (targets == 1).numpy()
        return members

    # ---------------------------------------------------------------------------------- training

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image [B], summed over the classes that are known."""
        weights = None
        if self.weights:
            weights = torch.tensor(self.weights, dtype=outputs.dtype, device=outputs.device)
        known = ~targets.isnan()
        truth = targets.nan_to_num().to(outputs.dtype)
        losses = loss_function(self.loss_name)(outputs, truth, weights)
        return (losses * known).sum(dim=1)

    # -------------------------------------------------------------------------------- evaluation

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """`map`, the mean average precision of the classes; `f1_micro` and `f1_macro`."""
        scores, truth = outputs.numpy(), targets.double().numpy()
        values = {"map": mean_of_defined(average_precision(scores, truth))}
        if self.training:
            return values
        limits = np.array(self.decision_thresholds())
        counts = LabelCounts.of(_probabilities(outputs), truth, limits)
        return {**values, "f1_micro": counts.micro_f1, "f1_macro": mean_of_defined(counts.f1)}

    @property
    def _limits(self) -> list[Threshold]:
        """The thresholds; 0.5 without validation images."""
        return self.thresholds or [Threshold(0.5, "default")] * len(self.classes)

    def calibrate(self, outputs: Tensor, targets: Tensor) -> str:
        """Choose the thresholds on the validation images."""
        self.thresholds = choose_thresholds(_probabilities(outputs), targets.double().numpy())
        self.training, self.calibrated = False, True
        named = list(zip(self.classes, self.thresholds, strict=True))
        few = [name for name, threshold in named if threshold.origin == "shared"]
        about = f"{len(outputs):,} validation images"
        if self.thresholds[0].origin == "default":
            return f"Labels are predicted from a probability of 0.5: {about} have too few labels."
        if not few:
            return f"The threshold of each class has its best F1 on {about}."
        value = next(t.value for t in self.thresholds if t.origin == "shared")
        shown = ", ".join(few[:NAMED]) + f" and {len(few) - NAMED:,} more" * (len(few) > NAMED)
        return (
            f"The threshold of each class has its best F1 on {about}; a shared one, {value:.3f}, "
            f"is used for classes with fewer than {ENOUGH} of them: {shown}."
        )

    def decision_thresholds(self) -> list[float]:
        """The thresholds of the classes."""
        return [threshold.value for threshold in self._limits]

    def details(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """Metrics and threshold of each class."""
        rows = class_rows(
            self.classes,
            outputs.numpy(),
            _probabilities(outputs),
            targets.double().numpy(),
            self._limits,
        )
        thresholds = {row["name"]: row["threshold"] for row in rows}
        return {"classes": list(self.classes), "per_class": rows, "thresholds": thresholds}

    def predict(self, outputs: Tensor) -> list[dict[str, Any]]:
        """`labels`: those from their threshold on, the most probable first."""
        return [self._prediction(row) for row in _probabilities(outputs)]

    def _prediction(self, probabilities: Floats) -> dict[str, Any]:
        named = list(zip(self.classes, probabilities.tolist(), self._limits, strict=True))
        chosen = [
            {"label": name, "probability": value}
            for name, value, threshold in named
            if value >= threshold.value
        ]
        labels = sorted(chosen, key=lambda entry: -entry["probability"])
        every = {"probabilities": {name: value for name, value, _ in named}} if self.every else {}
        return {"labels": labels, **every}

    def cells(self, prediction: Mapping[str, Any]) -> dict[str, Any]:
        """`labels` and `probability`, each joined by the separator; `probability:CLASS` for all."""
        labels, sign = prediction["labels"], self.separator or ";"
        every = prediction.get("probabilities", {})
        return {
            "labels": sign.join(entry["label"] for entry in labels),
            "probability": sign.join(f"{entry['probability']:.6f}" for entry in labels),
            **{f"probability:{name}": f"{value:.6f}" for name, value in every.items()},
        }

    # ------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Classes, thresholds, where labels are, and what the loss needs."""
        return {
            "classes": list(self.classes),
            "separator": self.separator,
            "columns": list(self.columns),
            "loss": self.loss_name,
            "weights": self.weights,
            "thresholds": [[threshold.value, threshold.origin] for threshold in self.thresholds],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.classes = tuple(state["classes"])
        self.outputs = len(self.classes)
        self.separator, self.columns = state["separator"], tuple(state["columns"])
        self.loss_name, self.weights = str(state["loss"]), [float(w) for w in state["weights"]]
        self.thresholds = [Threshold(float(v), str(origin)) for v, origin in state["thresholds"]]
        self.calibrated = bool(self.thresholds)
        self.training = self.training and not self.calibrated


def _probabilities(outputs: Tensor) -> Floats:
    """Probability of each label, float64 [N, C]."""
    probabilities: Floats = outputs.double().sigmoid().numpy()
    return probabilities
