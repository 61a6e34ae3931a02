"""The model card of a `model/` folder or an export: README.md as the Hugging Face Hub reads it.

Every statement comes from `model.json` and from an evaluation of the run; nothing is guessed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from unfreeze.checkpoints.model_file import CARD, TENSORS, ModelCard
from unfreeze.models.segmentation import is_segmentation_arch
from unfreeze.models.text import is_text_arch
from unfreeze.models.weight_sources import LICENCE
from unfreeze.runtime.console import pluralised
from unfreeze.text import clean_all

README = "README.md"
SHOWN = 50  # classes named in the text; model.json has all
_TIMM = re.compile(r"timm (\S+)")  # how weights of timm are recorded
SPLITS = {"val": "validation", "test": "test", "train": "training", "all": "all"}


@dataclass(frozen=True)
class CardMetric:
    """One measured metric: `interval` 95 %, None if it was not computed."""

    name: str
    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class CardEvaluation:
    """Metrics on `n` images (or texts) of `split`.

    `used_for_choosing`: whether the run selected its checkpoint or settings on them; `leaked`:
    number with a near-duplicate among the training images, None if unknown; `how`: the classifier,
    where it is not the model itself.
    """

    split: str
    n: int
    metrics: Sequence[CardMetric]
    used_for_choosing: bool = False
    leaked: int | None = None
    how: str = ""


def front_matter(
    card: ModelCard, name: str, evaluation: CardEvaluation | None, library: str = "unfreeze"
) -> str:
    """The YAML block at the start of a model card.

    `name`: of the model; `library`: what loads the files. The licence is that of the initial
    weights where it is known; otherwise none is stated.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license="cc-by-nc-4.0" if card.provenance.get("licence") == LICENCE else None,
        library_name=library,
        pipeline_tag=_pipeline(card),
        tags=_tags(card),
        base_model=_base_model(card),
        model_name=clean_all(name),
        eval_results=_results(card, evaluation),
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def model_card(card: ModelCard, name: str, evaluation: CardEvaluation | None) -> str:
    """README.md of a `model/` folder."""
    lines = [
        front_matter(card, name, evaluation),
        "",
        f"# {card.arch}, from {_cell(clean_all(name))}",
        "",
        what_it_is(card),
        "",
        *facts_of_model(card, evaluation),
        "## Use",
        "",
        "This folder alone is enough:",
        "",
        *_use(card),
        "",
        f"`{TENSORS}` is the state dict under the architecture's own names; `{CARD}` has classes, "
        "preprocessing and the origin of the weights. `unfreeze export FOLDER --to "
        "torchvision|timm|onnx|...` writes files for other tools, with the lines that load them "
        "without unfreeze.",
    ]
    return "\n".join(lines) + "\n"


def what_it_is(card: ModelCard) -> str:
    """What the network maps to what, in a sentence or two."""
    if card.kind == "backbone":
        return "A backbone without a head: it maps images to features."
    if not card.classes:
        outputs = pluralised(card.outputs, "output", "outputs")
        return f"A network of the task {card.task}, with {outputs}."
    count, names = len(card.classes), ", ".join(map(_cell, card.classes[:SHOWN]))
    more = f" and {count - SHOWN:,} more (in `{CARD}`)" if count > SHOWN else ""
    kind = {"segmentation": "A segmentation network", "multilabel": "A classifier of images"}.get(
        card.task, f"A classifier of {_inputs(card)}"
    )
    several = ", of which an image may have several" if card.task == "multilabel" else ""
    return f"{kind} with {pluralised(count, 'class', 'classes')}{several}: {names}{more}."


def facts_of_model(card: ModelCard, evaluation: CardEvaluation | None) -> list[str]:
    """The sections on training, evaluation and limits, as lines of Markdown."""
    return [
        "## Training",
        "",
        *_training(card),
        "",
        "## Evaluation",
        "",
        *_evaluated(card, evaluation),
        "",
        "## Not tested",
        "",
        *_untested(card, evaluation),
        "",
    ]


def _inputs(card: ModelCard) -> str:
    return "texts" if is_text_arch(card.arch) else "images"


def _pipeline(card: ModelCard) -> str | None:
    """The Hub's name of the task; None for a task of another package."""
    if not card.classes:
        return "image-feature-extraction" if card.kind == "backbone" else None
    if is_segmentation_arch(card.arch):
        return "image-segmentation"
    return "text-classification" if is_text_arch(card.arch) else "image-classification"


def _tags(card: ModelCard) -> list[str]:
    about = card.provenance
    pretrained = about.get("verb") == "pretrain"
    words = ["self-supervised-learning", str(about.get("method"))] if pretrained else []
    words += ["transfer-learning"] if about.get("verb") == "finetune" else []
    words += ["multi-label-classification"] if card.task == "multilabel" else []
    return ["unfreeze", "pytorch", *words, card.arch.replace("/", "-")]


def _source(card: ModelCard) -> str:
    """The initial weights, as recorded; of a local path only its name, which may go public."""
    return without_folder(
        str(card.provenance.get("weights", card.provenance.get("init")) or "none")
    )


def without_folder(recorded: str) -> str:
    """A recorded origin, such as `/data/x.pth (247 of 247)`; of a local path only its name."""
    path, space, rest = recorded.partition(" (")
    local = "://" not in path and PurePath(path).is_absolute()
    return f"{PurePath(path).name}{space}{rest}" if local else recorded


