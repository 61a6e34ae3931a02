"""Reads weights from their source: published weights of a library, a URL, a file or a run."""

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import torch

from unfreeze.checkpoints.adapters import loadable_tensors
from unfreeze.checkpoints.key_matching import is_averaged
from unfreeze.checkpoints.model_file import load_model, model_folder, terms_in
from unfreeze.checkpoints.read import CheckpointContents, read_checkpoint
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import WeightsError
from unfreeze.models.timm_weights import (
    check_same_network,
    full_name,
    timm_licence,
    timm_preprocess,
    weights_architecture,
)

_BASE_URL = "https://dl.fbaipublicfiles.com/deepcluster/"
LICENCE = "SwAV's published weights are under CC BY-NC 4.0: no commercial use."
# The reference trains and tests with std 0.228 for red, where ImageNet's is 0.229.
SWAV_PREPROCESS = Preprocess(224, 256, mean=(0.485, 0.456, 0.406), std=(0.228, 0.224, 0.225))


@dataclass(frozen=True)
class PublishedWeights:
    """A file of published weights and its architecture (the file has no `fc`)."""

    url: str
    arch: str = "torchvision/resnet50"


# the reference's model zoo; `swav` is its best ResNet-50
PUBLISHED = {
    "swav": PublishedWeights(_BASE_URL + "swav_800ep_pretrain.pth.tar"),
    "swav-800ep": PublishedWeights(_BASE_URL + "swav_800ep_pretrain.pth.tar"),
    "swav-400ep": PublishedWeights(_BASE_URL + "swav_400ep_pretrain.pth.tar"),
    "swav-200ep": PublishedWeights(_BASE_URL + "swav_200ep_pretrain.pth.tar"),
    "swav-100ep": PublishedWeights(_BASE_URL + "swav_100ep_pretrain.pth.tar"),
    "swav-400ep-bs256": PublishedWeights(_BASE_URL + "swav_400ep_bs256_pretrain.pth.tar"),
    "swav-200ep-bs256": PublishedWeights(_BASE_URL + "swav_200ep_bs256_pretrain.pth.tar"),
    "swav-400ep-2x224": PublishedWeights(_BASE_URL + "swav_400ep_2x224_pretrain.pth.tar"),
    "swav-w2": PublishedWeights(
        _BASE_URL + "swav_RN50w2_400ep_pretrain.pth.tar", "unfreeze/resnet50w2"
    ),
    "swav-w4": PublishedWeights(
        _BASE_URL + "swav_RN50w4_400ep_pretrain.pth.tar", "unfreeze/resnet50w4"
    ),
    "swav-w5": PublishedWeights(
        _BASE_URL + "swav_RN50w5_400ep_pretrain.pth.tar", "unfreeze/resnet50w5"
    ),
}


def licence_of(spec: str, arch: str = "") -> str:
    """The licence of the published weights that `spec` (name, path or URL) names; else "".

    `arch`: their architecture, to which a tag of timm's (or imagenet) belongs. WeightsError if timm
    has no such weights.
    """
    named = weights_architecture(spec)
    if named is not None:
        arch, spec = named, "imagenet"
    if arch.startswith("timm/") and spec not in PUBLISHED and not Path(spec).exists():
        return timm_licence(full_name(arch.partition("/")[2], spec))
    files = {PurePosixPath(entry.url).name for entry in PUBLISHED.values()}
    known = spec in PUBLISHED or PurePosixPath(spec.replace("\\", "/")).name in files
    return LICENCE if known else ""


_FILES = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors", ".pkl", ".json")
# torch.hub's convention: name-<first digits of the SHA-256>.ext
_HASHED = re.compile(r"-([a-f0-9]{8,})\.")


