"""The teacher of a pretraining run: a trained network of any origin, without its head."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from unfreeze.checkpoints.integrity import tensors_sha256
from unfreeze.checkpoints.model_file import ModelCard, licence_text, model_folder, read_card
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import UnfreezeError, UsageError, WeightsError
from unfreeze.models.build import build, canonical_arch
from unfreeze.models.head import remove_head
from unfreeze.models.identify_file import arch_of_weights
from unfreeze.models.load_weights import LoadedWeights, load_weights
from unfreeze.models.segmentation import is_segmentation_arch
from unfreeze.models.shape_trace import example_input
from unfreeze.models.text import is_text_arch
from unfreeze.models.weight_sources import PUBLISHED, default_preprocess, licence_of
from unfreeze.runs.inference import PLAIN
from unfreeze.transfer.predictor import InferenceNetwork, load_features

_OTHERS = "Give a network of torchvision or timm (timm/NAME), or the FILE or RUN of a trained one."


@dataclass(frozen=True)
class Teacher:
    """A trained network without its head.

    `name`: as given; `source`: how much was loaded from where; `licence`: a sentence about the
    weights, "" if unknown.
    """

    network: InferenceNetwork
    name: str
    source: str
    licence: str = ""

    @property
    def arch(self) -> str:
        """Its architecture."""
        return self.network.card.arch

    @property
    def preprocess(self) -> Preprocess:
        """Its own evaluation preprocessing."""
        return self.network.preprocess

    @cached_property
    def width(self) -> int:
        """Number of its features."""
        example = example_input(
            self.network.network, self.preprocess.shape, 1, device=torch.device("cpu")
        )
        with torch.inference_mode():
            return int(self.network(example).shape[1])

    @cached_property
    def sha256(self) -> str:
        """Digest of its weights, architecture and preprocessing."""
        about = {
            "arch": self.arch,
            "stem": self.network.card.stem,
            "preprocess": self.preprocess.as_dict(),
            "weights": tensors_sha256(self.network.network.state_dict()),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def provenance(self) -> dict[str, str]:
        """What model.json of a student says about it."""
        about = {"teacher": self.name, "teacher_arch": self.arch, "teacher_sha256": self.sha256}
        return about | ({"teacher_licence": self.licence} if self.licence else {})


def terms_of(loaded: LoadedWeights | None, teacher: Teacher | None) -> dict[str, str]:
    """What a model keeps of the weights it begins with and of its teacher (`ModelCard.terms`)."""
    return {**(loaded.terms if loaded else {}), **(teacher.provenance() if teacher else {})}


def load_teacher(s: PretrainSettings) -> Teacher:
    """The teacher of `--teacher`; a dry run downloads no weights.

    WeightsError if it cannot be loaded, is not trained, or is no network of images.
    """
    spec = s.teacher or ""
    if model_folder(spec) is not None:
        return _teacher_of_run(spec, s.teacher_arch)
    if Path(spec).exists() or "://" in spec or spec in PUBLISHED:
        arch, stem = _arch_of_file(spec, s.teacher_arch)
        wanted = spec
    else:
        arch, stem, wanted = _arch_of_name(spec, s.teacher_arch), "imagenet", "imagenet"
    _check_kind(spec, arch)
    network = build(arch, stem=stem)
    if s.dry_run and not Path(spec).exists():
        remove_head(network)
        preprocess, source = default_preprocess(arch)[0] or PLAIN, "not fetched in a dry run"
        return Teacher(_headless(network, arch, stem, preprocess), spec, source, licence_of(spec))
    loaded = load_weights(network, wanted, arch=arch)
    _check_loaded(spec, network, loaded)
    remove_head(network)
    inference = _headless(network, arch, stem, loaded.preprocess or PLAIN)
    return Teacher(inference, spec, loaded.account, loaded.licence or licence_of(spec))


def _headless(network: nn.Module, arch: str, stem: str, preprocess: Preprocess) -> InferenceNetwork:
    card = ModelCard("backbone", arch, stem, preprocess=preprocess.as_dict())
    return InferenceNetwork(network, card, preprocess)


def _teacher_of_run(run: str, arch: str | None) -> Teacher:
    about = read_card(run)
    if arch is not None and canonical_arch(arch) != about.arch:
        raise UsageError(
            f"--teacher-arch {arch} contradicts {run}, which holds {about.arch}.", "Omit it."
        )
    _check_kind(run, about.arch)
    network = load_features(run)
    origin = about.provenance
    finetuned = origin.get("verb") == "finetune"
    steps = origin.get("epochs") if finetuned else origin.get("steps")
    fixed = finetuned and origin.get("freeze") == "all"
    if (steps == 0 or fixed) and origin.get("init", origin.get("weights")) == "none":
        raise _untrained(run)
    _check_statistics(run, network)
    return Teacher(network, run, f"{run} ({about.arch})", licence_text(about.terms))


def _arch_of_name(spec: str, arch: str | None) -> str:
    """The architecture that a name without a file means."""
    if arch is not None:
        raise WeightsError(
            f"There is no teacher {spec}: no such file or folder.", "Check the path."
        )
    try:
        return canonical_arch(spec)
    except UsageError as error:
        raise WeightsError(
            f"There is no teacher {spec}: no such file or run, and no such network.",
            f"{error.next_step} {_OTHERS}",
        ) from error


def _arch_of_file(spec: str, arch: str | None) -> tuple[str, str]:
    """(architecture, stem) of a file, URL or published name."""
    try:
        known = arch_of_weights(spec, arch and canonical_arch(arch))
    except UnfreezeError as error:
        if "--arch" in error.next_step:  # would be the student's
            raise WeightsError(error.sentence, _NAME_IT.format(spec)) from error
        raise
    if known is None and arch is None:
        raise WeightsError(f"{spec} does not name its architecture.", _NAME_IT.format(spec))
    if known is None:
        return canonical_arch(arch or ""), "imagenet"
    return known.arch, known.stem


_NAME_IT = "Add --teacher-arch NAME; `unfreeze inspect {}` may recognise it."


def _check_kind(spec: str, arch: str) -> None:
    if is_text_arch(arch):
        raise WeightsError(f"The teacher {spec} is a network of texts.", _OTHERS)
    if is_segmentation_arch(arch) and model_folder(spec) is None:
        raise WeightsError(f"The teacher {spec} is a segmentation network.", _OTHERS)


def _check_loaded(spec: str, network: nn.Module, loaded: LoadedWeights) -> None:
    if loaded.random:
        raise WeightsError(
            f"The teacher {spec} lacks {len(loaded.random)} of its parameters, the first: "
            f"{loaded.random[0]}.",
            "Give complete weights: parameters that stay random would teach noise.",
        )
    _check_statistics(spec, network)


def _check_statistics(spec: str, network: nn.Module) -> None:
    """WeightsError if batch norm never saw an image: the weights are an initialisation."""
    norms = [
        (module.running_mean, module.running_var)
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    known = [(mean, var) for mean, var in norms if mean is not None and var is not None]
    if known and all(
        torch.equal(mean, torch.zeros_like(mean)) and torch.equal(var, torch.ones_like(var))
        for mean, var in known
    ):
        raise _untrained(spec)


def _untrained(spec: str) -> WeightsError:
    return WeightsError(f"The teacher {spec} was never trained.", _OTHERS)
