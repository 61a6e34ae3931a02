"""Builds the text classifier to fine-tune: encoder, weights, tokenizer and a new head."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from unfreeze.checkpoints.model_file import load_model, model_folder
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.texts.preprocess import TextPreprocess, load_text_preprocess, text_preprocess
from unfreeze.errors import UsageError, WeightsError
from unfreeze.models.build import canonical_arch
from unfreeze.models.head import replace_head
from unfreeze.models.load_weights import MIN_MATCHED_SHARE, LoadedWeights
from unfreeze.models.text import (
    LIBRARY,
    LoadedEncoder,
    TextClassifier,
    build_text,
    config_of,
    encoder_name,
    is_text_arch,
    load_encoder_of,
)
from unfreeze.transfer.initialize import FinetuneStart

OWN = "imagenet"  # the default of --weights: those of the encoder itself
EXAMPLES = "hf/bert-base-uncased or, for a folder, hf/FOLDER"


def build_text_start(
    arch: str | None,
    weights: str,
    *,
    outputs: int,
    max_length: int | None = None,
    fetch: bool = True,
    allow_partial: bool = False,
    head: str = "replace",
) -> FinetuneStart:
    """A text classifier with N `outputs` from `--arch hf/NAME` and `--weights`.

    `weights`: those of the encoder by default; `none`; a run on texts; or another folder or name.
    `max_length`: of a text in tokens; None: the most that the encoder takes.
    """
    if head == "append":
        raise UsageError("A text encoder has no head to append to.", "Use --head replace.")
    run = model_folder(weights) if Path(weights).exists() else None
    if run is not None:
        return _from_run(arch, weights, run, outputs=outputs, max_length=max_length, head=head)
    name = canonical_arch(_arch(arch, weights))
    source = encoder_name(name) if weights in (OWN, "none") else weights.removeprefix(f"{LIBRARY}/")
    loaded = load_encoder_of(source, trained=weights != "none", fetch=fetch)
    if loaded.share < MIN_MATCHED_SHARE and not allow_partial:
        raise WeightsError(
            f"The weights of {source} hold {loaded.share:.1%} of the encoder, first missing: "
            f"{loaded.missing[0]}.",
            "Give other weights, or add --allow-partial.",
        )
    network = TextClassifier(loaded.encoder, loaded.pooling, outputs)
    longest = _limited(max_length, loaded)
    preprocess = text_preprocess(loaded.tokenizer, longest)
    reasons = {"pooling": loaded.why, "max_length": _why(max_length)}
    report = None
    if weights != "none":
        report = _report(network, loaded, source, preprocess)
        reasons["weights"] = f"those of the encoder, {loaded.share:.1%} matched"
    return FinetuneStart(
        network,
        replace_head(network, outputs, kind=head),
        name,
        "imagenet",
        report,
        preprocess,
        reasons,
        _state(network, preprocess),
    )


def _arch(arch: str | None, weights: str) -> str:
    if arch is None and weights not in (OWN, "none"):
        return f"{LIBRARY}/{weights.removeprefix(f'{LIBRARY}/')}"
    if arch is None:
        raise UsageError("Text classification needs an encoder.", f"Give --arch {EXAMPLES}.")
    if not is_text_arch(arch):
        raise UsageError(f"--arch {arch} is no text encoder.", f"Give --arch {EXAMPLES}.")
    return arch


def _from_run(
    arch: str | None,
    weights: str,
    folder: Path,
    *,
    outputs: int,
    max_length: int | None,
    head: str,
) -> FinetuneStart:
    """The encoder and tokenizer of a run on texts, with a new head."""
    tensors, card = load_model(weights)
    if not is_text_arch(card.arch) or (arch is not None and canonical_arch(arch) != card.arch):
        raise UsageError(
            f"{weights} is a {card.arch}, not a {arch or 'text encoder'}.",
            "Omit --arch, or give other weights.",
        )
    state = card.task_state
    network = build_text(state["encoder"], state["pooling"], 1)
    with torch.no_grad():
        for name, tensor in network.encoder.state_dict().items():
            tensor.copy_(tensors[f"encoder.{name}"])
    longest = min(max_length or 10**9, int(card.preprocess["max_length"]))
    preprocess = load_text_preprocess(folder, {"max_length": longest})
    report = LoadedWeights(
        share=1.0,
        matched=tuple(f"encoder.{name}" for name in network.encoder.state_dict()),
        missing=(),
        unexpected=(),
        preprocess=preprocess,
        source=weights,
        terms=card.terms,
        head=("head",),
    )
    reasons = {
        "arch": "that of the weights",
        "weights": "encoder of the run, 100.0% matched",
        "pooling": f"{network.pooling}: as in the run",
        "max_length": _why(max_length),
    }
    names = replace_head(network, outputs, kind=head)
    return FinetuneStart(
        network,
        names,
        card.arch,
        "imagenet",
        report,
        preprocess,
        reasons,
        _state(network, preprocess),
    )


def _limited(given: int | None, loaded: LoadedEncoder) -> int:
    if given is not None and given > loaded.max_length:
        raise UsageError(
            f"--max-length {given} is more than the {loaded.max_length} tokens of the encoder.",
            f"Use at most {loaded.max_length}.",
        )
    return given or loaded.max_length


def _why(given: int | None) -> str:
    return "given" if given else "the most that the encoder takes"


def _report(
    network: TextClassifier, loaded: LoadedEncoder, source: str, preprocess: Preprocess
) -> LoadedWeights:
    missing = tuple(f"encoder.{name}" for name in loaded.missing)
    names = [f"encoder.{name}" for name in network.encoder.state_dict()]
    return LoadedWeights(
        share=loaded.share,
        matched=tuple(name for name in names if name not in missing),
        missing=missing,
        unexpected=(),
        preprocess=preprocess,
        source=source,
        head=("head",),
    )


def _state(network: TextClassifier, preprocess: TextPreprocess) -> dict[str, Any]:
    """What model.json needs to build the network again; `tokens`: digest of the tokenizer."""
    digest = hashlib.sha256(preprocess.tokenizer.to_str().encode()).hexdigest()
    return {"encoder": config_of(network), "pooling": network.pooling, "tokens": digest}
