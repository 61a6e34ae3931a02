"""Runs made of files alone: what a trainer would have left behind."""

import json

import numpy as np
import pytest

CONFIG = """\
data = "digits"
arch = "unfreeze/tiny"
epochs = 40
seed = 0
size_crops = [16]
crops_for_assign = [0, 1]
nmb_prototypes = 64
queue_length = 0
augment = "digits"

[reasons]
"nmb_prototypes" = "grows with 1,437 images (3,000 for a million)"
"queue_length" = "a batch of 256 is at least twice the prototypes"
"augment" = "views of 16 pixels <script>alert(1)</script>"

[facts]
"images" = 1437
"threads" = 2
"""
PROBLEMS = """\
path,reason,detail,left_out
a/<b>cat.jpg,undecodable,"text, not an image",true
b/scan.tif,grey,one channel,false
"""


def images(*shape, seed=0):
    """Smooth random images, uint8."""
    noise = np.random.default_rng(seed).random((*shape, 4, 4, 3))
    side = 16
    return (noise.repeat(side // 4, -3).repeat(side // 4, -2) * 255).astype(np.uint8)


def metrics(steps=400):
    """Records as a pretraining run writes them."""
    random = np.random.default_rng(1)
    for step in [*range(1, 101), *range(150, steps + 1, 50)]:
        yield {
            "step": step,
            "epoch": step // 10,
            "split": "train",
            "loss": 4.16 - 1.2 * step / steps + 0.05 * random.standard_normal(),
            "learning_rate": 2e-3 * (1 - step / steps),
            "prototypes_used": 64 * min(1.0, 0.3 + step / 100),
            "images_per_second": 4000.0,
        }


def write_metrics(folder, records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture
def bare(tmp_path):
    """A run that has only started."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG)
    return folder


@pytest.fixture
def pretraining(bare):
    """A finished pretraining run with everything optional."""
    write_metrics(bare, metrics())
    (bare / "problems.csv").write_text(PROBLEMS)
    share = np.linspace(0.001, 0.05, 12)
    np.savez(
        bare / "prototypes.npz",
        images=images(12, 8),
        prototype=np.arange(12),
        share=share,
    )
    np.savez(bare / "views.npz", views=images(6, 4))
    (bare / "result.json").write_text(json.dumps({"seconds": 88.0}))
    return bare


@pytest.fixture
def finetuning(tmp_path):
    """A finished transfer with an evaluation."""
    folder = tmp_path / "transfer"
    folder.mkdir()
    (folder / "config.toml").write_text('data = "pics"\nfreeze = "all"\nepochs = 12\n')
    train = [{"step": 10 * e, "epoch": e, "split": "train", "loss": 2 / e} for e in range(1, 13)]
    held = [
        {"step": 10 * e, "epoch": e, "split": "val", "loss": 2.2 / e, "accuracy": 1 - 0.6 / e}
        for e in range(1, 13)
    ]
    write_metrics(folder, train + held)
    confusion = [[18, 1, 1], [0, 20, 0], [4, 0, 16]]
    evaluation = {"n": 60, "split": "test", "seen_in_training": 0, "accuracy": 0.9}
    evaluation |= {"classes": ["cardboard", "glass", "<metal>"], "confusion": confusion}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "result.json").write_text(json.dumps({"seconds": 61.0, "warnings": []}))
    return folder


@pytest.fixture
def demonstration(tmp_path, pretraining):
    """A demo's folder: its table outside, its pretraining run inside."""
    folder = tmp_path / "demo"
    folder.mkdir()
    pretraining.rename(folder / "pretrain")
    results = {
        "pixels": {"1": [0.614, 0.03], "5": [0.856, 0.02], "10": [0.901, 0.01]},
        "scratch": {"1": [0.52, 0.05], "5": [0.75, 0.03], "10": [0.87, 0.02]},
        "swav": {"1": [0.77, 0.03], "5": [0.94, 0.01], "10": [0.96, 0.004]},
    }
    (folder / "demo.json").write_text(json.dumps({"seconds": 88.0, "results": results}))
    return folder