@dataclass(frozen=True)
class WeightSource:
    """Weights and the preprocessing they were trained with (None: unknown).

    `name`: as the user wrote it, for messages; `source`: exact description, for the run's records;
    `beside`: other sets of tensors in the file (such as a separate SwAV head); `terms`: a sentence
    about the `licence` and what is known of a teacher (`ModelCard.terms`); `notes`: remarks for the
    console and log;
    `unproved`: whether no checksum confirms that the file is intact.
    """

    tensors: dict[str, torch.Tensor]
    preprocess: Preprocess | None
    name: str
    source: str
    beside: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    terms: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unproved: bool = False


def read_weights(spec: str, arch: str) -> WeightSource:
    """The weights that `spec` (imagenet, NAME, URL, FILE or RUN) names, for a canonical `arch`.

    NAME: published weights, a member of torchvision's weights, a tag of timm's, or timm/NAME.TAG.

    Other tools' files do not state their preprocessing; that of the architecture's default weights
    is assumed, and `source` says so. WeightsError if nothing is found or a download fails.
    """
    if "://" in spec:
        return _from_url(spec, arch, spec)
    if spec != "imagenet" and Path(spec).exists():
        return _from_file(Path(spec), arch, spec)
    if spec in PUBLISHED:
        return _from_published(spec, arch)
    named = weights_architecture(spec)
    if named is not None:
        check_same_network(spec, named, arch)
        arch, spec = named, "imagenet"
    elif "/" in spec or "\\" in spec or spec.endswith(_FILES):
        raise WeightsError(f"No such file or folder: {spec}.", "Check the path.")
    library, _, name = arch.partition("/")
    if library == "torchvision":
        return _from_torchvision(name, spec)
    if library == "timm":
        return _from_timm(name, spec)
    raise WeightsError(
        f"There are no published weights called '{spec}' for {arch}.",
        "Give a file or a run, or start from scratch with --weights none (pretrain: --init none).",
    )


def _from_file(path: Path, arch: str, spec: str) -> WeightSource:
    if model_folder(path) is not None:
        tensors, card = load_model(path)
        preprocess = Preprocess.from_dict(card.preprocess) if card.preprocess else None
        return WeightSource(tensors, preprocess, spec, f"{spec} ({card.arch})", terms=card.terms)
    return _from_contents(read_checkpoint(path), arch, spec, path)


def _from_contents(contents: CheckpointContents, arch: str, spec: str, path: Path) -> WeightSource:
    assumed, name = default_preprocess(arch)
    if contents.card is not None and contents.card.preprocess:
        assumed, name = Preprocess.from_dict(contents.card.preprocess), ""
    inside = f" [{contents.container}]" if contents.container else ""
    averaged = ", averaged (EMA) weights" if is_averaged(contents.container) else ""
    note = f", preprocessing of {name} assumed" if name else ""
    ready = loadable_tensors(contents, path, spec)
    unproved = () if contents.verified else (f"no checksum in this {contents.format} file",)
    return WeightSource(
        ready.tensors,
        assumed,
        spec,
        f"{spec}{inside}{averaged}{note}",
        contents.beside,
        terms_of_file(contents, spec),
        (*ready.notes, *unproved),
        not contents.verified,
    )


def terms_of_file(contents: CheckpointContents, spec: str) -> dict[str, str]:
    """Licences and teacher (`ModelCard.terms`) of a file: by its name, its card or its metadata."""
    card = contents.meta.get("card", contents.meta)
    written = card.get("provenance", card) if isinstance(card, dict) else None
    known = terms_in(written) if isinstance(written, dict) else {}
    licence = licence_of(spec)
    return known | ({"licence": licence} if licence else {})


def _from_url(url: str, arch: str, spec: str) -> WeightSource:
    path, fresh = _download(url)
    try:
        return _from_contents(read_checkpoint(path), arch, spec, path)
    except WeightsError:
        if fresh:
            path.unlink()  # an error page must not stay in the download cache
        raise


def _from_published(spec: str, arch: str) -> WeightSource:
    published = PUBLISHED[spec]
    check_same_network(f"'{spec}'", published.arch, arch)
    origin = _from_url(published.url, arch, spec)
    return replace(origin, preprocess=SWAV_PREPROCESS, source=f"{spec} ({published.url})")


