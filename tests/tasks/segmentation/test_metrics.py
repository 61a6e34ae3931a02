"""One confusion matrix over a data set, beside slow sets of pixels and other libraries."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from sklearn.metrics import jaccard_score

from unfreeze.tasks.segmentation.masks import IGNORED
from unfreeze.tasks.segmentation.metrics import (
    at_size,
    dice_of_classes,
    iou_of_classes,
    pixel_confusion,
    pixel_metrics,
    predicted_ids,
    segmentation_details,
)


@pytest.fixture
def maps():
    """Predictions and truth [5, 20, 30] of four classes, of which the last never occurs."""
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, (5, 20, 30)).astype(np.uint8)
    predicted = np.where(draw.random(truth.shape) < 0.6, truth, draw.integers(0, 3, truth.shape))
    truth[0, :4] = IGNORED
    return predicted.astype(np.uint8), truth


def table_of(predicted, truth, classes=4):
    return sum(pixel_confusion(p, t, classes) for p, t in zip(predicted, truth, strict=True))


def test_iou_equals_sets_of_pixels(maps):
    predicted, truth = maps
    ious = iou_of_classes(table_of(*maps))
    places = list(zip(*np.nonzero(truth != IGNORED), strict=True))
    for number in range(3):
        ours = {place for place in places if predicted[place] == number}
        theirs = {place for place in places if truth[place] == number}
        assert ious[number] == len(ours & theirs) / len(ours | theirs)
    assert ious[3] is None  # neither in truth nor in prediction
    known = [iou for iou in ious if iou is not None]
    assert pixel_metrics(table_of(*maps))["miou"] == pytest.approx(sum(known) / 3, rel=1e-12)


def test_the_same_as_scikit_learn_and_the_library(maps):
    predicted, truth = maps
    known = truth != IGNORED
    wanted = jaccard_score(truth[known], predicted[known], average=None, labels=[0, 1, 2])
    assert iou_of_classes(table_of(*maps))[:3] == pytest.approx(wanted.tolist(), rel=1e-12)
    stats = smp.metrics.get_stats(
        torch.from_numpy(predicted).long(), torch.from_numpy(truth).long(), mode="multiclass",
        num_classes=4, ignore_index=IGNORED,
    )  # fmt: skip
    summed = [part.sum(dim=0, keepdim=True) for part in stats]
    theirs = smp.metrics.iou_score(*summed, reduction="none")[0]
    assert theirs[:3].tolist() == pytest.approx(wanted.tolist(), rel=1e-6)
    f1 = smp.metrics.f1_score(*summed, reduction="none")[0]
    assert dice_of_classes(table_of(*maps))[:3] == pytest.approx(f1[:3].tolist(), rel=1e-6)


def test_permuting_the_ids_changes_no_metric(maps):
    predicted, truth = maps
    order = np.array([2, 0, 3, 1] + [0] * 251 + [IGNORED], np.uint8)
    order[IGNORED] = IGNORED
    other = pixel_metrics(table_of(order[predicted], order[truth]))
    assert other == pytest.approx(pixel_metrics(table_of(*maps)), rel=1e-12)


def test_details_and_empty_images(maps):
    details = segmentation_details(table_of(*maps), ["a", "b", "c", "d"])
    assert details["iou"]["d"] is None and details["classes"] == ["a", "b", "c", "d"]
    assert np.array(details["confusion"]).sum() == (maps[1] != IGNORED).sum()
    empty = pixel_confusion(maps[0][0], np.full((20, 30), IGNORED, np.uint8), 4)
    assert all(np.isnan(value) for value in pixel_metrics(empty).values())


def test_logits_are_resized_before_the_maximum():
    logits = torch.tensor([[[0.0, 3.0]], [[1.0, 0.0]]])  # [2, 1, 2]
    wide = at_size(logits, (1, 8))
    assert torch.equal(predicted_and(logits, 8), wide.argmax(0))
    # 1 against 0 at the left, 3 against 0 at the right: the border is nearer to the left
    assert predicted_ids(logits, (1, 8)).tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]


def predicted_and(logits, width):
    return torch.from_numpy(predicted_ids(logits, (1, width)).astype(np.int64))
