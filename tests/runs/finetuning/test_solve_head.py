"""`finetune --freeze all`: the head is solved, and the run is as whole as any other."""

import json
import signal
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.commands import finetune as verb
from unfreeze.commands.embed import embed
from unfreeze.commands.evaluate import evaluate
from unfreeze.commands.finetune import finetune
from unfreeze.data.index.splits import read_split_csv
from unfreeze.errors import Interrupted, UsageError
from unfreeze.models.build import build
from unfreeze.models.head import removed_activations, replace_head
from unfreeze.runs.finetuning import solve_head
from unfreeze.runtime.run_folder import read_metrics

pytestmark = pytest.mark.usefixtures("no_drawing")
COLOURS = {"red": 10, "green": 10, "blue": 10}
HOW = {"arch": "unfreeze/tiny", "freeze": "all", "precision": "fp32", "image_size": 16}


@pytest.fixture(scope="module")
def start(colours, tmp_path_factory):
    """(images, a run that trained every layer)."""
    folder = tmp_path_factory.mktemp("start")
    data = colours(folder / "colours", COLOURS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "write_report_or_warn", lambda run, console: None)
        trained = {**HOW, "freeze": "none", "weights": "none", "epochs": 1}
        run = finetune(str(data), out=str(folder / "run"), augment="none", **trained)
    return data, run.run


@pytest.fixture
def tune(start, tmp_path):
    def made(name, **changed):
        data = str(changed.pop("data", start[0]))
        return finetune(data, out=str(tmp_path / name), **{**HOW, "weights": start[1], **changed})

    return made


def config(result):
    return tomllib.loads(Path(result.run, "config.toml").read_text())


def weights(run):
    return load_file(f"{run}/model/model.safetensors")


def test_the_run_is_whole_and_the_head_is_what_logistic_regression_gives(tune, start):
    result = tune("run")
    assert result.epochs == 1 and result.best_epoch is None and result.frozen_unchanged is True
    assert result.val_images == 6 and result.val_accuracy is not None
    found = config(result)
    assert (found["head_solver"], found["cache"], found["augment"]) == (
        "logistic",
        "features",
        "none",
    )
    assert "logistic regression" in found["reasons"]["head_solver"] and "lr" not in found
    before, _ = load_model(start[1])
    after, card = load_model(result.run)
    assert {n for n in before if not torch.equal(before[n], after[n])} == {
        "head.weight",
        "head.bias",
    }
    head = card.provenance["head"]
    assert head["folds"] == 5 and 0 <= head["cv_accuracy"] <= 1
    again = evaluate(result.run, str(start[0]), split="val")
    written = json.loads(Path(result.run, "evaluation.json").read_text())
    assert written["accuracy"] == result.val_accuracy == again.accuracy
    assert not written["used_for_choosing"] and not again.used_for_choosing
    splits = [line["split"] for line in read_metrics(result.run)]
    assert splits == ["cross-validation"] * 20 + ["train", "val"]
    for name in ("last", "best"):
        state = torch.load(f"{result.run}/checkpoints/{name}.ckpt", weights_only=True)
        assert torch.equal(state["model"]["head.weight"], after["head.weight"])


@pytest.mark.parametrize("arch", ["torchvision/squeezenet1_1", "timm/test_vit", "unfreeze/tiny"])
def test_it_is_as_good_as_scikit_learn_on_the_features_of_embed(arch, start, tmp_path):
    """With a head behind a convolution, too, where features are pooled first."""
    data, run = str(start[0]), str(tmp_path / "run")
    how = {**HOW, "arch": arch, "image_size": 160 if "vit" in arch else 48}
    result = finetune(data, out=run, weights="none", **how)
    embed(run, data, out=str(tmp_path / "f.npz"))
    held = np.load(tmp_path / "f.npz")
    rows = {row.path: row.split for row in read_split_csv(Path(run) / "split.csv")}
    train = np.array([rows[path] == "train" for path in held["paths"]])
    theirs = LogisticRegression(max_iter=2000).fit(held["features"][train], held["labels"][train])
    score = theirs.score(held["features"][~train], held["labels"][~train])
    assert result.val_accuracy >= score - 1 / 6  # one image of six
    # the scores are those of a plain layer on these features
    written = weights(run)
    layer = next(n.removesuffix(".bias") for n in written if written[n].shape == (3,))
    scores = held["features"] @ written[f"{layer}.weight"].flatten(1).numpy().T
    scores += written[f"{layer}.bias"].numpy()
    probabilities = torch.from_numpy(scores).softmax(1).max(1)[0]
    said = {
        str(Path(one.path).relative_to(data)): one.probability
        for one in unfreeze.predict(run, data)
    }
    mine = dict(zip(held["paths"].tolist(), probabilities.tolist(), strict=True))
    assert said.keys() == mine.keys()
    assert all(said[path] == pytest.approx(mine[path], abs=1e-3) for path in said)


