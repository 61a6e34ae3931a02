"""Looking changes nothing: the run that is looked at equals the one that is not, bit for bit."""

import json

import pytest
import torch

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.errors import Interrupted
from unfreeze.evaluation.feature_metrics import feature_std
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.training.feature_evaluation import evaluating

GIVEN = {
    "epochs": 3,
    "limit": 200,
    "batch_size": 32,
    "nmb_prototypes": 24,
    "queue_length": 64,
    "epoch_queue_starts": 1,
    "augment": "digits",
    "device": "cpu",
}
TIMES = ("images_per_second", "seconds_data", "seconds_step")


def run(out, **changed):
    return unfreeze.pretrain("digits", out=str(out), **{**GIVEN, **changed})


def weights(out):
    state = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    moments = [v for slot in state["optimizer"]["state"].values() for v in slot.values()]
    return [*state["model"].values(), *moments, state["task"]["queue"], *state["rng"]]


def lines(out, split):
    found = [record for record in read_metrics(out) if record["split"] == split]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in found]


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looked") / "run"
    return run(folder, watch_every=1), folder


def test_a_run_that_is_looked_at_is_the_one_that_is_not(looked, tmp_path):
    unseen = run(tmp_path / "unseen", watch_every=0)
    assert unseen.figures == {} and unseen.knn is None and unseen.best is None
    pairs = zip(weights(looked[1]), weights(tmp_path / "unseen"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert lines(looked[1], "train") == lines(tmp_path / "unseen", "train")
    assert {record["split"] for record in read_metrics(tmp_path / "unseen")} == {"train"}


def test_each_look_is_written_with_its_split_and_its_counts(looked):
    result, folder = looked
    figures, knn = lines(folder, "figures"), lines(folder, "held-out")
    assert [r["step"] for r in figures] == [r["step"] for r in knn] == [0, 6, 12, 18]
    assert all(r["knn_accuracy"] == r["correct"] / r["total"] and r["total"] == 200 for r in knn)
    assert result.knn["accuracy"] == knn[-1]["knn_accuracy"] and result.knn["split"] == "held-out"
    assert result.knn["at_start"] == knn[0]["knn_accuracy"]
    assert result.figures["effective_rank"] == pytest.approx(
        figures[-1]["effective_rank"], rel=1e-5
    )
    json.dumps(result.best)


def test_the_figures_are_those_of_the_written_model(looked, tmp_path):
    """Recomputed from the folder alone: features by `embed`, of the same images."""
    import numpy as np

    result, folder = looked
    out = tmp_path / "all.npz"
    unfreeze.embed(str(folder), "digits", str(out), split="train", precision="fp32")
    held = dict(np.load(out))
    used = {row.split(",")[0] for row in (folder / "split.csv").read_text().splitlines()}
    mine = [k for k, path in enumerate(held["paths"]) if str(path) in used]
    features = torch.from_numpy(held["features"][mine])
    assert len(mine) == 200
    from unfreeze.evaluation.feature_metrics import effective_rank

    # the run may have computed in bf16
    assert effective_rank(features) == pytest.approx(result.figures["effective_rank"], rel=0.02)
    assert feature_std(features) == pytest.approx(result.figures["feature_std"], rel=0.02)


def test_the_best_epoch_stands_beside_the_last_and_may_be_kept(looked, tmp_path):
    result, folder = looked
    by_epoch = [r["knn_accuracy"] for r in lines(folder, "held-out")][1:]
    best = torch.load(result.best["checkpoint"], weights_only=True)
    assert result.best["value"] == max(by_epoch) and result.best["figure"] == "knn"
    assert result.best["epoch"] == 1 + by_epoch.index(max(by_epoch)) == best["epoch"]
    assert result.kept == "last"
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["model"]
    tensors, _ = load_model(folder)
    assert all(torch.equal(tensors[n], last[f"backbone.{n}"]) for n in tensors)
    kept = run(tmp_path / "kept", watch_every=1, keep="best")
    tensors, card = load_model(tmp_path / "kept")
    chosen = torch.load(kept.best["checkpoint"], weights_only=True)["model"]
    assert all(torch.equal(tensors[n], chosen[f"backbone.{n}"]) for n in tensors)
    assert card.provenance["epochs"] == kept.best["epoch"] == result.best["epoch"]


def test_a_resumed_run_has_seen_what_the_straight_one_saw(looked, tmp_path, monkeypatch):
    from unfreeze.training.trainer import Trainer

    step = Trainer.train_step

    def stopped(self, batch):
        if self.step == 14:
            self.save()
            raise Interrupted("now")
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopped)
        with pytest.raises(Interrupted):
            run(tmp_path / "run", watch_every=1)
    result = run(tmp_path / "run", watch_every=1, resume="yes")
    for split in ("train", "figures", "held-out"):
        assert lines(tmp_path / "run", split) == lines(looked[1], split)
    assert result.best["value"] == looked[0].best["value"]
    assert result.knn == looked[0].knn


def test_modules_go_back_to_their_own_mode():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout())
    model[0].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, False, True]


@pytest.mark.slow
def test_without_labels_information_chooses_and_with_val_it_is_asked(tmp_path, coloured):
    flat = coloured("flat", {"": 40})
    options = {"epochs": 2, "batch_size": 8, "device": "cpu", "arch": "unfreeze/tiny"}
    options |= {"image_size": 16, "watch_every": 1}
    alone = unfreeze.pretrain(str(flat), out=str(tmp_path / "alone"), **options)
    assert alone.knn is None and alone.best["figure"] == "information"
    counts = {
        f"{split}/{c}": n
        for split, n in (("train", 24), ("val", 6), ("test", 3))
        for c in ("red", "blue")
    }
    split = coloured("split", counts)
    asked = unfreeze.pretrain(str(split), out=str(tmp_path / "asked"), **options)
    assert (asked.knn["split"], asked.knn["total"], asked.images) == ("val", 12, 48)


def test_images_of_test_are_never_read(tmp_path, coloured):
    counts = {f"{split}/{c}": 24 for split in ("train", "test") for c in ("red", "blue")}
    folder = coloured("data", counts)
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"nothing that could be read")
    found = unfreeze.pretrain(
        str(folder),
        out=str(tmp_path / "run"),
        epochs=1,
        batch_size=8,
        device="cpu",
        arch="unfreeze/tiny",
        image_size=16,
        watch_every=1,
    )
    assert (found.knn["split"], found.knn["total"]) == ("held-out", 48)
