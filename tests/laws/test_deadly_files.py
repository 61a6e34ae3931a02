"""A file that brings its decoder down, or keeps it for ever, costs a training run that file."""

import csv
import os
import time
from pathlib import Path

import pytest

import unfreeze
from unfreeze.data.cache import builder
from unfreeze.data.validate import decode_check, precheck, worker_pool

QUICK = {"arch": "unfreeze/tiny", "image_size": 16, "epochs": 1, "batch_size": 8, "device": "cpu"}


class Deadly(decode_check.DecodeCheck):
    """Decodes, but not these."""

    def __call__(self, row):
        self.name = self.source.names[row]
        return super().__call__(row)

    def _check(self, data):
        if self.name == "red/002.png":
            os.abort()
        if self.name == "red/005.png":
            time.sleep(600)
        if self.name == "blue/003.png":
            return bytearray(16 * 2**30)
        return super()._check(data)


def table(run, name):
    with (Path(run) / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("verb", "store"), [("pretrain", "memory"), ("finetune", "off"), ("finetune", "disk")]
)
def test_the_run_goes_on_without_it(coloured, tmp_path, monkeypatch, verb, store):
    monkeypatch.setattr(worker_pool, "SECONDS", 3.0)
    monkeypatch.setattr(builder, "_SECONDS", 3.0)
    for module in (precheck, builder):
        monkeypatch.setattr(module, "DecodeCheck", Deadly)
    data = coloured("data", {"red": 12, "blue": 12}, side=40)
    more = {"weights": "none"} if verb == "finetune" else {}
    run = getattr(unfreeze, verb)(
        str(data), out=str(tmp_path / "run"), store=store, **QUICK, **more
    ).run
    reasons = {
        line["path"]: (line["reason"], line["left_out"]) for line in table(run, "problems.csv")
    }
    assert reasons == {
        "red/002.png": ("crashed", "true"),
        "red/005.png": ("hung", "true"),
        "blue/003.png": ("bomb", "true"),
    }
    used = {line["path"] for line in table(run, "split.csv")}
    assert len(used) == 21 and not used & reasons.keys()
