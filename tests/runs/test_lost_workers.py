"""A run whose worker is lost has saved what it had; with a signal to all it was asked to stop."""

import signal

import pytest

import unfreeze
from unfreeze.checkpoints.state import load_last
from unfreeze.data.loading.loader import Loader
from unfreeze.data.loading.workers import worker_lost_error
from unfreeze.errors import Interrupted, ResourceError

SMALL = {"arch": "unfreeze/tiny", "image_size": 16, "batch_size": 4, "device": "cpu", "epochs": 2}
RUNS = {
    "pretrain": {**SMALL, "nmb_prototypes": 8, "watch_every": 0, "tune": "off"},
    "finetune": {**SMALL, "weights": "none", "cache": "off"},
}


@pytest.mark.parametrize("signals", [0, 1])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("verb", RUNS)
def test_what_was_trained_is_saved(monkeypatch, coloured, tmp_path, verb, steps, signals):
    made = Loader._batches

    def losing(self, requests):
        for place, batch in enumerate(made(self, requests)):
            if place == steps:
                for _ in range(signals):
                    signal.raise_signal(signal.SIGTERM)
                raise worker_lost_error()
            yield batch

    monkeypatch.setattr(Loader, "_batches", losing)
    data, out = str(coloured("pics", {"red": 10, "blue": 10})), tmp_path / "run"
    with pytest.raises(Interrupted if signals else ResourceError) as caught:
        getattr(unfreeze, verb)(data, out=str(out), **RUNS[verb])
    if signals:
        assert caught.value.sentence.startswith(f"Stopped by SIGTERM after step {steps} of ")
    else:
        assert caught.value.sentence == worker_lost_error().sentence
    if steps:
        assert load_last(out / "checkpoints")[0]["step"] == steps
