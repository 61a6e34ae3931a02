import numpy as np
import pytest
import torch
from pytorch_ood.detector import KNN as ReferenceKNN
from pytorch_ood.detector import EnergyBased
from sklearn.covariance import LedoitWolf

from unfreeze.evaluation.out_of_distribution import (
    ENERGY,
    KNN,
    MAHALANOBIS,
    NEIGHBOURS,
    RelativeMahalanobis,
    auroc,
    choose_score,
    energy,
    joined,
    knn_distance,
    neighbours,
    units_of,
)

RNG = np.random.default_rng(0)


def classes(count, dims=16, each=60, spread=1.0, seed=0):
    """Features and labels of classes in directions of their own."""
    rng = np.random.default_rng(seed)
    centres = 6 * np.eye(dims)[:count]
    labels = np.tile(np.arange(count), each)
    features = centres[labels] + spread * rng.normal(size=(len(labels), dims))
    return features.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_the_distance_is_that_of_pytorch_ood(k):
    known, new = RNG.normal(size=(2500, 8)), RNG.normal(size=(1500, 8))
    known, new = known.astype(np.float32), new.astype(np.float32)
    reference = ReferenceKNN(None, k=k)
    reference.fit_features(torch.from_numpy(known), torch.zeros(len(known), dtype=torch.long))
    theirs = reference.predict_features(torch.from_numpy(new)).numpy()
    assert np.allclose(knn_distance(new, known, k), theirs, atol=1e-3)
    assert len(knn_distance(new[:0], known, k)) == 0


def test_the_energy_is_that_of_pytorch_ood():
    logits = torch.randn(50, 7) * 20
    theirs = EnergyBased.score(logits)
    assert np.allclose(energy(logits.numpy()), theirs.numpy(), rtol=1e-5)


def test_the_scale_of_features_changes_no_distance():
    features, _ = classes(3)
    some = knn_distance(features[:50], features[50:], 3)
    assert np.allclose(some, knn_distance(7 * features[:50], features[50:], 3), atol=1e-5)
    assert np.isfinite(knn_distance(np.zeros((1, 16), np.float32), features, 3)).all()


def test_neighbours_fit_into_one_class():
    assert neighbours(np.repeat([0, 1], 8)) == 4
    assert neighbours(np.repeat([0, 1], 1)) == 1
    assert neighbours(np.repeat([0, 1], 1000)) == NEIGHBOURS


def test_the_better_score_on_left_out_classes_is_chosen():
    train, labels = classes(4)
    held, held_labels = classes(4, each=30, seed=1)
    found = choose_score(train, labels, held, held_labels)
    assert found.left_out == (0, 1, 2, 3)
    assert set(found.auroc) == {KNN, f"{KNN}+{ENERGY}", f"{KNN}+{MAHALANOBIS}"}
    assert found.name == max(found.auroc, key=lambda name: found.auroc[name])
    assert found.auroc[KNN] > 0.9
    # what distances say turns around if features of all classes lie in one heap
    noise = np.random.default_rng(2).normal(size=train.shape).astype(np.float32)
    other = choose_score(noise, labels, noise[:120], held_labels)
    assert abs(other.auroc[KNN] - 0.5) < 0.2


@pytest.mark.parametrize(
    ("useless", "chosen"),
    [(("knn_distance", "RelativeMahalanobis"), ENERGY), (("knn_distance", "energy"), MAHALANOBIS)],
)
def test_a_measure_is_chosen_where_it_is_the_better(monkeypatch, useless, chosen):
    train, labels = classes(4)
    held, held_labels = classes(4, each=30, seed=1)

    def zeros(features, *_):
        return np.zeros(len(features), np.float32)

    class Useless:
        fit = staticmethod(lambda features, labels: zeros)

    for name in useless:
        fake = Useless if name == "RelativeMahalanobis" else zeros
        monkeypatch.setattr(f"unfreeze.evaluation.out_of_distribution.{name}", fake)
    found = choose_score(train, labels, held, held_labels)
    assert found.measures == (KNN, chosen) and found.auroc[KNN] == 0.5 < found.auroc[found.name]


def test_relative_mahalanobis_equals_a_slow_computation():
    train, labels = classes(3, dims=6, each=40)
    fitted = RelativeMahalanobis.fit(train, labels)
    queries = np.random.default_rng(3).normal(scale=5, size=(20, 6)).astype(np.float32)
    # with all directions the projection is a rotation, which changes no distance
    centre = train.mean(axis=0)
    means = np.stack([train[labels == c].mean(axis=0) for c in range(3)])
    within = LedoitWolf().fit(train - means[labels]).precision_
    overall = LedoitWolf().fit(train).precision_
    for query, score in zip(queries, fitted(queries), strict=True):
        to_classes = [(query - mean) @ within @ (query - mean) for mean in means]
        to_all = (query - centre) @ overall @ (query - centre)
        assert score == pytest.approx(min(to_classes) - to_all, rel=1e-3)
    assert RelativeMahalanobis.fit(train[:3], np.arange(3)) is None  # one image of each class


def test_the_largest_measure_counts_in_its_own_units():
    values = {"a": np.array([0.0, 1.0, 5.0]), "b": np.array([100.0, 400.0, 200.0])}
    joint = joined(values, {"a": (1.0, 2.0), "b": (200.0, 50.0)})
    assert joint.tolist() == [-0.5, 4.0, 2.0]
    spread = np.random.default_rng(0).normal(3, 2, 20_000)
    ((centre, unit),) = units_of({"a": spread}, ("a",)).values()
    assert centre == pytest.approx(3, abs=0.1) and unit == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("count", [1, 2])
def test_with_few_classes_it_is_the_distance(count):
    train, labels = classes(count)
    found = choose_score(train, labels, train, labels)
    assert (found.measures, found.auroc, found.left_out) == ((KNN,), {}, ())


def test_auroc_counts_pairs():
    inside, outside = np.array([0.1, 0.4, 0.4], np.float32), np.array([0.4, 0.9], np.float32)
    pairs = [1 if o > i else 0.5 if o == i else 0 for i in inside for o in outside]
    assert auroc(inside, outside) == pytest.approx(np.mean(pairs))
