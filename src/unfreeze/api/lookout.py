"""The network input and augmented views of images, as pixels for the page of `show`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unfreeze.api.uses import run_folder
from unfreeze.checkpoints.modelfile import card_of
from unfreeze.data.intensity import reading
from unfreeze.data.preprocess import Pixels, Preprocess
from unfreeze.data.views import normalise
from unfreeze.data.views.multicrop import MEAN, STD, Cut
from unfreeze.runtime.devices import pick_device
from unfreeze.settings.build import build, read_own_toml
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.settings.use import ShowSettings
from unfreeze.swav.facts import Facts
from unfreeze.swav.place import preprocess_of
from unfreeze.swav.recipe import plan, view_specs
from unfreeze.transfer.augment import maker

RANDOM = 3  # epochs of augmented views shown for a fine-tuning run
ENOUGH = 1_000  # images to plan with at least: fewer than a batch would be refused

Cutter = Callable[[Sequence[Pixels], np.ndarray, int], list[torch.Tensor]]


@dataclass(frozen=True)
class Lookout:
    """How images enter a network: the input without augmentation, and the augmented views.

    `note`: a sentence for the page; `cut`: makes the views, None if only the input is known.
    """

    note: str
    cut: Cutter | None
    epochs: int  # number of epochs whose views are shown
    mean: Sequence[float]
    std: Sequence[float]
    preprocess: Preprocess

    def rows(self, images: Sequence[Pixels], ids: np.ndarray) -> list[list[tuple[str, Pixels]]]:
        """For each image a list of (caption, uint8 [S, S, 3]): the input, then the views."""
        shown = [[(self._word("input", pixels), pixels)] for pixels in map(self._input, images)]
        for epoch in range(self.epochs if self.cut else 0):
            for number, views in enumerate(self.cut(images, ids, epoch) if self.cut else []):
                kind = f"view {number + 1}" if self.epochs == 1 else f"epoch {epoch + 1}"
                view_pixels = _to_uint8(normalise(views, self.mean, self.std), self.mean, self.std)
                for row, pixels in zip(shown, view_pixels, strict=True):
                    row.append((self._word(kind, pixels), pixels))
        return shown

    def _input(self, image: Pixels) -> Pixels:
        preprocess = self.preprocess
        pixels: Pixels = _to_uint8(preprocess.apply(image)[None], preprocess.mean, preprocess.std)[
            0
        ]
        return pixels

    @staticmethod
    def _word(kind: str, pixels: Pixels) -> str:
        return f"{kind}, {pixels.shape[0]} px"


def lookout(s: ShowSettings, side: int, images: int) -> Lookout:
    """The views of the run in `s`, else of a new pretraining run on such images."""
    if s.run is not None:
        return _views_of_run(s.run)
    values: dict[str, Any] = {"augment": s.augment, "image_size": s.image_size, "seed": s.seed}
    values |= {"range": s.range, "channels": s.channels}
    settings = build(PretrainSettings, values)
    facts = Facts(max(images, ENOUGH), side, pick_device("auto").type)
    return _views_of_pretraining(plan(settings, facts).settings, "as in a new pretraining run")


def intensity(s: ShowSettings) -> str:
    """The intensity rule to decode with (range and channels): as in `s`, else the run's."""
    of_run = Preprocess.from_dict(card_of(s.run).preprocess).intensity if s.run else "auto"
    return reading(s.range, s.channels, of_run)


def _views_of_run(run: str) -> Lookout:
    card, folder = card_of(run), run_folder(run)
    preprocess = Preprocess.from_dict(card.preprocess)
    values = read_own_toml(folder / "config.toml") if folder else {}
    if "nmb_crops" in values:
        return _views_of_pretraining(build(PretrainSettings, values), f"as in {run}")
    if "freeze" in values:
        s = build(FinetuneSettings, values)
        augment = maker(s.augment, preprocess, s.seed)
        note = (
            f"First the network input of {run}, then the augmented views of its first epochs "
            f"(--augment {s.augment})."
        )
        return Lookout(note, augment, RANDOM, preprocess.mean, preprocess.std, preprocess)
    note = f"The network input of {run}; its augmented views need the run folder."
    return Lookout(note, None, 0, preprocess.mean, preprocess.std, preprocess)


def _views_of_pretraining(s: PretrainSettings, source: str) -> Lookout:
    note = (
        f"First the input without augmentation, then the crops of the first epoch, {source} "
        f"(--augment {s.augment})."
    )
    return Lookout(note, Cut(s.seed, view_specs(s)), 1, MEAN, STD, preprocess_of(s))


def _to_uint8(planes: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Pixels:
    """uint8 [B, S, S, 3] from normalised input, float32 [B, 3, S, S]."""
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = ((planes * scale + shift) * 255).round().clamp(0, 255)
    result: Pixels = pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return result
