"""The initial weights of a comparison, the runs from each, and what they are evaluated on."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.checkpoints.model_file import model_folder, read_card
from unfreeze.config.commands import TFIDF, CompareSettings
from unfreeze.config.finetune import FinetuneOptions, FinetuneSettings
from unfreeze.config.shared import data_name, label_arguments
from unfreeze.data.images.intensity import parse_intensity
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import DataError, UsageError
from unfreeze.experiments.run_table import RunSpec
from unfreeze.models.identify_file import arch_of_weights
from unfreeze.models.segmentation import is_segmentation_arch
from unfreeze.models.text import is_text_arch
from unfreeze.runs.finetuning.data import LabelledListing, read_labels, split_options
from unfreeze.runtime.console import Console, QuietConsole
from unfreeze.transfer.initialize import build_segmentation_start, build_start
from unfreeze.transfer.texts.initialize import build_text_start

INHERITED = ("arch", "stem", "image_size", "fit", "mean", "std")
PlanOf = Callable[[FinetuneSettings], Any]  # the `FinetunePlan` of a run with these settings


@dataclass(frozen=True)
class CompareStart:
    """One value of `--weights`, the settings of its runs, and the plan of the first run."""

    weights: str
    settings: FinetuneSettings
    plan: Any  # a `FinetunePlan`

    @property
    def name(self) -> str:
        """The name to display; of a path its last part."""
        return Path(self.weights).name if Path(self.weights).exists() else self.weights


@dataclass(frozen=True)
class CompareRun(RunSpec):
    """A start with a seed; its `settings` have the resolved network and preprocessing.

    `run_name`: name of its folder, such as `02-swav-seed-1`. `variants`: settings as given, for
    each of `--rates` with a folder of its own (`run_name` and the rate); without rates one. The
    result is stored in the folder of the first.
    """

    start: CompareStart
    run_name: str
    variants: tuple[FinetuneSettings, ...]

    @property
    def labels(self) -> int | None:
        """Labels per class; None: all."""
        return self.settings.labels_per_class


def all_starts(s: CompareSettings, plan_of: PlanOf, *, dense: bool = False) -> list[CompareStart]:
    """All starts, in the order of `--weights`; trains and downloads nothing.

    `dense`: for segmentation, whose networks are chosen by the encoder of the weights.

    Weights that show their architecture have their own; others have that of the first that does.
    Values of `--arch`, `--stem`, `--image-size`, `--mean`, `--std`, `--range` and `--channels`
    that are not given are for `none` those of the first pretrained start (runs before others), so
    that only the weights differ from that one. With `--lr` or `--rates` also `--optimizer`: a
    learning rate is one of an optimizer.
    """
    if len(s.weights) < 2 or len(set(s.weights)) < len(s.weights):
        raise UsageError(
            "compare needs two or more different --weights.", "For example: --weights none RUN."
        )
    networks = [w for w in s.weights if w not in ("none", TFIDF)]
    arch_of = {} if dense else _arch_of_weights(networks, s.arch)
    arch = s.arch or next(iter(arch_of.values()), None)
    by_weights = {
        w: _start(s, w, {"arch": arch_of.get(w) or _arch_for(w, s.arch, arch)}, plan_of)
        for w in networks
    }
    if dense:
        _check_one_arch({w: str(by_weights[w].plan.settings["arch"]) for w in networks})
    if "none" in s.weights:
        known = None if dense else arch
        unfreeze_runs = [w for w in by_weights if arch_of_weights(w, known) is not None]
        model = next(iter(unfreeze_runs or by_weights), None)
        if model is None:
            raise UsageError(
                f"compare needs other --weights beside none and {TFIDF}.", "Add those of a network."
            )
        reference = by_weights[model].plan.settings
        texts = is_text_arch(str(reference["arch"]))
        names: tuple[str, ...] = ("arch",) if texts else INHERITED
        if s.rates or s.lr is not None:
            names = (*names, "optimizer")
        filled = {n: reference[n] for n in names if getattr(s, n) in (None, "auto")}
        if not texts:
            filled |= {n: v for n, v in _decoding_of(model).items() if getattr(s, n) is None}
        by_weights["none"] = _start(s, "none", filled, plan_of)
    if TFIDF in s.weights:
        # the texts, splits and seeds of the others
        other = next(iter(by_weights.values()))
        if not is_text_arch(str(other.plan.settings["arch"])):
            raise UsageError(f"--weights {TFIDF} is for texts.", "Omit it.")
        settings = replace(other.settings, weights=TFIDF)
        by_weights[TFIDF] = CompareStart(TFIDF, settings, other.plan)
    return [by_weights[weights] for weights in s.weights]


def _decoding_of(weights: str) -> dict[str, Any]:
    """The intensity range and channels of a run; {} if `weights` is not a run."""
    if not Path(weights).exists() or model_folder(weights) is None:
        return {}
    preprocess = Preprocess.from_dict(read_card(weights).preprocess)
    rule, channels = parse_intensity(preprocess.intensity)
    return {"range": rule, "channels": channels}


def _start(
    s: CompareSettings, weights: str, extra: dict[str, Any], plan_of: PlanOf
) -> CompareStart:
    """The start of `weights`, with its settings and the plan of a dry run."""
    values = {entry.name: getattr(s, entry.name) for entry in fields(FinetuneOptions)}
    for name, value in extra.items():
        if value is not None:
            values[name] = tuple(value) if isinstance(value, list) else value
    values |= {"weights": weights, "resume": None, "overwrite": False}
    values["labels_per_class"] = label_counts(s)[-1]
    config = FinetuneSettings(**values | {"out": None, "dry_run": False})
    return CompareStart(weights, config, plan_of(config))


def _arch_of_weights(weights: Sequence[str], given: str | None) -> dict[str, str]:
    """Weights -> architecture, of those that name or show one; `given`: by --arch, for all."""
    if given:
        return {}
    known = {w: arch_of_weights(w) for w in weights}
    return {w: found.arch for w, found in known.items() if found is not None}


def _arch_for(weights: str, given: str | None, common: str | None) -> str | None:
    """The architecture for weights that show none: that of the others, unless they name a network.

    A name with a library, such as timm/NAME, is resolved as by `finetune`.
    """
    return given if given or ("/" in weights and "://" not in weights) else common


def _check_one_arch(arch_of: Mapping[str, str]) -> None:
    """UsageError if the architectures of the weights differ."""
    if len(set(arch_of.values())) > 1:
        list_of = ", ".join(f"{name} is a {arch}" for name, arch in arch_of.items())
        raise UsageError(
            f"The weights are of different architectures: {list_of}.",
            "Compare weights of one architecture.",
        )


def label_counts(s: CompareSettings) -> tuple[int | None, ...]:
    """Labels per class, ascending; (None,): all labels."""
    counts = s.labels_per_class or ()
    if len(set(counts)) < len(counts):
        raise UsageError("--labels-per-class repeats a number.", "Give each once.")
    return tuple(sorted(counts)) or (None,)


def compare_runs(s: CompareSettings, starts: list[CompareStart], folder: Path) -> list[CompareRun]:
    """All runs, seed by seed, so that an interrupted comparison has complete seeds."""
    runs, counts = [], label_counts(s)
    seeds = range(s.seed, s.seed + s.seeds)
    for seed, labels in itertools.product(seeds, counts):
        for number, start in enumerate(starts, 1):
            # numbered by start, so that a comparison can be extended
            slug = re.sub(r"[^A-Za-z0-9._-]+", "-", start.name)[:40].strip("-.") or "start"
            several = f"-labels-{labels}" if len(counts) > 1 else ""
            path = folder / f"{number:02}-{slug}-seed-{seed}{several}"
            lr_of: dict[str, float | None] = {f"{path}-lr-{r:g}": r for r in s.rates or ()}
            variants = tuple(
                replace(start.settings, seed=seed, out=out, lr=lr, labels_per_class=labels)
                for out, lr in (lr_of or {str(path): start.settings.lr}).items()
            )
            # resolved: other --weights may lead to the same values
            resolved = {n: start.plan.settings[n] for n in (*INHERITED, "range", "channels")}
            resolved["range"] = resolved["range"] or "auto"
            settings = replace(variants[0], **resolved)
            name, first = f"{start.name}, seed {seed}", Path(str(settings.out))
            name += f", {labels} labels per class" if several else ""
            runs.append(CompareRun(name, first, settings, start, path.name, variants))
    return runs


def check_weights(start: CompareStart, s: CompareSettings, console: Console) -> None:
    """Load the weights once before training; WeightsError if they are missing or do not fit."""
    if start.weights in ("none", TFIDF):
        return
    settings, arch = start.settings, str(start.plan.settings["arch"])
    # tasks of other packages have no classes
    options: dict[str, Any] = {"outputs": max(1, len(start.plan.classes))}
    options["allow_partial"] = s.allow_partial
    if is_text_arch(arch):
        loaded = build_text_start(arch, start.weights, **options).loaded
    elif is_segmentation_arch(arch):
        loaded = build_segmentation_start(arch, start.weights, **options).loaded
    else:
        side = read_labels(settings, QuietConsole()).side
        loaded = build_start(arch, start.weights, settings.stem, side=side, **options).loaded
    if loaded is not None:
        console.say(f"{start.name}: {loaded.account}")
        if loaded.licence:
            console.say(loaded.licence)


def evaluation_data(s: CompareSettings, listing: LabelledListing) -> dict[str, Any]:
    """Settings for `evaluate`: the data of `--test`, else test of DATA, else the validation set.

    `listing`: labels of DATA.

    DataError if there is no validation set either.
    """
    if s.test:
        return {"data": (s.test,), "split": None}
    labels: dict[str, Any] = label_arguments(s)
    if s.masks is not None:
        labels["masks"] = s.masks
    if listing.census.splits.get("test"):
        return {"data": s.data, "split": "test", **labels}
    options = replace(split_options(s), labels_per_class=label_counts(s)[0])
    if not len(listing.split(np.arange(len(listing.index)), options).val):
        raise DataError(
            f"Nothing to evaluate on: {data_name(s.data)} has no test split, and no validation "
            "images are held out.",
            "Give labelled images with --test, or add a test split to DATA.",
        )
    return {"data": s.data, "split": "val", **labels}
