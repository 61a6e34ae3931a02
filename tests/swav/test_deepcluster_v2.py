"""DeepCluster-v2: k-means over the memory, centroids for prototypes, labels for codes."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.checkpoints.state import load_last
from unfreeze.cli.main import main
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.loading.loader import Batch
from unfreeze.errors import UsageError
from unfreeze.runtime.distributed import Distributed
from unfreeze.swav.auto_recipe import plan
from unfreeze.swav.cost import plan_warnings
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.deepcluster_v2 import (
    ClusterAssignment,
    DeepClusterTask,
    nearest,
    spherical_kmeans,
)

RUN = {
    "data": "digits",
    "method": "deepcluster-v2",
    "limit": 200,
    "batch_size": 32,
    "nmb_prototypes": 10,
    "clusterings": 2,
    "arch": "unfreeze/tiny",
    "augment": "digits",
    "nmb_crops": (2,),
    "size_crops": (16,),
    "min_scale_crops": (0.5,),
    "max_scale_crops": (1.0,),
    "epochs": 3,
    "watch_every": 0,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
}


def test_k_means_finds_directions_and_its_centroids_are_their_means():
    points, truth = make_blobs(600, 8, centers=5, cluster_std=0.3, random_state=1)
    Z = F.normalize(torch.from_numpy(points), dim=1)
    scores = []
    for seed in range(8):
        centroids, labels = spherical_kmeans(Z, 5, iterations=30, seed=seed)
        assert torch.equal(labels, (Z @ centroids.T).argmax(dim=1))
        for k in labels.unique():  # it has settled
            assert torch.allclose(F.normalize(Z[labels == k].mean(dim=0), dim=0), centroids[k])
        scores.append(adjusted_rand_score(truth, labels))
    assert max(scores) == 1  # one start of eight is a lucky one


def test_an_empty_cluster_keeps_its_centroid():
    Z = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), dim=1)
    centroids, labels = spherical_kmeans(Z, 2, iterations=3, seed=0)
    assert centroids.isfinite().all() and torch.equal(labels, torch.zeros(3, dtype=torch.int64))


def test_rows_in_parts_are_rows_at_once(monkeypatch):
    Z, C = torch.randn(50, 4), torch.randn(7, 4)
    whole = nearest(Z, C)
    monkeypatch.setattr("unfreeze.swav.deepcluster_v2.CELLS", 64)
    assert torch.equal(nearest(Z, C), whole)


def test_the_loss_is_the_mean_cross_entropy_of_all_views_and_clusterings():
    s = PretrainSettings(nmb_prototypes=5, clusterings=3)
    clusters = ClusterAssignment(s, np.arange(8), Distributed())
    clusters.labels = torch.randint(5, (3, 8))
    Z = [F.normalize(torch.randn(4, 6), dim=1) for _ in range(4)]
    scores = [torch.randn(4, 15, dtype=torch.float64) for _ in Z]
    ids = np.array([6, 1, 3, 0])
    codes = clusters.codes(Z, scores, None, Batch(0, 0, ids, None, []))
    expected = torch.stack(
        [
            F.cross_entropy(view[:, 5 * h : 5 * h + 5] / 0.1, clusters.labels[h, ids])
            for view in scores
            for h in range(3)
        ]
    ).mean()
    assert torch.allclose(clusters.loss(scores, codes), expected, atol=1e-12)


def test_rows_that_are_not_numbers_are_not_remembered():
    clusters = ClusterAssignment(
        PretrainSettings(nmb_prototypes=2, clusterings=1), np.arange(4), Distributed()
    )
    clusters.memory, clusters.labels = torch.zeros(2, 4, 3), torch.zeros(1, 4, dtype=torch.int64)
    Z = [torch.ones(2, 3), torch.ones(2, 3)]
    Z[1][1, 0] = torch.nan
    clusters.codes(Z, [torch.zeros(2, 2)] * 2, None, Batch(0, 0, np.array([3, 1]), None, []))
    memory = clusters.state_dict()["memory"]
    assert torch.equal(memory[:, 3], torch.ones(2, 3)) and not memory[:, :3].any()


def test_the_prototypes_are_the_centroids_of_the_memory_at_the_epochs_start(tmp_path, monkeypatch):
    held = {}
    prototypes = ClusterAssignment.prototypes

    def watched(clusters, epoch):
        if epoch == 2 and not held:
            held["memory"] = clusters.state_dict()["memory"].clone()
        return prototypes(clusters, epoch)

    monkeypatch.setattr(ClusterAssignment, "prototypes", watched)
    unfreeze.pretrain(out=str(tmp_path / "run"), **RUN)
    state = load_last(tmp_path / "run/checkpoints")[0]
    kept, weight = state["task"], state["model"]["prototypes.weight"]
    assert weight.shape == (20, 128) and kept["memory"].shape == (2, 200, 128)
    assert kept["labels"].shape == (2, 200) and kept["epoch"] == 2
    assert torch.allclose(kept["memory"].norm(dim=2), torch.ones(2, 200), atol=1e-4)
    for h, own in enumerate(weight.chunk(2)):  # one view's memory for each clustering
        for k in kept["labels"][h].unique():
            gathered = held["memory"][h][kept["labels"][h] == k].sum(dim=0)
            assert F.cosine_similarity(gathered, own[k], dim=0) > 0.99  # ten rounds: nearly settled
    assert not torch.equal(held["memory"], kept["memory"])
    assert load_model(tmp_path / "run")[1].provenance["method"] == "deepcluster-v2"


@pytest.mark.slow
def test_a_run_learns(tmp_path):
    given = {**RUN, "limit": None, "batch_size": 64, "nmb_prototypes": 64, "clusterings": 3}
    given |= {"epochs": 8, "base_lr": 2e-3, "watch_every": 4, "nmb_crops": (2, 2)}
    given |= {"size_crops": (16, 12), "min_scale_crops": (0.5,) * 2, "max_scale_crops": (1.0,) * 2}
    result = unfreeze.pretrain(out=str(tmp_path / "run"), **given)
    assert result.knn["accuracy"] > result.knn["at_start"] + 0.04  # 0.83 to 0.90


@pytest.mark.parametrize(
    "at", [7, *(pytest.param(at, marks=pytest.mark.slow) for at in (12, 13))]
)  # 6 steps an epoch: inside one, at its end, after it
def test_resumed_is_straight_to_the_bit(tmp_path, monkeypatch, at):
    from unfreeze.training.trainer import Trainer

    unfreeze.pretrain(out=str(tmp_path / "straight"), **RUN)
    next_batch = Trainer.next_batch

    def stopped(trainer, batches, stop):
        if trainer.step == at:
            stop.name = "SIGTERM"
        return next_batch(trainer, batches, stop)

    monkeypatch.setattr(Trainer, "next_batch", stopped)
    with pytest.raises(unfreeze.errors.Interrupted):
        unfreeze.pretrain(out=str(tmp_path / "cut"), **RUN)
    monkeypatch.setattr(Trainer, "next_batch", next_batch)
    unfreeze.pretrain(out=str(tmp_path / "cut"), resume="auto", **RUN)
    states = [load_last(tmp_path / name / "checkpoints")[0] for name in ("straight", "cut")]
    for one, other in zip(states[0]["model"].values(), states[1]["model"].values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(states[0]["task"]["memory"], states[1]["task"]["memory"])


def test_filling_the_memory_changes_nothing_else(tmp_path, monkeypatch):
    from unfreeze.training.trainer import Trainer

    seen = {}
    begin = DeepClusterTask.begin

    def watched(task, loader, forward):
        before = copy.deepcopy(task.model.state_dict())
        mode, rng = task.model.training, torch.get_rng_state()
        begin(task, loader, forward)
        after = task.model.state_dict()
        seen["same"] = all(torch.equal(before[name], after[name]) for name in before)
        seen["mode"] = task.model.training == mode
        seen["rng"] = torch.equal(torch.get_rng_state(), rng)
        seen["whole"] = bool(task.assignment.memory.norm(dim=2).gt(0.5).all())

    monkeypatch.setattr(DeepClusterTask, "begin", watched)
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("began"))
    with pytest.raises(pytest.fail.Exception):
        unfreeze.pretrain(out=str(tmp_path / "run"), tune="off", **RUN)
    assert seen == {"same": True, "mode": True, "rng": True, "whole": True}


@pytest.mark.parametrize(
    "words, named",
    [
        (["--method", "deepcluster-v2", "--epsilon", "0.03"], "--epsilon"),
        (["--method", "deepcluster-v2", "--queue-length", "64"], "--queue-length"),
        (["--method", "deepcluster-v2", "--recipe", "swav-100ep"], "recipe"),
        (["--clusterings", "2"], "--clusterings"),
        (["--method", "deepcluster-v3"], "--method"),
    ],
)
def test_what_a_method_has_no_use_for_is_refused(capsys, words, named):
    assert main(["pretrain", "digits", "--dry-run", *words]) == 2
    assert named in capsys.readouterr().err


def test_the_plan_says_what_prototypes_are():
    made = plan(PretrainSettings(method="deepcluster-v2"), DatasetStats(2_000, 32, "cpu"))
    assert made.settings.queue_length == 0
    assert made.settings.freeze_prototypes_niters == made.steps
    assert "k-means" in made.reasons["queue_length"]
    with pytest.raises(UsageError, match="freeze-prototypes"):
        plan(
            PretrainSettings(method="deepcluster-v2", freeze_prototypes_niters=3),
            DatasetStats(2_000, 32, "cpu"),
        )


def test_nothing_speaks_against_the_recipes_own_values():
    facts = DatasetStats(100_000, 32, "cpu")
    made = plan(PretrainSettings(method="deepcluster-v2"), facts)
    assert plan_warnings(made, facts) == ()


def test_more_clusters_than_images_are_refused():
    asked = PretrainSettings(method="deepcluster-v2", nmb_prototypes=50)
    assert plan(asked, DatasetStats(50, 32, "cpu")).settings.nmb_prototypes == 50
    with pytest.raises(UsageError, match="50 exceeds the 49 images"):
        plan(asked, DatasetStats(49, 32, "cpu"))


def test_what_a_checkpoint_kept_goes_to_the_device_where_rows_are_looked_up():
    """A checkpoint is read on the CPU; rows of a batch are on the network's device."""
    settings = PretrainSettings(nmb_prototypes=3)
    made = ClusterAssignment(settings, np.arange(4), Distributed())
    state = {"memory": torch.zeros(2, 4, 8), "labels": torch.zeros(3, 4).long(), "epoch": 1}
    made.load_state_dict(state, torch.device("meta"))
    assert made.memory.device.type == made.labels.device.type == "meta" and made.epoch == 1
    made.load_state_dict({**state, "memory": None}, torch.device("meta"))
    assert made.memory is None


def test_one_process_clusters_for_all(tmp_path, monkeypatch):
    """A GPU adds up in any order: what each finds for itself may differ."""
    said = []

    def on_rank_zero(self, work):
        centroids, labels = work()
        said.append(torch.roll(centroids, 1, dims=0))
        return said[-1], labels

    made = ClusterAssignment(PretrainSettings(nmb_prototypes=3), np.arange(40), Distributed())
    made.memory = F.normalize(torch.randn(2, 40, 8), dim=2)
    monkeypatch.setattr(Distributed, "on_rank_zero", on_rank_zero)
    assert torch.equal(made.prototypes(0), said[0]) and made.labels.shape == (3, 40)
    assert made.prototypes(0) is None  # once an epoch
