import dataclasses

import pytest

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.errors import DataError, UsageError
from unfreeze.swav.auto_recipe import choose_arch, plan, view_specs
from unfreeze.swav.continued_recipe import CONTINUED_OFF
from unfreeze.swav.dataset_stats import DatasetStats


def planned(images=1300, side=300, device="cpu", **given):
    return plan(PretrainSettings(**given), DatasetStats(images, side, device))


def test_1300_images_do_not_get_imagenets_settings():
    # swav#78: 5,005 frozen steps were 250 of 400 epochs, the queue three times the data
    p = planned()
    s = p.settings
    assert s.freeze_prototypes_niters == p.steps_per_epoch
    assert s.queue_length <= 1300 // 4 and s.queue_length % s.batch_size == 0
    assert s.nmb_prototypes <= 1300 // 8
    assert p.steps_per_epoch >= 10 and s.warmup_epochs <= s.epochs / 10


@pytest.mark.parametrize("images", [4, 16, 100, 1300, 10_000, 100_000, 1_281_167])
@pytest.mark.parametrize("side", [8, 32, 96, 400])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_value_is_filled_with_a_reason_and_is_possible(images, side, device):
    p = planned(images, side, device)
    values = dataclasses.asdict(p.settings)
    for name, value in dataclasses.asdict(PretrainSettings()).items():
        derived = value is None and values[name] is not None and name not in CONTINUED_OFF
        assert derived == (name in p.reasons), name
    s = p.settings
    assert 2 <= s.batch_size <= images and p.steps >= 1
    assert s.queue_length % s.batch_size == 0
    assert max(4 * s.batch_size, s.batch_size + s.queue_length) >= s.nmb_prototypes
    assert len(view_specs(s)) == sum(s.nmb_crops) >= 2
    assert all(size % 8 == 0 for size in s.size_crops)


def test_what_was_given_stays_and_has_no_reason():
    p = planned(
        epochs=3,
        nmb_prototypes=17,
        base_lr=0.5,
        optimizer="larc",
        size_crops=(64, 32),
        nmb_crops=(2, 1),
        min_scale_crops=(0.2, 0.1),
        max_scale_crops=(1.0, 0.2),
    )
    s = p.settings
    assert (s.epochs, s.nmb_prototypes, s.base_lr, s.size_crops) == (3, 17, 0.5, (64, 32))
    assert not {"epochs", "nmb_prototypes", "base_lr", "size_crops"} & set(p.reasons)
    assert [v.size for v in view_specs(s)] == [64, 64, 32]


def test_image_size_is_the_large_crop_and_the_small_one_is_in_proportion():
    s = planned(images=10_000, image_size=160).settings
    assert s.size_crops == (160, 72)
    assert s.size_crops[1] % 8 == 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_few_photographs_get_no_small_crops_and_weaker_colours(device):
    # 480 photographs with the published crops and colours: the loss stayed at ln K
    few, many = (planned(images, 300, device) for images in (480, 10_000))
    s = few.settings
    assert (len(s.size_crops), s.nmb_crops, s.min_scale_crops) == (1, (2,), (0.2,))
    assert s.augment == "small" and "480 images" in few.reasons["augment"]
    assert "480 images" in few.reasons["nmb_crops"]
    assert s.epsilon == 0.03 and "480 images" in few.reasons["epsilon"]
    s = many.settings
    assert (len(s.size_crops), s.augment, s.min_scale_crops) == (2, "photo", (0.14, 0.05))
    assert s.epsilon == 0.05


@pytest.mark.parametrize(
    "given",
    [{"size_crops": (64, 32)}, {"nmb_crops": (2, 4)}, {"min_scale_crops": (0.3, 0.1)}],
)
@pytest.mark.parametrize("side", [64, 300])
def test_two_given_resolutions_are_completed_whatever_the_images(given, side):
    s = planned(images=480, side=side, **given).settings
    assert len(s.size_crops) == len(s.nmb_crops) == len(s.max_scale_crops) == 2
    assert all(getattr(s, name) == value for name, value in given.items())


def test_one_given_resolution_stays_one():
    s = planned(images=10_000, nmb_crops=(2,)).settings
    assert len(s.size_crops) == len(s.min_scale_crops) == 1


@pytest.mark.parametrize(
    "given, words",
    [
        ({"size_crops": (64,), "nmb_crops": (2, 6)}, "differ in length"),
        ({"nmb_crops": (1, 0)}, "two views"),
        ({"crops_for_assign": (0, 9)}, "crops-for-assign"),
        ({"warmup_epochs": 9, "epochs": 3}, "warmup-epochs 9"),
        ({"queue_length": 100, "batch_size": 64}, "not a multiple"),
        ({"min_scale_crops": (0.5, 0.5), "max_scale_crops": (1.0, 0.1)}, "above"),
    ],
)
def test_contradictions_are_refused_in_words(given, words):
    with pytest.raises(UsageError, match=words):
        planned(**given)


def test_too_few_images_are_a_data_error():
    with pytest.raises(DataError, match="too few"):
        planned(images=1)
    with pytest.raises(DataError, match="do not fill one batch"):
        planned(images=20, batch_size=64)


def test_networks_follow_image_and_device():
    auto = PretrainSettings()
    assert choose_arch(auto, 8, 10_000, "cpu")[0] == "unfreeze/tiny"
    assert choose_arch(auto, 32, 10_000, "cuda")[0] == "unfreeze/small"
    assert choose_arch(auto, 300, 10_000, "cpu")[0] == "torchvision/resnet18"
    assert choose_arch(auto, 300, 10_000, "cuda")[0] == "torchvision/resnet50"
    assert choose_arch(PretrainSettings(arch="x"), 8, 10_000, "cpu")[0] == "x"


def test_few_photographs_get_a_small_network_without_a_gpu():
    arch, why = choose_arch(PretrainSettings(), 300, 480, "cpu")
    assert arch == "unfreeze/small" and "480 images" in why
    assert choose_arch(PretrainSettings(), 300, 480, "cuda")[0] == "torchvision/resnet50"


@pytest.mark.parametrize(
    "facts, given, place, why",
    [
        (DatasetStats(50_000, 32, "cuda"), {}, "device", "0.19 GiB"),
        (DatasetStats(50_000, 32, "cuda", held=153_600_000), {}, "device", "0.14 GiB"),
        (DatasetStats(50_000, 32, "cpu"), {}, "host", "without a GPU"),
        (DatasetStats(50_000, 65, "cuda"), {}, "host", "images of 65 pixels"),
        (DatasetStats(50_000, 32, "cuda", room=1e8), {}, "host", "the GPU has 0.09"),
        (DatasetStats(50_000, 32, "cuda", held=float("inf")), {}, "host", "not kept in memory"),
        (DatasetStats(50_000, 32, "cuda"), {"store": "off"}, "host", "not kept in memory"),
        (DatasetStats(50_000, 32, "cuda"), {"scan": "off"}, "host", "not kept in memory"),
        (DatasetStats(50_000, 32, "cuda"), {"workers": 4}, "host", "given"),
        (DatasetStats(50_000, 32, "cuda"), {"workers": 0}, "device", "stored as uint8"),
    ],
)
def test_small_images_go_to_a_gpu_if_they_fit_and_nobody_wants_workers(facts, given, place, why):
    found = plan(PretrainSettings(**given), facts)
    assert found.settings.views_on == place and why in found.reasons["views_on"]


def test_where_views_are_cut_can_be_said():
    found = plan(PretrainSettings(views_on="device"), DatasetStats(50_000, 300, "cpu"))
    assert found.settings.views_on == "device" and "views_on" not in found.reasons
