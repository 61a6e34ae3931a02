import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from unfreeze.transfer.early_stopping import DECIDES, BestEpoch, score_of
from unfreeze.transfer.evaluate import classification_metrics, confusion


def test_scores_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 7, generator=generator)
    labels = torch.randint(0, 7, (200,), generator=generator)
    found = classification_metrics(logits, labels, "abcdefg")
    truth, predicted = labels.numpy(), logits.argmax(1).numpy()
    assert found.confusion == confusion_matrix(truth, predicted).tolist()
    assert found.accuracy == (truth == predicted).mean() == found.correct / found.n
    assert found.top5 == pytest.approx(top_k_accuracy_score(truth, logits.numpy(), k=5))
    chances = logits.double().softmax(1).numpy()
    assert found.loss == pytest.approx(log_loss(truth, chances))
    assert softmax(logits.double().numpy(), axis=1) == pytest.approx(chances)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    precision, recall, f1, count = precision_recall_fscore_support(truth, predicted)
    assert np.allclose([c.f1 for c in found.per_class], f1)
    assert np.allclose([c.precision for c in found.per_class], precision)
    assert np.allclose([c.recall for c in found.per_class], recall)
    assert [c.n for c in found.per_class] == count.tolist()


def test_a_class_that_is_not_there_has_no_recall():
    found = classification_metrics(
        torch.tensor([[2.0, 1, 0], [0, 2, 1]]), torch.tensor([0, 0]), "abc"
    )
    assert found.confusion == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert [c.recall for c in found.per_class] == [0.5, None, None]
    assert [c.precision for c in found.per_class] == [1.0, 0.0, None]
    assert found.top5 == 1.0


def test_rows_are_the_truth():
    assert confusion(torch.tensor([1, 1]), torch.tensor([0, 1]), 2).tolist() == [[0, 1], [0, 1]]


def test_the_best_is_accuracy_then_loss_and_patience_runs_out():
    best = BestEpoch(patience=2)
    assert best.update(0, 0.5, 1.0) and best.update(1, 0.5, 0.9)
    assert not best.update(2, 0.5, 0.9) and not best.exhausted
    assert not best.update(3, 0.4, 0.1) and best.exhausted
    assert (best.epoch, best.accuracy) == (1, 0.5)
    assert BestEpoch(**best.state()) == best
    endless = BestEpoch()
    assert not any(endless.update(e, 0.5, 1.0) and endless.exhausted for e in range(50))


def test_means_over_classes_leave_out_those_that_are_not_there():
    """As scikit-learn does: recall of classes that have images, F1 of those seen or said."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(60, 6, generator=generator)
    logits[:, 5] = -9  # never predicted
    labels = torch.randint(0, 3, (60,), generator=generator)  # 3, 4 and 5 never there
    found = classification_metrics(logits, labels, "abcdef")
    truth, predicted = labels.numpy(), logits.argmax(1).numpy()
    assert set(predicted) == {0, 1, 2, 3, 4}
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        wanted = balanced_accuracy_score(truth, predicted)
    assert found.balanced_accuracy == pytest.approx(wanted)
    assert found.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found.per_class[5].f1 is None and found.per_class[3].f1 == 0


@pytest.mark.parametrize("select", DECIDES)
def test_each_way_to_select_has_its_own_best_epoch(select):
    epochs = [
        {"accuracy": 0.9, "balanced_accuracy": 0.5, "macro_f1": 0.5, "loss": 0.9},
        {"accuracy": 0.8, "balanced_accuracy": 0.7, "macro_f1": 0.6, "loss": 0.8},
        {"accuracy": 0.7, "balanced_accuracy": 0.6, "macro_f1": 0.8, "loss": 0.7},
        {"accuracy": 0.6, "balanced_accuracy": 0.4, "macro_f1": 0.4, "loss": 0.1},
    ]
    best = BestEpoch()
    for epoch, found in enumerate(epochs):
        best.update(epoch, found["accuracy"], found["loss"], score_of(found, select))
    assert best.epoch == list(DECIDES).index(select)
    chosen = epochs[best.epoch]
    assert (best.accuracy, best.loss) == (chosen["accuracy"], chosen["loss"])
    assert BestEpoch(**best.state()) == best
