import numpy as np
import torch
import torch.nn.functional as F

from unfreeze.evaluation.knn import knn_accuracy, knn_predict, leave_one_out
from unfreeze.evaluation.logistic_regression import linear_accuracy


def clouds(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=generator)
    return 1.2 * F.one_hot(labels, 6).float() + torch.randn(n, 6, generator=generator), labels


def test_votes_equal_a_plain_loop():
    bank, labels = clouds(150, 0)
    queries, _ = clouds(40, 1)
    unit, asked = F.normalize(bank, dim=1).double(), F.normalize(queries, dim=1).double()
    expected = []
    for q in asked:
        near = (unit @ q).argsort(descending=True)[:9]
        votes = np.zeros(4)
        for i in near:
            votes[labels[i]] += np.exp(float(unit[i] @ q) / 0.07)
        expected.append(votes.argmax())
    assert knn_predict(bank, labels, queries, k=9, rows=16).tolist() == expected


def test_the_bank_finds_itself():
    bank, labels = clouds(100, 0)
    assert knn_accuracy(bank, labels, bank, labels, k=1) == 1.0


def test_linear_separates_what_is_separable_and_not_noise():
    bank, labels = clouds(300, 0)
    queries, truth = clouds(200, 1)
    real = linear_accuracy(bank.numpy(), labels.numpy(), queries.numpy(), truth.numpy())
    # features without labels in them: a class's queries get one random class together, so a single
    # draw is anywhere between 0 and 0.5
    g = torch.Generator().manual_seed(0)
    draws = [torch.randn(bank.shape, generator=g).numpy() for _ in range(12)]
    noise = [
        linear_accuracy(draw, labels.numpy(), queries.numpy(), truth.numpy()) for draw in draws
    ]
    assert real > 0.5 > 0.4 > np.mean(noise)


def test_leave_one_out_is_knn_without_the_image_itself():
    g = torch.Generator().manual_seed(4)
    features, labels = torch.randn(45, 6, generator=g), torch.randint(0, 3, (45,), generator=g)
    found = leave_one_out(features, labels, k=5, rows=16)
    for i in range(45):
        rest = torch.arange(45) != i
        alone = knn_predict(features[rest], labels[rest], features[i : i + 1], k=5)
        assert found[i] == alone[0]
