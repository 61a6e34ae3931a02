"""Builds the network to fine-tune: architecture, pretrained weights and a new head."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unfreeze.checkpoints.model_file import ModelCard, load_model, model_folder, read_card
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.texts.preprocess import load_text_preprocess
from unfreeze.errors import UsageError, WeightsError
from unfreeze.models.build import build, canonical_arch
from unfreeze.models.head import head_layers, replace_head
from unfreeze.models.identify_file import arch_of_weights
from unfreeze.models.load_weights import LoadedWeights, load_weights
from unfreeze.models.position_embeddings import padded_size
from unfreeze.models.segmentation import (
    SEGMENTATION_HEADS,
    arch_with_encoder,
    backbone_arch,
    decoder_parameters,
    is_segmentation_arch,
    load_encoder,
)
from unfreeze.models.stem import apply_small_stem, choose_stem
from unfreeze.models.text import build_text, is_text_arch
from unfreeze.models.timm_weights import size_reason, weights_architecture
from unfreeze.models.weight_sources import default_preprocess, licence_of

DEFAULT = "torchvision/resnet50"


@dataclass(frozen=True)
class FinetuneStart:
    """A network with its new head, and how it was built.

    `head`: names of the new parameters. `loaded`: report of loading the weights. `wants`: the
    preprocessing of the weights, None from scratch. `task_state`: for the field of model.json.
    """

    network: nn.Module
    head: list[str]
    arch: str
    stem: str
    loaded: LoadedWeights | None
    wants: Preprocess | None
    reasons: dict[str, str] = field(default_factory=dict)
    task_state: dict[str, Any] = field(default_factory=dict)


def build_start(
    arch: str | None,
    weights: str,
    stem: str,
    *,
    outputs: int,
    side: int,
    fetch: bool = True,
    allow_partial: bool = False,
    head: str = "replace",
) -> FinetuneStart:
    """A network with N `outputs` from `--arch`, `--weights`, `--stem` for images of `side` pixels.

    Without `fetch`, weights are loaded only from local files; their preprocessing is known anyway.
    """
    trained = arch_of_weights(weights, arch)
    named = weights_architecture(weights)  # with the tag of the weights, which --arch may lack
    name = named or canonical_arch(arch or (trained.arch if trained else DEFAULT))
    if is_text_arch(name):
        raise UsageError(
            f"{name} is a text encoder, and this data is images.",
            "Use another --arch, or give texts: a table with a column `text`.",
        )
    if is_segmentation_arch(name):
        raise UsageError(
            f"{name} is a segmentation network, and these labels are classes.",
            "Use another --arch, or weights of its encoder's pretraining.",
        )
    reasons = {} if arch else {"arch": "that of the weights" if trained else "default"}
    network = build(name, stem="imagenet" if stem == "auto" else stem)
    kind, why = choose_stem(stem, network, weights, trained.stem if trained else None, side)
    if stem == "auto":
        reasons["stem"] = why
        if kind == "small":
            apply_small_stem(network)
    loaded, wants = None, None
    if weights != "none":
        wants, _ = default_preprocess(name)
        if fetch or Path(weights).exists():
            loaded = load_weights(
                network,
                weights,
                arch=name,
                skip_head=head != "append",
                allow_partial=allow_partial,
            )
            wants = loaded.preprocess
            reasons["weights"] = loaded.account
            reasons |= loaded.licences
        else:
            reasons["weights"] = "not downloaded in a dry run"
            licence = licence_of(weights, name)
            reasons |= {"licence": licence} if licence else {}
    if head == "append":
        _check_old_head(network, loaded, fetch)
    head_names = replace_head(network, outputs, kind=head)
    return FinetuneStart(network, head_names, name, kind, loaded, wants, reasons)


def size_note(start: FinetuneStart, side: int) -> str:
    """What is to be said of the input size of `side` pixels; "" for nothing."""
    notes = []
    if start.wants is not None and start.wants.image_size == side:
        notes.append(size_reason(start.arch))
    padded = padded_size(start.network, side)
    if padded != side:
        notes.append(f"zero-padded to {padded}, a multiple of the patch size")
    return "; ".join(filter(None, notes))


def build_segmentation_start(
    arch: str | None,
    weights: str,
    *,
    outputs: int,
    fetch: bool = True,
    allow_partial: bool = False,
) -> FinetuneStart:
    """A segmentation network with N `outputs` whose encoder has the weights; the rest is new.

    `weights`: as in `build_start`, of the encoder's classification network.
    """
    trained = arch_of_weights(weights, None) if arch is None else None
    if arch is not None and not is_segmentation_arch(arch):
        raise UsageError(
            f"--arch {arch} is no segmentation network.",
            f"Use {arch_with_encoder(canonical_arch(arch))}.",
        )
    name = canonical_arch(arch or arch_with_encoder(trained.arch if trained else None))
    reasons = {} if arch else {"arch": "encoder of the weights" if trained else "default"}
    network = build(name, classes=outputs)
    loaded, wants, backbone = None, None, backbone_arch(name)
    if model_folder(weights) is not None and is_segmentation_arch(read_card(weights).arch):
        loaded = _from_segmentation_run(network, weights, name)
        wants = loaded.preprocess
        reasons["weights"] = loaded.account
    elif weights != "none":
        if backbone is None:
            raise UsageError(
                f"The encoder of {name} is no network of torchvision or timm, so --weights "
                f"{weights} cannot be loaded into it.",
                "Use --weights none, or an encoder such as resnet34 or tu-convnext_tiny.",
            )
        wants, _ = default_preprocess(backbone)
        if fetch or Path(weights).exists():
            plain = build(backbone)
            loaded = load_weights(plain, weights, arch=backbone, allow_partial=allow_partial)
            load_encoder(network, plain)
            wants = loaded.preprocess
            reasons["weights"] = f"encoder: {loaded.account}"
            reasons |= loaded.licences
        else:
            reasons["weights"] = "not downloaded in a dry run"
    return FinetuneStart(
        network, decoder_parameters(network), name, "imagenet", loaded, wants, reasons
    )


def _from_segmentation_run(network: nn.Module, run: str, arch: str) -> LoadedWeights:
    """Copy the encoder of a segmentation run, and its decoder if the network is the same."""
    tensors, card = load_model(run)
    entries = network.state_dict()
    parts = ("encoder.", "decoder.") if card.arch == arch else ("encoder.",)
    matched = [name for name in entries if name.startswith(parts)]
    wrong = [
        name for name in matched
        if name not in tensors or tensors[name].shape != entries[name].shape
    ]  # fmt: skip
    if wrong:
        raise WeightsError(
            f"The encoder of {run} ({card.arch}) is not that of {arch}: {wrong[0]}.",
            f"Use --arch {card.arch}.",
        )
    with torch.no_grad():
        for name in matched:
            entries[name].copy_(tensors[name])
    return LoadedWeights(
        share=1.0,
        matched=tuple(matched),
        missing=(),
        unexpected=(),
        preprocess=Preprocess.from_dict(card.preprocess),
        source=run,
        terms=card.terms,
        head=("segmentation_head",) if len(parts) == 2 else SEGMENTATION_HEADS,
    )


def network_from_card(card: ModelCard) -> tuple[nn.Module, list[str]]:
    """The untrained network of a fine-tuned model's card, and its head's parameter names."""
    if is_segmentation_arch(card.arch):
        network = build(card.arch, classes=card.outputs)
        return network, decoder_parameters(network)
    if is_text_arch(card.arch):
        text = build_text(card.task_state["encoder"], card.task_state["pooling"], 1)
        return text, replace_head(text, len(card.classes), kind=card.head)
    network = build(card.arch, stem=card.stem)
    return network, replace_head(network, card.outputs or len(card.classes), kind=card.head)


def preprocess_of(card: ModelCard, run: str | Path) -> Preprocess:
    """The preprocessing of a card that was read from `run`: of texts with the tokenizer there."""
    if card.preprocess.get("kind") != "text":
        return Preprocess.from_dict(card.preprocess)
    folder = model_folder(run) or Path(run) / "model"
    return load_text_preprocess(folder, card.preprocess)


def _check_old_head(network: nn.Module, loaded: LoadedWeights | None, fetch: bool) -> None:
    """Raise UsageError if `--head append` would build on an untrained head."""
    random = {*loaded.random} if loaded else {name for name, _ in network.named_parameters()}
    untrained = [n for h in head_layers(network) for n in random if n.startswith(f"{h}.")]
    if untrained and (loaded or fetch):
        raise UsageError(
            "--head append needs the trained head of the weights, but "
            f"{untrained[0]} is randomly initialised.",
            "Use --head replace, or weights that include their head.",
        )
