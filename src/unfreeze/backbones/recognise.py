"""Which network weights are of: what they say themselves, or what can be told with certainty."""

import json
from dataclasses import dataclass
from pathlib import Path

from unfreeze.backbones.guess import Guess, fitted, guess
from unfreeze.backbones.published import PUBLISHED
from unfreeze.backbones.weights import ENOUGH
from unfreeze.checkpoints.modelfile import card_of, model_folder
from unfreeze.checkpoints.read import Contents, read_checkpoint
from unfreeze.checkpoints.usable import usable
from unfreeze.errors import WeightsError

# Where programs write the name of the network, in the file or in `config.json` beside it.
_NAMED = ("arch", "architecture", "model", "model_name")


@dataclass(frozen=True)
class Known:
    """A network by name, with the stem that its weights were trained with."""

    arch: str
    stem: str


def network_of(spec: str, arch: str | None = None) -> Known | None:
    """The network that weights are of; nothing is fetched.

    A run, its model/ folder, a checkpoint of ours and a published name say it. Of any other file
    it is `arch`, where that is given, with the stem that fits; else what names and shapes tell
    with certainty. None where `spec` is no file and says nothing ("imagenet", an address).
    WeightsError for a file of which nothing certain is known.
    """
    place = Path(spec)
    if spec in PUBLISHED and not place.exists():
        return Known(PUBLISHED[spec].arch, "imagenet")
    if spec in ("none", "imagenet") or not place.exists():
        return None
    folder = model_folder(place)
    if folder is not None:
        card = card_of(folder)
        return Known(card.arch, card.stem)
    contents = read_checkpoint(place)
    if contents.card is not None:
        return Known(contents.card.arch, contents.card.stem)
    if arch is not None:
        return Known(arch, fitted(_shapes(contents, place), arch).stem)
    best = identified(contents, place)
    if best is None:
        raise WeightsError(
            f"{spec} matches no known architecture, by names or shapes.",
            "Name its architecture with --arch.",
        )
    if best.share < ENOUGH or best.result.mismatched:
        raise WeightsError(
            f"{spec} does not say its architecture; the closest is {best.arch}, of whose "
            f"backbone {best.share:.1%} is there.",
            f"Add --arch {best.arch} --allow-partial, or name the architecture with --arch.",
        )
    if best.rivals:
        raise WeightsError(
            f"{spec} fits {', '.join((best.arch, *best.rivals))} equally, and they compute "
            "something else.",
            "Name the right one with --arch.",
        )
    return Known(best.arch, best.stem)


def identified(contents: Contents, place: Path) -> Guess | None:
    """The network of a file's tensors: as our own files say, else the closest that is known."""
    shapes = _shapes(contents, place)
    if contents.card is not None:
        return fitted(shapes, contents.card.arch, contents.card.stem)
    return guess(shapes, _hints(contents, place), place.name)


def _shapes(contents: Contents, place: Path) -> dict[str, tuple[int, ...]]:
    """By name, without adapters; of what cannot be used as it stands there."""
    try:
        return {n: tuple(t.shape) for n, t in usable(contents, place, str(place)).tensors.items()}
    except WeightsError:  # named where the weights are loaded; here only names and shapes count
        return contents.shapes


def _hints(contents: Contents, place: Path) -> list[str]:
    """Names of networks in the file's own words, or in those of a `config.json` beside it."""
    said = [contents.meta]
    said += [value for value in contents.meta.values() if isinstance(value, dict)]
    config = place.with_name("config.json")
    if config.is_file():
        try:
            read = json.loads(config.read_text(encoding="utf-8"))
        except ValueError:
            read = {}  # not of this file, then
        said += [read] if isinstance(read, dict) else []
    words = [one.get(name) for one in said for name in _NAMED]
    return [word for word in words if isinstance(word, str) and word]
