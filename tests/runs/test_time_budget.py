"""`--time-budget`: derived with a made-up speed, refused in words, and true on this machine."""

import math
import time
import tomllib

import numpy as np
import pytest
from PIL import Image

import unfreeze
from unfreeze.errors import UsageError
from unfreeze.runs import time_budget, training_cost

SPEED = 1e10  # operations a second


@pytest.fixture
def speed(monkeypatch):
    """A machine on which an epoch takes as long as its operations say."""

    def epoch(plan, facts, make, operations, enough):
        s = plan.settings
        return 3 * operations * s.accumulate * plan.steps_per_epoch / SPEED

    monkeypatch.setattr(time_budget, "epoch_seconds", epoch)
    monkeypatch.setattr(training_cost, "network_flops_per_second", lambda *args, **options: SPEED)
    monkeypatch.setattr(training_cost, "matmul_flops_per_second", lambda: SPEED)
    monkeypatch.setattr(training_cost, "seconds_of_view", lambda job: 0.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(40):
        (folder / f"{number % 2}").mkdir(exist_ok=True)
        pixels = draw.integers(0, 256, (150, 200, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number % 2}" / f"{number}.jpg")
    return str(folder)


def pretrain(data, **given):
    return unfreeze.pretrain(data, dry_run=True, device="cpu", tune="off", **given)


@pytest.mark.slow
def test_less_time_takes_fewer_epochs_then_smaller_images_then_a_smaller_network(
    speed, photos, monkeypatch
):
    monkeypatch.setattr("unfreeze.swav.auto_recipe.FEW", 40)  # so 40 photographs are many
    options = list(time_budget.pretrain_options(asked(photos), 1, lambda prepared: None))
    usual = options[0].values
    assert usual == {"arch": "torchvision/resnet18", "image_size": 128}
    assert options[-1].values == {"arch": "unfreeze/small", "image_size": 32}
    whole = options[0].seconds(math.inf) * options[0].most
    shares = (2, 0.5, 0.05, 0.01)
    fits = [time_budget.choose_option(options, whole * share) for share in shares]
    assert fits[0].epochs == options[0].most and fits[0].values == usual
    assert fits[1].epochs < options[0].most and fits[1].values == usual
    assert fits[2].values["image_size"] < 128
    assert all(
        found.seconds <= whole * share
        for found, share in zip(fits, (2, 0.5, 0.05, 0.01), strict=True)
    )


def test_few_photographs_have_the_small_network_from_the_start(speed, photos):
    options = list(time_budget.pretrain_options(asked(photos), 1, lambda prepared: None))
    assert {option.values["arch"] for option in options} == {"unfreeze/small"}
    sizes = [option.values["image_size"] for option in options]
    assert sizes == sorted(sizes, reverse=True) and (sizes[0], sizes[-1]) == (128, 32)


def asked(photos, **given):
    from unfreeze.config.layering import build
    from unfreeze.config.pretrain import PretrainSettings

    return build(PretrainSettings, {"data": photos, "device": "cpu", **given})


def noised(prepared):
    return None


def test_what_is_given_stays_and_reasons_stand_at_what_was_open(speed, photos):
    given = asked(photos, arch="unfreeze/small", image_size=64, time_budget="5m")
    found, why = time_budget.budget_pretrain(given, 1, noised)
    assert (found.arch, found.image_size) == ("unfreeze/small", 64) and set(why) == {"epochs"}
    assert "--time-budget 5m" in why["epochs"]
    given = asked(photos, epochs=30, time_budget="5m")
    found, why = time_budget.budget_pretrain(given, 1, noised)
    assert found.epochs == 30 and set(why) == {"arch", "image_size"}


def test_a_budget_that_nothing_fits_is_refused(speed, photos):
    with pytest.raises(UsageError, match=r"Not even one epoch .* fits into --time-budget 0.001s"):
        time_budget.budget_pretrain(asked(photos, time_budget="0.001s"), 1, noised)
    with pytest.raises(UsageError, match="--time-budget soon is not a duration"):
        time_budget.budget_pretrain(asked(photos, time_budget="soon"), 1, noised)


def test_epochs_that_are_given_and_do_not_fit_are_refused(speed, photos):
    given = asked(photos, arch="unfreeze/small", image_size=64, epochs=30, time_budget="1s")
    with pytest.raises(UsageError, match="--time-budget 1s"):
        time_budget.budget_pretrain(given, 1, noised)


def finetune(data, **given):
    return unfreeze.finetune(data, dry_run=True, device="cpu", weights="none", **given)


@pytest.mark.slow
def test_finetune_takes_what_fits(speed, photos):
    free = finetune(photos, arch="torchvision/resnet18")
    seconds = free.time["operations"] / SPEED
    some = finetune(photos, arch="torchvision/resnet18", time_budget=f"{seconds / 2:.3f}s")
    assert some.settings["image_size"] == free.settings["image_size"]
    assert 10 <= some.settings["epochs"] <= 15 and "epochs" in some.reasons
    assert some.time["operations"] / SPEED <= seconds / 2
    less = finetune(photos, arch="torchvision/resnet18", time_budget=f"{seconds / 8:.3f}s")
    assert less.settings["image_size"] < free.settings["image_size"]
    assert "--time-budget" in less.reasons["image_size"]
    assert less.time["operations"] / SPEED <= seconds / 8


def test_a_solved_head_only_gets_smaller_images(speed, photos):
    free = finetune(photos, arch="torchvision/resnet18", freeze="all")
    seconds = free.time["operations"] / SPEED
    options = {"arch": "torchvision/resnet18", "freeze": "all"}
    less = finetune(photos, **options, time_budget=f"{seconds / 2:.3f}s")
    assert less.settings["image_size"] < free.settings["image_size"]
    assert less.settings["epochs"] == free.settings["epochs"]


@pytest.mark.slow
def test_above_an_hour_what_fits_into_one_is_said(monkeypatch, speed, photos):
    monkeypatch.setattr(
        training_cost, "network_flops_per_second", lambda *args, **options: SPEED / 300
    )
    monkeypatch.setattr(training_cost, "matmul_flops_per_second", lambda: SPEED / 300)
    lines = []
    found = finetune(photos, arch="torchvision/resnet18")
    hint = found.time["fits_one_hour"]
    assert found.time["seconds"] > 3600 >= hint["seconds"]
    time_budget.show_hint(hint, type("C", (), {"say": lambda self, text: lines.append(text)})())
    assert f"images of {hint['image_size']} pixels" in lines[0] and "--time-budget 1h" in lines[0]


def test_a_run_keeps_what_was_derived(speed, tmp_path):
    out = tmp_path / "run"
    given = {"arch": "unfreeze/tiny", "device": "cpu", "weights": "none", "limit": 40}
    unfreeze.finetune("digits", out=str(out), **given, epochs=2, time_budget="1h")
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["time_budget"] == "1h" and config["epochs"] == 2
    assert "--time-budget 1h" in config["reasons"]["image_size"]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_derived_run_takes_about_its_budget(verb, tmp_path):
    budget, out = 40.0, str(tmp_path / "run")
    given = {"device": "cpu", "arch": "unfreeze/small", "image_size": 32, "time_budget": "40s"}
    if verb == "finetune":
        given |= {"weights": "none", "epochs": 400}
        del given["epochs"]
    else:
        given["on_collapse"] = "ignore"  # not what is tested
    seconds = []
    # a shared machine may slow down while a run lasts; a wrong estimate is wrong every time
    while len(seconds) < 3 and not any(budget / 3 <= run <= 1.3 * budget for run in seconds):
        began = time.perf_counter()
        getattr(unfreeze, verb)("digits", out=f"{out}-{len(seconds)}", **given)
        seconds.append(time.perf_counter() - began)
    assert budget / 3 <= seconds[-1] <= 1.3 * budget, seconds
