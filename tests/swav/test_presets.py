"""The named recipes are the published ones, to the last value; what is given on top wins."""

import dataclasses

import numpy as np
import pytest

import unfreeze
from unfreeze.config.layering import build
from unfreeze.config.pretrain import RECIPES, PretrainSettings
from unfreeze.errors import DataError, UsageError
from unfreeze.optim.optimizer import warmup_cosine
from unfreeze.swav.auto_recipe import plan
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.presets import PUBLISHED, with_recipe

IMAGENET = DatasetStats(1_281_167, 375, "cuda", 2048)

# the flags of the reference's scripts, one row a script; the batch is that of all processes
SCRIPTS = {
    "swav-100ep": (100, 4096, 4.8, 0.0048, 10, 0.3, 313, 0),
    "swav-200ep": (200, 4096, 4.8, 0.0048, 10, 0.3, 313, 0),
    "swav-400ep": (400, 4096, 4.8, 0.0048, 10, 0.3, 313, 0),
    "swav-800ep": (800, 4096, 4.8, 0.0048, 10, 0.3, 313, 0),
    "swav-200ep-bs256": (200, 256, 0.6, 0.0006, 0, 0.0, 5005, 3840),
    "swav-400ep-bs256": (400, 256, 0.6, 0.0006, 0, 0.0, 5005, 3840),
    "swav-400ep-2x224": (400, 4096, 4.8, 0.0048, 10, 0.3, 313, 0),
    "swav-w2-400ep": (400, 4096, 4.8, 0.0048, 10, 0.3, 313, 0),
    "swav-w4-400ep": (400, 2560, 4.8, 0.0048, 10, 0.3, 313, 2560),
}
# what else the scripts of the wide networks change
WIDE = {
    "swav-w2-400ep": {"arch": "unfreeze/resnet50w2", "nmb_crops": (2, 4), "hidden_mlp": 8192},
    "swav-w4-400ep": {
        "arch": "unfreeze/resnet50w4",
        "nmb_crops": (2, 4),
        "hidden_mlp": 8192,
        "min_scale_crops": (0.08, 0.08),
        "epoch_queue_starts": 0,
    },
}
ROW = (
    "epochs",
    "batch_size",
    "base_lr",
    "final_lr",
    "warmup_epochs",
    "start_warmup",
    "freeze_prototypes_niters",
    "queue_length",
)
MULTICROP = {
    "nmb_crops": (2, 6),
    "size_crops": (224, 96),
    "min_scale_crops": (0.14, 0.05),
    "max_scale_crops": (1.0, 0.14),
}
TWO_VIEWS = {
    "nmb_crops": (2,),
    "size_crops": (224,),
    "min_scale_crops": (0.08,),
    "max_scale_crops": (1.0,),
}
ALL = {
    "arch": "torchvision/resnet50",
    "stem": "imagenet",
    "image_size": 224,
    "augment": "photo",
    "optimizer": "larc",
    "wd": 1e-6,
    "crops_for_assign": (0, 1),
    "temperature": 0.1,
    "epsilon": 0.05,
    "sinkhorn_iterations": 3,
    "feat_dim": 128,
    "hidden_mlp": 2048,
    "nmb_prototypes": 3000,
    "epoch_queue_starts": 15,
}


def expected(name):
    views = TWO_VIEWS if name.endswith("2x224") else MULTICROP
    return ALL | views | dict(zip(ROW, SCRIPTS[name], strict=True)) | WIDE.get(name, {})


def planned(name, facts=IMAGENET, **given):
    return plan(build(PretrainSettings, {"recipe": name, **given}), facts)


def test_the_names_are_those_of_the_settings():
    assert RECIPES == ("auto", *PUBLISHED) == ("auto", *SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_value_is_the_scripts_value(name, device):
    made = planned(name, dataclasses.replace(IMAGENET, device=device))
    values = dataclasses.asdict(made.settings)
    assert {key: values[key] for key in expected(name)} == expected(name)
    # nothing of the run's mathematics is left to the auto plan, and each value says its source
    data = {"workers", "limit", "labels", "label_column", "split_from", "range", "channels"}
    data |= {"mean", "std", "teacher", "teacher_arch"}
    method = {key for key, value in values.items() if value is None} - data
    assert method == {"out", "resume", "config", "keep_every", "time_limit", "time_budget"}
    # how often a run is looked at, and where its views are cut, are no values of theirs
    ours = {"watch_every", "views_on"}
    assert {why for key, why in made.reasons.items() if key not in ours} == {name}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_step_has_the_published_learning_rate(name):
    per_epoch = 3
    batch = dict(zip(ROW, SCRIPTS[name], strict=True))["batch_size"]
    made = planned(name, dataclasses.replace(IMAGENET, images=per_epoch * batch + 1), epochs=20)
    s = made.settings
    _, _, base, final, warm, start, _, _ = SCRIPTS[name]
    linear = np.linspace(start, base, per_epoch * warm)
    t = np.arange(per_epoch * (20 - warm))
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * t / len(t)))
    mine = [
        warmup_cosine(
            step,
            total=made.steps,
            warmup=made.warmup_steps,
            base=s.base_lr,
            final=s.final_lr,
            start=s.start_warmup,
        )
        for step in range(made.steps)
    ]
    np.testing.assert_allclose(mine, np.concatenate([linear, cosine]), rtol=1e-12)


def test_what_is_given_on_top_wins_and_has_no_reason():
    given = {"nmb_prototypes": 300, "start_warmup": 0.0, "optimizer": "sgd", "epsilon": 0.03}
    made = planned("swav-200ep", **given)
    values = dataclasses.asdict(made.settings)
    assert {key: values[key] for key in given} == given
    assert not set(given) & set(made.reasons)
    assert (made.settings.base_lr, made.reasons["base_lr"]) == (4.8, "swav-200ep")


def test_the_small_views_follow_a_given_image_size():
    assert planned("swav-200ep", image_size=160).settings.size_crops == (160, 72)
    assert planned("swav-400ep-2x224", image_size=160).settings.size_crops == (160,)
    assert planned("swav-200ep", size_crops=(160, 64)).settings.image_size == 160


def test_twice_is_once():
    once, named = with_recipe(PretrainSettings(recipe="swav-100ep"))
    assert with_recipe(once) == (once, {}) and named["epochs"] == "swav-100ep"
    assert with_recipe(PretrainSettings()) == (PretrainSettings(), {})


def test_b3_fewer_images_than_a_batch_name_the_recipe():
    small = dataclasses.replace(IMAGENET, images=1300)
    with pytest.raises(DataError, match=r"1300 images .* 4096.* recipe swav-200ep ") as error:
        planned("swav-200ep", small)
    assert "--recipe" in error.value.next_step
    with pytest.raises(DataError) as own:
        planned("swav-200ep", small, batch_size=2048)
    assert "recipe" not in own.value.sentence
    assert planned("swav-200ep", small, batch_size=64).steps_per_epoch == 20


def test_b9_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(UsageError, match="warmup-epochs 10 exceeds --epochs 5"):
        planned("swav-100ep", epochs=5)


def test_the_plan_of_a_real_call_says_where_values_come_from():
    made = unfreeze.pretrain(
        "digits", recipe="swav-200ep-bs256", dry_run=True, arch="unfreeze/tiny", device="cpu"
    )
    assert made.settings["freeze_prototypes_niters"] == 5005
    assert made.reasons["queue_length"] == made.reasons["stem"] == "swav-200ep-bs256"
    assert "arch" not in made.reasons
