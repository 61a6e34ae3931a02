"""What is carried elsewhere: a run's network as it is used, with all that must go along."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from unfreeze.backbones.build import OWN, WIDE
from unfreeze.backbones.head import places_without, removed_activations
from unfreeze.checkpoints.modelfile import ModelCard, card_of, model_folder
from unfreeze.data.preprocess import Preprocess
from unfreeze.transfer.predictor import load_classifier, load_features


@dataclass(frozen=True)
class Subject:
    """A network on the CPU in evaluation mode: [B, 3, S, S] to scores [B, C] or features [B, D].

    `run` is the name of the folder it comes from, `folder` where its model lies; `missing`: dotted
    names of the places from which a backbone's head was taken off, () for a classifier.
    """

    run: str
    folder: Path
    network: nn.Module
    card: ModelCard
    preprocess: Preprocess
    missing: tuple[str, ...]

    @property
    def library(self) -> str:
        """`torchvision`, `timm` or `unfreeze`."""
        return self.card.arch.partition("/")[0]

    @property
    def name(self) -> str:
        """The architecture's name in its library, without the tag of timm's weights."""
        return self.card.arch.partition("/")[2].partition(".")[0]

    @property
    def small_stem(self) -> bool:
        """Whether the first layers were changed, so that no library builds this network."""
        return self.card.stem == "small" and not self.ours

    @property
    def ours(self) -> bool:
        """Whether only unfreeze builds this network, whatever its first layers."""
        return self.library == "unfreeze" and self.name in (*OWN, *WIDE)

    @property
    def gives(self) -> str:
        """What comes out: `scores` or `features`."""
        return "features" if self.missing else "scores"

    @property
    def identities(self) -> tuple[str, ...]:
        """Dotted names of the places where the library's network has a layer and this has none."""
        return (*self.missing, *removed_activations(self.network))

    def tensors(self) -> dict[str, Tensor]:
        """The state dict: plain names, no wrapper's prefix."""
        return dict(self.network.state_dict())


def read_subject(run: str | Path) -> Subject:
    """The network of a finished run, or of its `model/` folder; WeightsError for others."""
    load = load_classifier if card_of(run).kind == "classifier" else load_features
    found = load(run)
    return Subject(
        run=Path(run).resolve().name,
        folder=model_folder(run) or Path(run),
        network=found.network.eval(),
        card=found.card,
        preprocess=found.preprocess,
        missing=places_without(found.network),
    )
