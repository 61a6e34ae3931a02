"""timm's published weights: their names, preprocessing, input size and licence."""

from pathlib import Path
from typing import Any

from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import WeightsError
from unfreeze.models.build import canonical_arch

_NAMED = ("timm", "torchvision")  # libraries whose networks name weights
_FITS = {"center": "crop", "squash": "squash", "border": "pad"}  # of timm's crop modes
# Part of a name -> default input size in pixels, where the declared one is that of a short last
# phase of training: DINOv2 was trained with 224 pixels and ended with 518 (arXiv 2304.07193,
# section 4), which costs at least five times as much.
USUAL_SIZES = {"dinov2": 224}
# licences that allow commercial use under short, well-known terms
_SHORT = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"}


def weights_architecture(spec: str) -> str | None:
    """The architecture of the weights `timm/NAME[.TAG]` or `torchvision/NAME`; None for others.

    A file or folder of that name comes first. UsageError for an unknown NAME.
    """
    library, slash, _ = spec.partition("/")
    if not slash or library not in _NAMED or Path(spec).exists():
        return None
    return canonical_arch(spec)


def check_same_network(spec: str, weights_arch: str, arch: str) -> None:
    """WeightsError if the weights `spec` are of another network than `arch`, tags aside."""
    if bare_name(weights_arch) != bare_name(arch):
        raise WeightsError(
            f"The weights {spec} are for {bare_name(weights_arch)}, not for {bare_name(arch)}.",
            f"Use --arch {weights_arch}, or omit --arch.",
        )


def bare_name(arch: str) -> str:
    """The name of an architecture without its library and the tag of its weights."""
    return canonical_arch(arch).partition("/")[2].partition(".")[0]


def full_name(name: str, spec: str) -> str:
    """Timm's name with the tag of the weights; `spec`: a tag, or imagenet for that of `name`.

    WeightsError if timm has no such weights.
    """
    import timm

    bare, _, tag = name.partition(".")
    tags = timm.list_pretrained(f"{bare}.*")
    wanted = tag if spec == "imagenet" else spec
    if not tags or (wanted and f"{bare}.{wanted}" not in tags):
        raise WeightsError(
            f"timm/{bare} has no weights called '{wanted or spec}'.",
            f"It has {', '.join(other.partition('.')[2] for other in tags) or 'none'}; a file or a "
            "run also works.",
        )
    return f"{bare}.{wanted}" if wanted else bare


def timm_preprocess(name: str) -> Preprocess:
    """The preprocessing that timm declares for weights, with the usual size of `USUAL_SIZES`."""
    from timm.data.config import resolve_data_config

    resolve: Any = resolve_data_config  # untyped in timm
    data_config = resolve(pretrained_cfg=_declared(name))
    side = usual_size(name) or int(data_config["input_size"][-1])
    return Preprocess(
        image_size=side,
        resize=int(side / data_config["crop_pct"]),
        interpolation="bicubic" if data_config["interpolation"] == "bicubic" else "bilinear",
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
        fit=_FITS[data_config["crop_mode"]],
    )


def usual_size(name: str) -> int | None:
    """The default input size in pixels where it is not the declared one."""
    return next((size for part, size in USUAL_SIZES.items() if part in name), None)


def size_reason(arch: str) -> str:
    """Why the default input size is not the one that timm declares; "" if it is."""
    library, _, name = arch.partition("/")
    size = usual_size(name) if library == "timm" else None
    if size is None:
        return ""
    declared = int(_declared(name)["input_size"][-1])
    return (
        f"that of most of the pretraining, position embeddings are interpolated; the declared "
        f"{declared} pixels (--image-size {declared}) cost at least {declared**2 // size**2} times "
        "as much"
    )


def timm_licence(name: str) -> str:
    """A sentence with the licence that timm states for weights."""
    licence = _declared(name).get("license")
    if not licence or licence == "unknown":
        return f"timm states no licence for the weights {name}: look for it before you use them."
    stated = f"timm states the licence {licence} for the weights {name}"
    if licence in _SHORT:
        return f"{stated}."
    limited = any(part in licence for part in ("-nc-", "noncommercial", "amlr"))
    no = ": no commercial use" if limited else ""
    return f"{stated}{no}; read it before you use them."


def _declared(name: str) -> dict[str, Any]:
    import timm

    try:
        cfg: Any = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag
        bare, _, tag = name.partition(".")
        raise WeightsError(
            f"timm/{bare} has no weights called '{tag}'.",
            f"Leave out .{tag}, or use a tag of `timm.list_pretrained('{bare}.*')`.",
        ) from error
    return dict(cfg.to_dict()) if cfg else {}