def default_preprocess(arch: str) -> tuple[Preprocess | None, str]:
    """(preprocessing, name) of the default weights of a canonical `arch`; (None, "") for none."""
    library, _, name = arch.partition("/")
    if library == "torchvision":
        weights = _torchvision_weights(name, "imagenet")
        return _torchvision_preprocess(weights), str(weights)
    if library == "timm":
        return timm_preprocess(name), f"timm's {name}"
    return None, ""


def _from_torchvision(name: str, spec: str) -> WeightSource:
    weights = _torchvision_weights(name, spec)
    with _downloading(str(weights), weights.url):
        tensors = weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    preprocess = _torchvision_preprocess(weights)
    return WeightSource(dict(tensors), preprocess, str(weights), f"torchvision {weights}")


def _torchvision_weights(name: str, spec: str) -> Any:
    """The member of torchvision's weights enum; `imagenet` means DEFAULT."""
    import torchvision

    known = torchvision.models.get_model_weights(name)
    member = "DEFAULT" if spec == "imagenet" else spec.rpartition(".")[2]
    if member in known.__members__:
        return known[member]
    raise WeightsError(
        f"torchvision/{name} has no weights called '{spec}'.",
        f"It has {', '.join(entry.name for entry in known)}; a file or a run also works.",
    )


def _torchvision_preprocess(weights: Any) -> Preprocess:
    preset = weights.transforms()
    return Preprocess(
        image_size=int(preset.crop_size[0]),
        resize=int(preset.resize_size[0]),
        interpolation=str(preset.interpolation.value),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _from_timm(name: str, spec: str) -> WeightSource:
    import timm

    full = full_name(name, spec)
    with _downloading(f"timm {full}", "huggingface.co"):
        model: Any = timm.create_model(full, pretrained=True)
    exact = f"timm {model.pretrained_cfg['architecture']}.{model.pretrained_cfg['tag']}"
    licence = timm_licence(exact.removeprefix("timm "))
    return WeightSource(
        model.state_dict(), timm_preprocess(full), exact, exact, terms={"licence": licence}
    )


def _download(url: str) -> tuple[Path, bool]:
    """(path in torch's download cache, whether it was downloaded just now) of a URL.

    A hash in the file name is verified. Names without one get a hash of the URL in front, unless
    they are of SwAV's published weights: many files are called `model.pth`.
    """
    name = PurePosixPath(urlparse(url).path).name or "weights.pth"
    hashed = _HASHED.search(name)
    keep_name = hashed or url in {entry.url for entry in PUBLISHED.values()}
    file_name = name if keep_name else f"{hashlib.sha256(url.encode()).hexdigest()[:12]}_{name}"
    target = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if target.exists():
        return target, False
    target.parent.mkdir(parents=True, exist_ok=True)
    with _downloading(name, url):
        torch.hub.download_url_to_file(
            url, str(target), hashed.group(1) if hashed else None, sys.stderr.isatty()
        )
    return target, True


@contextmanager
def _downloading(what: str, where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # urllib, requests, httpx and the hub raise different errors
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if _needs_consent(error):
            raise WeightsError(
                f"{what} could not be downloaded: {where} asks for consent to its licence first.",
                "Accept it on the page of the weights there and set HF_TOKEN, or give the file "
                "with --weights FILE.",
            ) from error
        raise WeightsError(
            f"{what} could not be downloaded from {where}: {reason}",
            "Check the connection, or download the file elsewhere and give it with --weights FILE, "
            "or start from scratch with --weights none (pretrain: --init).",
        ) from error


def _needs_consent(error: BaseException) -> bool:
    """Whether a download failed because the weights are gated, also if another error hides it."""
    while type(error).__name__ != "GatedRepoError":
        following = error.__cause__ or error.__context__
        if following is None:
            return False
        error = following
    return True
