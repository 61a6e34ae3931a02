import numpy as np
import pytest
import torch
from sklearn.metrics import (
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from unfreeze.transfer.evaluate import confusion, score
from unfreeze.transfer.selection import Selection


def test_scores_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 7, generator=generator)
    labels = torch.randint(0, 7, (200,), generator=generator)
    found = score(logits, labels, "abcdefg")
    truth, predicted = labels.numpy(), logits.argmax(1).numpy()
    assert found.confusion == confusion_matrix(truth, predicted).tolist()
    assert found.accuracy == (truth == predicted).mean() == found.correct / found.n
    assert found.top5 == pytest.approx(top_k_accuracy_score(truth, logits.numpy(), k=5))
    chances = logits.double().softmax(1).numpy()
    assert found.loss == pytest.approx(log_loss(truth, chances))
    precision, recall, _, count = precision_recall_fscore_support(truth, predicted)
    assert np.allclose([c.precision for c in found.per_class], precision)
    assert np.allclose([c.recall for c in found.per_class], recall)
    assert [c.n for c in found.per_class] == count.tolist()


def test_a_class_that_is_not_there_has_no_recall():
    found = score(torch.tensor([[2.0, 1, 0], [0, 2, 1]]), torch.tensor([0, 0]), "abc")
    assert found.confusion == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert [c.recall for c in found.per_class] == [0.5, None, None]
    assert [c.precision for c in found.per_class] == [1.0, 0.0, None]
    assert found.top5 == 1.0


def test_rows_are_the_truth():
    assert confusion(torch.tensor([1, 1]), torch.tensor([0, 1]), 2).tolist() == [[0, 1], [0, 1]]


def test_the_best_is_accuracy_then_loss_and_patience_runs_out():
    best = Selection(patience=2)
    assert best.update(0, 0.5, 1.0) and best.update(1, 0.5, 0.9)
    assert not best.update(2, 0.5, 0.9) and not best.exhausted
    assert not best.update(3, 0.4, 0.1) and best.exhausted
    assert (best.epoch, best.accuracy) == (1, 0.5)
    assert Selection(**best.state()) == best
    endless = Selection()
    assert not any(endless.update(e, 0.5, 1.0) and endless.exhausted for e in range(50))