def test_no_activation_bends_the_scores_of_a_new_head():
    torch.manual_seed(0)
    network = build("torchvision/squeezenet1_1")
    replace_head(network, 3)
    assert removed_activations(network) == ("classifier.2",)
    with torch.no_grad():
        assert (network.eval()(torch.randn(8, 3, 64, 64)) < 0).any()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"lr": 0.1}, "--lr is given"),
        ({"head": "mlp:8"}, "more than one linear layer"),
        ({"cache": "off"}, "--cache off"),
        ({"head_solver": "sgd"}, "given"),
        ({"mixup": 0.2, "cache": "off"}, "--mixup is given"),
    ],
)
def test_where_the_head_is_trained_the_reason_is_said(tune, changed, says):
    result = tune("run", epochs=2, **changed)
    assert says in config(result)["reasons"]["head_solver"] and result.epochs == 2
    with pytest.raises(UsageError, match="head_solver='logistic'"):
        tune(
            "again", **{**changed, "head_solver": "logistic"}
        ) if "head_solver" not in changed else (
            tune("again", head_solver="logistic", freeze="none")
        )


def test_random_views_are_solved_for_where_they_are_given(tune):
    result = tune("views", cache_views=3)
    assert config(result)["augment"] == "photo" and config(result)["cache_views"] == 3
    (line,) = [m for m in read_metrics(result.run) if m["split"] == "train"]
    assert line["total"] == 3 * result.images


def test_an_own_config_is_a_config_and_a_finished_run_resumes(tune, start, tmp_path):
    result = tune("run")
    same = finetune(str(start[0]), config=f"{result.run}/config.toml", out=str(tmp_path / "same"))
    left, right = weights(result.run), weights(same.run)
    assert all(torch.equal(left[name], right[name]) for name in left)
    again = tune("run", resume="auto")
    assert (again.epochs, again.val_accuracy) == (result.epochs, result.val_accuracy)
    assert all(torch.equal(left[n], t) for n, t in weights(again.run).items())


def test_stopped_while_it_solves_it_begins_again(tune, monkeypatch):
    straight = tune("straight")
    fit = solve_head.fit_logistic

    def stopping(*args, **options):
        signal.raise_signal(signal.SIGTERM)
        return fit(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(solve_head, "fit_logistic", stopping)
        with pytest.raises(Interrupted, match="before the first step"):
            tune("broken")
    resumed = tune("broken", resume="auto")
    left, right = weights(straight.run), weights(resumed.run)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_folds_choose_nothing_by_what_they_hold_out(tune):
    found = tune("folds", folds=3).repeated
    assert found.chose == "nothing" and found.n == 30
    assert [part.correct for part in found.runs] == [part.correct_last for part in found.runs]


def test_few_validation_images_choose_no_epoch_unless_asked(tune):
    trained = {"freeze": "none", "epochs": 2}
    few = tune("few", **trained)
    assert few.best_epoch is None and few.val_accuracy is not None
    assert config(few)["select"] == "last"
    assert "too few to select an epoch" in config(few)["reasons"]["select"]
    last = [m for m in read_metrics(few.run) if m["split"] == "val"][-1]
    assert last["accuracy"] == few.val_accuracy
    assert tune("asked", select="accuracy", **trained).best_epoch is not None
    assert tune("patient", patience=3, **trained).best_epoch is not None
