"""The architecture of weights: from their metadata, or identified by names and shapes."""

import json
from dataclasses import dataclass
from pathlib import Path

from unfreeze.checkpoints.adapters import loadable_tensors
from unfreeze.checkpoints.model_file import model_folder, read_card
from unfreeze.checkpoints.read import CheckpointContents, read_checkpoint
from unfreeze.errors import WeightsError
from unfreeze.models.identify import ArchitectureMatch, identify_arch, match_arch
from unfreeze.models.load_weights import MIN_MATCHED_SHARE
from unfreeze.models.text import LIBRARY, is_encoder_folder
from unfreeze.models.timm_weights import check_same_network, weights_architecture
from unfreeze.models.weight_sources import PUBLISHED

# Keys under which programs store the architecture, in the file or in `config.json` beside it.
_NAMED = ("arch", "architecture", "model", "model_name")


@dataclass(frozen=True)
class KnownArchitecture:
    """An architecture and the stem that its weights were trained with."""

    arch: str
    stem: str


def arch_of_weights(spec: str, arch: str | None = None) -> KnownArchitecture | None:
    """The architecture of the weights `spec`; nothing is downloaded.

    A run, its model/ folder, an unfreeze checkpoint and a published name (also timm/NAME.TAG) state
    it; WeightsError if `arch` is another network than such a name. For any other
    file it is `arch`, if given, with the stem that fits; else the architecture that its names and
    shapes identify. None for "none", "imagenet" and anything that is neither a file nor a
    published name. WeightsError if the architecture is ambiguous or unknown.
    """
    path = Path(spec)
    named = weights_architecture(spec)
    if named is not None:
        if arch is not None:
            check_same_network(spec, named, arch)
        return KnownArchitecture(named, "imagenet")
    if spec in PUBLISHED and not path.exists():
        return KnownArchitecture(PUBLISHED[spec].arch, "imagenet")
    if spec in ("none", "imagenet") or not path.exists():
        return None
    folder = model_folder(path)
    if folder is not None:
        card = read_card(folder)
        return KnownArchitecture(card.arch, card.stem)
    if is_encoder_folder(path):
        return KnownArchitecture(f"{LIBRARY}/{spec}", "imagenet")
    contents = read_checkpoint(path)
    if contents.card is not None:
        return KnownArchitecture(contents.card.arch, contents.card.stem)
    if arch is not None:
        return KnownArchitecture(arch, match_arch(_shapes(contents, path), arch).stem)
    best = identify_contents(contents, path)
    if best is None:
        raise WeightsError(
            f"{spec} matches no known architecture, by names or shapes.",
            "Name its architecture with --arch.",
        )
    if best.share < MIN_MATCHED_SHARE or best.result.mismatched:
        raise WeightsError(
            f"{spec} does not say its architecture; the closest is {best.arch}, with "
            f"{best.share:.1%} of its backbone matched.",
            f"Add --arch {best.arch} --allow-partial, or name the architecture with --arch.",
        )
    if best.rivals:
        raise WeightsError(
            f"{spec} matches {', '.join((best.arch, *best.rivals))} equally well, but their "
            "outputs differ.",
            "Name the right one with --arch.",
        )
    return KnownArchitecture(best.arch, best.stem)


def identify_contents(contents: CheckpointContents, path: Path) -> ArchitectureMatch | None:
    """The architecture of a file: from its model card, else the closest match; None for none."""
    shapes = _shapes(contents, path)
    if contents.card is not None:
        return match_arch(shapes, contents.card.arch, contents.card.stem)
    return identify_arch(shapes, _hints(contents, path), path.name)


def _shapes(contents: CheckpointContents, path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, with adapters merged; of unusable files (quantised), as stored."""
    try:
        return {
            n: tuple(t.shape)
            for n, t in loadable_tensors(contents, path, str(path)).tensors.items()
        }
    except WeightsError:  # reported when the weights are loaded
        return contents.shapes


def _hints(contents: CheckpointContents, path: Path) -> list[str]:
    """Architecture names in the file's metadata or in a `config.json` beside it."""
    metadata = [contents.meta]
    metadata += [value for value in contents.meta.values() if isinstance(value, dict)]
    config = path.with_name("config.json")
    if config.is_file():
        try:
            loaded = json.loads(config.read_text(encoding="utf-8"))
        except ValueError:
            loaded = {}  # not a config of this file
        metadata += [loaded] if isinstance(loaded, dict) else []
    names = [entry.get(name) for entry in metadata for name in _NAMED]
    return [word for word in names if isinstance(word, str) and word]
