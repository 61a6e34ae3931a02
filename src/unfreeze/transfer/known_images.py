"""What a classifier stores to say "I don't know": its validation images, and training features."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unfreeze.checkpoints.model_file import (
    ModelCard,
    load_tensors,
    model_folder,
    save_tensors,
)
from unfreeze.errors import DataError, WeightsError
from unfreeze.evaluation.calibration import apply_temperature
from unfreeze.evaluation.conformal import (
    Floats,
    Labels,
    Mask,
    images_needed,
    prediction_sets,
    set_thresholds,
)
from unfreeze.evaluation.features import pooled_inputs
from unfreeze.evaluation.out_of_distribution import (
    ENERGY,
    KNN,
    MAHALANOBIS,
    RelativeMahalanobis,
    ScoreChoice,
    choose_score,
    energy,
    joined,
    knn_distance,
    units_of,
)

FILE = "known_images.safetensors"
_MODEL = "model"  # in the header: digest of the weights that the values belong to
_ABOUT, _FITTED = "about", "mahalanobis."


@dataclass(frozen=True)
class Decisions:
    """What a model says of N images.

    `probabilities` [N, C]; `sets` [N, C]: labels that hold the true one with the asked-for
    probability; `ood` [N]: share of validation images with a lower out-of-distribution score;
    `answered` [N]: the set is the most likely label alone, and `ood` is below the level.
    `by_class`: whether each class has its own threshold.
    """

    probabilities: Floats
    sets: Mask
    ood: Floats
    answered: Mask
    by_class: bool


@dataclass(frozen=True)
class KnownImages:
    """The images that a run knows, as its model sees them.

    `logits` [V, C], `labels` [V], `ood` [V]: of the validation images without those that have a
    near-duplicate in the training set. `features` [M, D]: of training images; `mahalanobis`: fitted
    to them; `units`: centre and spread of each measure over the validation images. `keys` uint64
    [M]: `content_keys` of these training images, to recognise their files.
    """

    logits: Tensor
    labels: Labels
    ood: Floats
    features: npt.NDArray[np.float32]
    mahalanobis: RelativeMahalanobis | None
    choice: ScoreChoice
    units: dict[str, tuple[float, float]]
    keys: npt.NDArray[np.uint64]

    @classmethod
    def of(
        cls,
        val: Tensor,
        val_labels: Labels,
        train: Tensor,
        train_labels: Labels,
        keys: npt.NDArray[np.uint64],
        *,
        seed: int,
    ) -> "KnownImages":
        """From the outputs [V, C + D] and [M, C + D] of `LogitsAndFeatures`; chooses the score."""
        count = val.shape[1] - train.shape[1]
        logits, features = val[:, :count], val[:, count:]
        known = train.half().float().numpy()  # as it will be read
        choice = choose_score(known, train_labels, features.numpy(), val_labels, seed=seed)
        mahalanobis = (
            RelativeMahalanobis.fit(known, train_labels) if MAHALANOBIS in choice.measures else None
        )
        empty = cls(logits, val_labels, np.zeros(0), known, mahalanobis, choice, {}, keys)
        units = units_of(empty.measures(logits, features), choice.measures)
        measured = replace(empty, units=units)
        return replace(measured, ood=measured.scores(logits, features))

    def measures(self, logits: Tensor, features: Tensor) -> dict[str, npt.NDArray[np.float32]]:
        """The measures [N] of the score, of logits [N, C] and features [N, D]."""
        values = {KNN: knn_distance(features.numpy(), self.features, self.choice.k)}
        if ENERGY in self.choice.measures:
            values[ENERGY] = energy(logits.numpy())
        if self.mahalanobis is not None:
            values[MAHALANOBIS] = self.mahalanobis(features.numpy())
        return values

    def scores(self, logits: Tensor, features: Tensor) -> Floats:
        """Out-of-distribution scores [N] of logits [N, C] and features [N, D]."""
        return joined(self.measures(logits, features), self.units).astype(np.float64)

    def nearest(self, features: Tensor, usable: Mask, count: int) -> list[list[int]]:
        """The training images nearest to each of the features [N, D], nearest first.

        By cosine; at most `count` of those that are `usable` [N, M]; positions in `features` and
        `keys`.
        """
        values = features.numpy().astype(np.float32)
        units, known = (
            rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            for rows in (values, self.features)
        )
        order = np.argsort(np.where(usable, -(units @ known.T), np.inf), axis=1, kind="stable")
        numbers = np.minimum(count, usable.sum(axis=1)).tolist()
        return [row[:number].tolist() for row, number in zip(order, numbers, strict=True)]

    def check(self, level: float) -> None:
        """DataError with too few validation images for `level`."""
        needed, count = images_needed(level), len(self.labels)
        if count < needed:
            possible = [share for share in (0.9, 0.8, 0.5) if images_needed(share) <= count]
            lower = f"Use --unknown {possible[0]:g}, or f" if possible else "F"
            raise DataError(
                f"--unknown {level:g} needs at least {needed:,} validation images; the run has "
                f"{count:,}.",
                f"{lower}ine-tune with more of them: --val 0.3, or more labels.",
            )

    def decide(self, logits: Tensor, scores: Floats, temperature: float, level: float) -> Decisions:
        """What to say of images with these logits [N, C] and `scores` [N]; see `check`."""
        self.check(level)
        held, new = (
            apply_temperature(values.double(), temperature).softmax(dim=1).numpy()
            for values in (self.logits, logits)
        )
        thresholds, by_class = set_thresholds(held, self.labels, level)
        sets = prediction_sets(new, thresholds)
        ood = np.searchsorted(np.sort(self.ood), scores) / len(self.ood)
        # with thresholds of their own the most likely class may be left out, and another be in
        sure = (sets.sum(axis=1) == 1) & sets[np.arange(len(new)), new.argmax(axis=1)]
        return Decisions(new, sets, ood, sure & (ood < level), by_class)

    def scored(self, outputs: Tensor) -> Tensor:
        """Logits and score [B, C + 1] of the outputs [B, C + D] of `LogitsAndFeatures`."""
        logits, features = outputs[:, : self.classes], outputs[:, self.classes :]
        scores = torch.from_numpy(self.scores(logits, features))
        return torch.cat([logits, scores.to(logits.dtype)[:, None]], dim=1)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.logits.shape[1]

    def save(self, folder: Path, card: ModelCard) -> None:
        """Write the file beside the model of `card`."""
        tensors = {
            "logits": self.logits.float(),
            "labels": torch.from_numpy(self.labels),
            "ood": torch.from_numpy(self.ood),
            "features": torch.from_numpy(self.features).half(),
            "keys": torch.from_numpy(self.keys.view(np.int64)),
        }
        fitted = vars(self.mahalanobis) if self.mahalanobis is not None else {}
        tensors |= {f"{_FITTED}{name}": torch.from_numpy(v) for name, v in fitted.items()}
        about = {"choice": asdict(self.choice), "units": self.units}
        metadata = {_MODEL: card.sha256[0], _ABOUT: json.dumps(about)}
        save_tensors(folder / FILE, tensors, metadata)


def load_known_images(run: str | Path, card: ModelCard) -> KnownImages:
    """What the run stored with the model of `card`; WeightsError if it did not, or is damaged."""
    folder = model_folder(run)
    path = (folder or Path(run)) / FILE
    if not path.is_file():
        raise WeightsError(
            f'{run} stores nothing to say "I don\'t know" with: no {FILE} beside its model.',
            "Fine-tune with a validation set: `finetune` writes the file when a run ends.",
        )
    tensors, metadata = load_tensors(path)
    if metadata.get(_MODEL) not in card.sha256:
        raise WeightsError(
            f"{path} belongs to other weights than those of the model beside it.",
            "Copy the whole model/ folder again.",
        )
    about = json.loads(metadata[_ABOUT])
    choice = about["choice"]
    fitted = {
        name.removeprefix(_FITTED): tensor.numpy()
        for name, tensor in tensors.items()
        if name.startswith(_FITTED)
    }
    return KnownImages(
        tensors["logits"],
        tensors["labels"].numpy(),
        tensors["ood"].double().numpy(),
        tensors["features"].float().numpy(),
        RelativeMahalanobis(**fitted) if fitted else None,
        ScoreChoice(
            tuple(choice["measures"]), choice["k"], choice["auroc"], tuple(choice["left_out"])
        ),
        {name: (centre, spread) for name, (centre, spread) in about["units"].items()},
        tensors["keys"].numpy().view(np.uint64),
    )


class LogitsAndFeatures(nn.Module):
    """A classifier whose outputs [B, C + D] are its logits and the inputs of its head.

    `head`: names of the head's parameters, those of its first layer first.
    """

    def __init__(self, network: nn.Module, head: list[str] | tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self._layer = head[0].rpartition(".")[0]

    def forward(self, images: Tensor) -> Tensor:
        """Logits and features, float32, of normalised images [B, 3, S, S]."""
        layer, inputs = self.network.get_submodule(self._layer), list[Tensor]()
        handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        try:
            logits: Tensor = self.network(images)
        finally:
            handle.remove()
        features = pooled_inputs(layer, inputs[0])
        return torch.cat([logits.float(), features.float()], dim=1)