def _base_model(card: ModelCard) -> str | None:
    """The model on the Hub that training began with; None if it is not known to be there."""
    source = _source(card)
    if match := _TIMM.match(source):
        return f"timm/{match[1]}"
    hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)
    named = is_text_arch(card.arch) and hub_name and card.arch == f"hf/{source}"
    return source if named else None


def _results(card: ModelCard, evaluation: CardEvaluation | None) -> list[Any] | None:
    from huggingface_hub import EvalResult

    if evaluation is None or evaluation.how:  # not measured of the model alone
        return None
    return [
        EvalResult(
            task_type=_pipeline(card) or card.task,
            dataset_type="private",
            dataset_name=f"own {_inputs(card)}",
            dataset_split=evaluation.split,
            metric_type=metric.name,
            metric_value=round(metric.value, 6),
            metric_name=_metric_name(metric, evaluation),
        )
        for metric in evaluation.metrics
    ]


def _metric_name(metric: CardMetric, evaluation: CardEvaluation) -> str:
    interval = ""
    if metric.interval is not None:
        interval = "95 % interval {:.4f} to {:.4f}, ".format(*metric.interval)
    return f"{metric.name} ({interval}n = {evaluation.n:,})"


def _training(card: ModelCard) -> list[str]:
    about, preprocess, what = card.provenance, card.preprocess, _inputs(card)
    rows = [("initial weights", _source(card))]
    if about.get("licence"):
        rows.append(("licence of these weights", str(about["licence"])))
    if about.get("verb") == "pretrain":
        rows.append(("method", f"{about.get('method')}, self-supervised: no labels"))
    if about.get("teacher"):
        arch = f" ({about['teacher_arch']})" if about.get("teacher_arch") else ""
        rows.append(("teacher", without_folder(about["teacher"]) + arch))
    if about.get("teacher_licence"):
        rows.append(("licence of the teacher", str(about["teacher_licence"])))
    if about.get("verb") != "pretrain" and "freeze" in about:
        frozen = {"none": "all layers", "all": "the head alone; the backbone is frozen"}
        rows.append(
            ("trained", frozen.get(about["freeze"], f"without {about['freeze']}, which is frozen"))
        )
    if about.get("unfreeze_at"):
        rows.append(("unfrozen at", str(about["unfreeze_at"])))
    if about.get("images") is not None:
        rows.append((f"training {what}", f"{about['images']:,}"))
    if about.get("epochs"):
        rows.append(("epochs", f"{about['epochs']:,}"))
    if about.get("best_epoch") is not None:
        rows.append(("weights of epoch", f"{about['best_epoch'] + 1}, selected on validation"))
    rows.append(("seed", str(about.get("seed", "unknown"))))
    if "image_size" in preprocess and not is_text_arch(card.arch):
        rows.append(("preprocessing", _preprocessing(preprocess)))
    rows.append(("written by", f"unfreeze {card.unfreeze}"))
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _preprocessing(p: dict[str, Any]) -> str:
    mean, std = (", ".join(f"{x:.4g}" for x in p[name]) for name in ("mean", "std"))
    return (
        f"resized to {p.get('resize')} pixels ({p.get('interpolation')}), {p.get('fit')} to "
        f"{p['image_size']}; mean {mean}; standard deviation {std}"
    )


def _evaluated(card: ModelCard, evaluation: CardEvaluation | None) -> list[str]:
    if evaluation is None:
        return ["None is recorded with this model."]
    rows = [
        f"| {metric.name} | {metric.value:.4f} | "
        + ("" if metric.interval is None else "{:.4f} to {:.4f}".format(*metric.interval))
        + " |"
        for metric in evaluation.metrics
    ]
    split = SPLITS.get(evaluation.split, evaluation.split)
    notes = f"On {evaluation.n:,} {split} {_inputs(card)}{evaluation.how}."
    if evaluation.used_for_choosing:
        notes += " The checkpoint or settings were selected on them, so these values are optimistic"
        notes += "."
    if evaluation.leaked:
        notes += f" {evaluation.leaked:,} of them have a near-duplicate among the training images."
    return ["| metric | value | 95 % interval |", "|---|---|---|", *rows, "", notes]


def _untested(card: ModelCard, evaluation: CardEvaluation | None) -> list[str]:
    what = _inputs(card)
    lines = []
    if evaluation is None or evaluation.split != "test":
        lines.append(f"- A test set: no {what} that were kept apart until the end were evaluated.")
    lines.append(
        f"- {what.capitalize()} from another source (other devices, places, times or people) than "
        "those it was trained on."
    )
    if card.classes and card.task != "segmentation":
        lines.append(
            f"- {what.capitalize()} of none of its classes: it was trained to name one of them."
            if card.task != "multilabel"
            else f"- {what.capitalize()} with labels that are not among its classes."
        )
    lines.append("- Differences between groups of people, and deliberate attacks.")
    return lines


def _use(card: ModelCard) -> list[str]:
    if card.kind == "backbone":
        return [
            "```",
            "unfreeze embed FOLDER photos --out features.npz",
            "unfreeze finetune labelled --weights FOLDER --freeze all --out runs/mine",
            "```",
        ]
    sample = "a text" if is_text_arch(card.arch) else "image.jpg"
    return [
        "```python",
        "import unfreeze",
        "",
        'model = unfreeze.load("FOLDER")  # an nn.Module',
        f'print(model.predict(["{sample}"]))',
        "```",
    ]
