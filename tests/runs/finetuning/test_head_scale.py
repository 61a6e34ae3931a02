"""A head that is trained learns alike whatever the norm of its features."""

import tomllib
from pathlib import Path

import pytest
import torch

from unfreeze.checkpoints.model_file import load_model, save_model
from unfreeze.commands import finetune as verb
from unfreeze.commands.finetune import finetune
from unfreeze.runtime.run_folder import read_metrics

pytestmark = pytest.mark.usefixtures("no_drawing")
COLOURS = {"red": 10, "green": 10, "blue": 10}
HOW = {"arch": "unfreeze/tiny", "precision": "fp32", "image_size": 16, "augment": "none"}


@pytest.fixture(scope="module")
def scaled(colours, tmp_path_factory):
    """`scaled(times)`: (images, a run whose features are so many times as long)."""
    folder = tmp_path_factory.mktemp("start")
    data = colours(folder / "colours", COLOURS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "write_report_or_warn", lambda run, console: None)
        run = finetune(str(data), out=str(folder / "run"), weights="none", epochs=2, **HOW)
    tensors, card = load_model(run.run)

    def made(times):
        own = dict(tensors)
        last = [name for name in own if name.endswith("bn2.weight")][-1]
        for name in (last, last.replace("weight", "bias")):
            own[name] = own[name] * times
        for name in [n for n in own if "shortcut.1" in n and last[:6] in n]:
            own[name] = own[name] * times if name.endswith(("weight", "bias")) else own[name]
        save_model(folder / f"x{times:g}" / "model", own, card)
        return str(data), str(folder / f"x{times:g}")

    return made


def config(result):
    return tomllib.loads(Path(result.run, "config.toml").read_text())


def losses(result):
    return [m["loss"] for m in read_metrics(result.run) if m["split"] == "train"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_head_learns_as_well_at_any_norm(scaled, tmp_path, optimizer):
    found = {}
    for times in (1, 1000):
        data, run = scaled(times)
        how = {**HOW, "freeze": "all", "head_solver": "sgd", "sweep": "off", "epochs": 6}
        out = str(tmp_path / f"x{times}")
        found[times] = finetune(data, weights=run, out=out, optimizer=optimizer, **how)
    one, many = found[1], found[1000]
    assert losses(one)[-1] < 0.8 * losses(one)[0]
    assert losses(many)[0] < 1.5  # near ln 3: first scores are near 0
    assert losses(many)[-1] < 1.1 * losses(one)[-1] + 0.05
    rates = [config(one)["lr"], config(many)["lr"]]
    assert rates[0] / rates[1] == pytest.approx(1000 if optimizer == "adamw" else 1e6, rel=0.1)
    assert "norm" in config(many)["reasons"]["lr"]


def test_a_rate_that_is_given_stays(scaled, tmp_path):
    data, run = scaled(1000)
    result = finetune(data, weights=run, out=str(tmp_path / "r"), freeze="all", lr=1e-7, epochs=1,
                      **HOW)  # fmt: skip
    assert config(result)["lr"] == 1e-7 and "lr" not in config(result)["reasons"]


def test_the_head_of_a_network_that_is_trained_has_a_rate_of_its_own(scaled, tmp_path):
    data, run = scaled(1000)
    result = finetune(data, weights=run, out=str(tmp_path / "r"), epochs=2, **HOW)
    found = config(result)
    assert found["head_lr"] < 1e-2 * found["lr"] and "norm" in found["reasons"]["head_lr"]
    again = finetune(data, weights=run, out=str(tmp_path / "r"), epochs=2, resume="yes", **HOW)
    assert config(again)["head_lr"] == found["head_lr"]
    assert torch.isfinite(torch.tensor(losses(result))).all()
