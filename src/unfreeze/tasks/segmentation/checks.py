"""Checks of masks for `scan` and `show`: missing, of another size, unknown values, empty."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfreeze.data.index.index import Index, build_index
from unfreeze.data.index.mask_pairs import mask_rows
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.precheck import ImageProblem
from unfreeze.errors import DataError
from unfreeze.tasks.segmentation.masks import ClassIds
from unfreeze.tasks.segmentation.task import SegmentationTask

NO_MASK, UNREADABLE, OTHER_SIZE = "no mask", "unreadable mask", "mask of another size"
UNKNOWN_VALUE, EMPTY, ROTATED = "unknown mask value", "empty mask", "rotated image, plain mask"


@dataclass(frozen=True)
class MaskedImages:
    """All images of a source, without the masks, and the task that reads their masks.

    `index`: unlabelled; `pairs`: the images with a mask. `task`: fitted, None if the values of the
    masks cannot be classes, which `problem` says. `broken`: masks that cannot be read, and why.
    """

    index: Index
    pairs: Index
    task: SegmentationTask | None
    broken: Mapping[str, str]
    problem: str = ""


def images_with_masks(source: Source) -> MaskedImages:
    """The images and masks of a source with `has_masks`."""
    whole = build_index(source, strange_classes=True)
    masks = set(mask_rows(source))
    images = whole.take(np.array([row not in masks for row in whole.rows.tolist()], np.bool_))
    task = SegmentationTask()
    try:
        pairs = task.index(source)
    except DataError as error:  # such as two masks of one image: a finding
        pairs = images.take(np.zeros(0, np.int64))
        index = replace(images, labels=np.full(len(images), -1, np.int32), classes=(), doubt=None)
        return MaskedImages(index, pairs, None, {}, f"{error.sentence} {error.next_step}")
    splits = dict(zip(pairs.rows.tolist(), pairs.splits.tolist(), strict=True))
    index = replace(
        images,
        labels=np.full(len(images), -1, np.int32),
        classes=(),
        splits=np.array([splits.get(row, 0) for row in images.rows.tolist()], np.int8),
        other=whole.other + len(whole) - len(images),
        notes=pairs.notes,
        doubt=None,
    )
    broken = dict[str, str]()
    for name in pairs.classes:
        try:
            task.facts([name])
        except DataError as error:
            broken[name] = error.sentence
    readable = [name for name in pairs.classes if name not in broken]
    try:
        if not readable:
            raise DataError("No mask can be read.", "Replace them.")
        task.fit(readable)
    except DataError as error:
        return MaskedImages(index, pairs, None, broken, error.sentence)
    return MaskedImages(index, pairs, task, broken)


def mask_problems(images: MaskedImages) -> Iterator[ImageProblem]:
    """What is wrong with the masks; the path is that of the image, the detail names its mask."""
    index, pairs, task = images.index, images.pairs, images.task
    if not len(pairs):
        return  # `images.problem` says why
    masked = set(pairs.rows.tolist())
    for row, path in zip(index.rows.tolist(), index.paths, strict=True):
        if row not in masked:
            yield ImageProblem(path, NO_MASK, "not used for segmentation", False)
    for position, path in enumerate(pairs.paths):
        name = pairs.classes[pairs.labels[position]]
        if name in images.broken:
            yield ImageProblem(path, UNREADABLE, images.broken[name], False)
        if task is None or name in images.broken:
            continue
        for reason, detail in _findings(task, pairs, position, name):
            yield ImageProblem(path, reason, detail, False)


def _findings(
    task: SegmentationTask, pairs: Index, position: int, name: str
) -> Iterator[tuple[str, str]]:
    facts = task.facts([name])[0]
    table = task.known_classes
    if unknown := sorted(set(facts.counts) - {*table.values, *table.ignored}):
        count = sum(facts.counts[value] for value in unknown)
        shown = ", ".join(map(table.text, unknown[:5]))
        yield UNKNOWN_VALUE, f"{name}: {shown} ({count:,} pixels)"
    elif len(set(facts.counts) - set(table.ignored)) <= 1:
        yield EMPTY, f"{name}: at most one class"
    if mismatch := task.size_problem(pairs, position, name):
        yield (ROTATED if mismatch.rotated else OTHER_SIZE), mismatch.detail


def mask_of_row(images: MaskedImages, row: int) -> ClassIds | None:
    """Class ids [H, W] of the mask of an image by its row; None without a usable one."""
    positions = np.flatnonzero(images.pairs.rows == row)
    if images.task is None or not len(positions):
        return None
    name = images.pairs.classes[images.pairs.labels[positions[0]]]
    try:
        return images.task.mask(int(images.task.targets([name])[0]))
    except DataError:
        return None  # `mask_problems` names it


def class_notes(images: MaskedImages) -> Sequence[str]:
    """For each class: the number of images with it, and its share of the pixels."""
    task = images.task
    if task is None:
        return [images.problem]
    names = [name for name in images.pairs.classes if name not in images.broken]
    facts, table = task.facts(names), task.known_classes
    total = sum(sum(fact.counts.values()) for fact in facts)
    return [
        f"{name}: in {sum(value in fact.counts for fact in facts):,} images, "
        f"{sum(fact.counts.get(value, 0) for fact in facts) / max(1, total):.1%} of the pixels."
        for name, value in zip(table.names, table.values, strict=True)
    ]
