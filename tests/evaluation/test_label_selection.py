"""Which images to label next: beside slow versions of the papers' rules, and laws."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from unfreeze.evaluation import label_selection
from unfreeze.evaluation.label_selection import (
    NEIGHBOURS,
    POOL,
    SMALL_CLUSTER,
    Picker,
    clustering_space,
    margin_uncertainty,
    pick_typical,
    pick_uncertain,
    random_order,
)


def blobs(sizes, seed=0, width=6):
    """Points around centres, shuffled, and the centre of each."""
    draw = np.random.default_rng(seed)
    owner = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = draw.normal(size=(len(sizes), width)) * 4
    return (centres[owner] + draw.normal(size=(len(owner), width))).astype(np.float32), owner


def alone(count):
    return lambda position: np.arange(count) == position


def typical(space, labelled, budget, free=None, alike=None, seed=0):
    free = ~labelled if free is None else free
    picker = Picker(free, budget, alike or alone(len(space)))
    pick_typical(space, labelled, picker, seed=seed)
    return picker.picks


def slow_typiclust(space, labelled, budget, seed=0):
    """The rules of the paper, one image and one cluster after the other."""
    count = min(int(labelled.sum()) + budget, 500)
    clusters = KMeans(count, n_init=1, random_state=seed).fit(space).labels_
    members = [[i for i in range(len(space)) if clusters[i] == c] for c in range(count)]
    order = sorted(
        range(count),
        key=lambda c: (
            len(members[c]) < SMALL_CLUSTER,
            sum(labelled[i] for i in members[c]),
            -len(members[c]),
            c,
        ),
    )

    def typicality(i, cluster):
        distances = sorted(np.linalg.norm(space[i] - space[j]) for j in cluster if j != i)
        nearest = distances[: min(NEIGHBOURS, max(1, len(cluster) // 2))]
        return 1 / np.mean(nearest) if nearest else np.inf

    picks, turn = [], 0
    while len(picks) < budget:
        cluster = members[order[turn % count]]
        free = [i for i in cluster if not labelled[i] and i not in picks]
        if free:
            picks.append(max(free, key=lambda i: typicality(i, cluster)))
        turn += 1
    return picks


@pytest.mark.parametrize(("budget", "known"), [(1, 0), (4, 0), (7, 5), (12, 12), (30, 3)])
def test_typical_images_are_those_of_typiclust(budget, known):
    space, _ = blobs([30, 20, 12, 8, 3], seed=budget)
    labelled = np.zeros(len(space), bool)
    labelled[np.random.default_rng(1).permutation(len(space))[:known]] = True
    assert typical(space, labelled, budget) == slow_typiclust(space, labelled, budget)


def test_each_cluster_has_its_turn_and_labelled_ones_come_last():
    space, owner = blobs([40, 30, 20, 10])
    nothing = np.zeros(len(space), bool)
    assert sorted(owner[typical(space, nothing, 4)]) == [0, 1, 2, 3]
    assert owner[typical(space, nothing, 4)].tolist() == [0, 1, 2, 3]  # larger ones first
    labelled = nothing.copy()
    labelled[np.flatnonzero(owner == 0)[:3]] = True
    # as many clusters as labels and budget: the first picks are of clusters without labels
    assert 0 not in owner[typical(space, labelled, 4)[:3]]


def test_typical_is_dense_and_outliers_come_last():
    space, _ = blobs([40, 40])
    far = np.concatenate([space, [[500.0] * 6, [-900.0] * 6]]).astype(np.float32)
    picks = typical(far, np.zeros(len(far), bool), 4)
    assert set(picks[:2]).isdisjoint({80, 81}) and set(picks[2:]) == {80, 81}


def test_what_is_not_free_is_never_picked_and_duplicates_never_twice():
    space, _ = blobs([40, 30])
    pairs = np.arange(70) // 2
    labelled = np.zeros(70, bool)
    labelled[:20] = True
    doubt = np.random.default_rng(0).random(70)

    def alike(position):
        return pairs == pairs[position]

    for budget in (5, 25, 60):
        for choose in ("typical", "uncertain", "random"):
            picker = Picker(~labelled, budget, alike)
            if choose == "typical":
                pick_typical(space, labelled, picker, seed=0)
            elif choose == "uncertain":
                pick_uncertain(space, doubt, picker, seed=0)
            else:
                picker.fill(random_order(70, seed=0))
            assert len(picker.picks) == min(budget, 25)
            assert not labelled[picker.picks].any()
            assert len(set(pairs[picker.picks])) == len(picker.picks)


def test_uncertain_images_are_of_the_pool_and_spread_over_it():
    space, owner = blobs([50] * 4)
    doubt = np.where(owner < 3, 0.9, 0.1) + np.random.default_rng(0).random(200) / 100
    picker = Picker(np.ones(200, bool), 3, alone(200))
    pick_uncertain(space, doubt, picker, seed=0)
    assert set(picker.picks) <= set(np.argsort(-doubt)[: 3 * POOL].tolist())
    wide = Picker(np.ones(200, bool), 15, alone(200))
    pick_uncertain(space, doubt, wide, seed=0)
    assert {0, 1, 2} == set(owner[wide.picks].tolist())
    assert (np.diff(doubt[wide.picks]) <= 0).all()  # the most uncertain first


def test_uncertain_picks_are_the_centres_of_k_means():
    space, _ = blobs([40, 40, 40], seed=3)
    doubt = np.random.default_rng(1).random(120)
    picker = Picker(np.ones(120, bool), 4, alone(120))
    pick_uncertain(space, doubt, picker, seed=5)
    pool = sorted(range(120), key=lambda i: -doubt[i])[:40]
    model = KMeans(4, n_init=1, random_state=5).fit(space[pool])
    centres = [
        pool[min(range(40), key=lambda i: np.linalg.norm(space[pool[i]] - centre))]
        for centre in model.cluster_centers_
    ]
    assert picker.picks == sorted(centres, key=lambda i: -doubt[i])


def test_the_budget_is_spent_even_where_clusters_are_too_few():
    space = np.ones((9, 3), np.float32)
    picker = Picker(np.ones(9, bool), 6, alone(9))
    pick_uncertain(space, np.arange(9) / 9, picker, seed=0)
    assert len(picker.picks) == 6
    assert len(typical(space, np.zeros(9, bool), 6)) == 6
    assert len(typical(space[:1], np.zeros(1, bool), 3)) == 1


def test_nothing_free_is_nothing_picked():
    picker = Picker(np.zeros(5, bool), 3, alone(5))
    pick_uncertain(np.ones((5, 2), np.float32), np.ones(5), picker, seed=0)
    pick_typical(np.ones((5, 2), np.float32), np.ones(5, bool), picker, seed=0)
    assert picker.picks == []


def test_margins_by_hand():
    shares = np.array([[0.7, 0.2, 0.1], [0.4, 0.2, 0.4], [0.0, 0.0, 1.0], [0.1, 0.6, 0.3]])
    assert np.allclose(margin_uncertainty(shares), [0.5, 1.0, 0.0, 0.7])


def test_the_space_is_centred_of_unit_length_and_keeps_distances():
    draw = np.random.default_rng(0)
    few = draw.random((50, 20)).astype(np.float32)
    space = clustering_space(few)
    centred = few - few.mean(axis=0)
    assert np.allclose(space, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-6)
    # features in a subspace lose nothing in 64 components
    many = (draw.normal(size=(300, 10)) @ draw.normal(size=(10, 200)) + 5).astype(np.float32)
    reduced, unit = clustering_space(many), many - many.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert reduced.shape == (300, 64)
    expected = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    assert np.allclose(
        np.linalg.norm(reduced[:, None] - reduced[None], axis=2), expected, atol=1e-4
    )


def test_the_same_seed_gives_the_same_choice(monkeypatch):
    space, _ = blobs([60, 60])
    doubt = np.random.default_rng(0).random(120)
    for limit in (label_selection._LLOYD, 0):  # k-means, and in mini-batches
        monkeypatch.setattr(label_selection, "_LLOYD", limit)
        seen = []
        for _ in range(2):
            picker = Picker(np.ones(120, bool), 10, alone(120))
            pick_uncertain(space, doubt, picker, seed=3)
            seen.append((picker.picks, typical(space, np.zeros(120, bool), 10, seed=3)))
        assert seen[0] == seen[1]


def test_random_orders_are_uniform():
    counts = np.zeros(5)
    for seed in range(500):
        counts[random_order(5, seed=seed)[0]] += 1
    assert (np.abs(counts - 100) < 40).all()
