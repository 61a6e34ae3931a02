import numpy as np
import pytest
import torch

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import build
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.loading.sample import DatasetSample
from unfreeze.errors import UsageError
from unfreeze.models.build import build as network
from unfreeze.models.stem import choose_stem, supports_small_stem
from unfreeze.transfer.augment import training_view, view_maker_of
from unfreeze.transfer.initialize import build_start
from unfreeze.transfer.plan import FinetuneFacts, choose_preprocess, plan, usual_batch, usual_lr

USUAL = Preprocess(224, 256)


def sized(*sides):
    """A sample of images of these (height, width)."""
    heights, widths = np.array(sides, np.int64).T
    return DatasetSample(len(sides), heights, widths, ())


def square(side):
    return sized((side, side))


def made(**given):
    return build(FinetuneSettings, {"data": "x", **given})


def facts(**changed):
    given = {"images": 576, "arch": "torchvision/resnet18", "stem": "imagenet"}
    return FinetuneFacts(**{**given, "head_only": False, "trained": True, **changed})


def test_every_open_value_is_filled_and_has_a_reason():
    found = plan(made(), facts(), USUAL)
    s = found.settings
    assert None not in (s.arch, s.image_size, s.batch_size, s.lr, s.mean, s.std)
    assert {"batch_size", "lr"} <= set(found.reasons)
    given = plan(made(batch_size=7, lr=0.5, weight_decay=0), facts(), USUAL)
    assert (given.batch_size, given.lr) == (7, 0.5) and set(given.reasons) == {"optimizer"}


@pytest.mark.parametrize(
    ("images", "batch"),
    [(3, 4), (10, 4), (100, 4), (200, 8), (576, 32), (6_000, 64), (50_000, 128)],
)
def test_few_images_still_make_several_steps(images, batch):
    assert usual_batch(images) == batch


def test_the_rate_depends_on_optimizer_freeze_start_and_architecture():
    assert usual_lr("sgd", 32, facts())[0] == 0.01
    assert usual_lr("sgd", 64, facts())[0] == 0.02
    assert usual_lr("sgd", 32, facts(head_only=True))[0] == 0.03
    assert usual_lr("adamw", 128, facts())[0] == 1e-3
    assert usual_lr("sgd", 32, facts(trained=False))[0] == 0.02
    for arch in ("torchvision/alexnet", "torchvision/vgg16", "torchvision/squeezenet1_1"):
        rate, reason = usual_lr("sgd", 32, facts(arch=arch))
        assert rate == 0.001 and "without normalisation" in reason


def test_masks_take_adamw_with_another_rate_for_the_decoder_at_any_batch_size():
    def rates(facts, **given):
        s = plan(made(**given), facts, USUAL).settings
        return s.optimizer, s.lr, s.head_lr

    for images in (10, 10_000):
        whole = facts(masks=True, images=images)
        assert rates(whole) == ("adamw", 2e-4, 1e-3)
        assert rates(facts(masks=True, images=images, head_only=True)) == ("adamw", 1e-3, None)
        assert rates(facts(masks=True, images=images, trained=False)) == ("adamw", 1e-3, None)
    # what is given stays
    assert rates(whole, lr=0.5) == ("adamw", 0.5, None)
    assert rates(whole, head_lr=0.5) == ("adamw", 2e-4, 0.5)
    assert rates(facts(masks=True, images=512), optimizer="sgd") == ("sgd", 0.01, None)
    assert rates(facts(images=512)) == ("sgd", 0.01, None)


def test_the_optimizer_follows_from_what_is_trained():
    def chosen(given=None, **about):
        s = plan(made(**(given or {})), facts(**about), USUAL).settings
        return s.optimizer, s.lr

    assert chosen(batch_norm=True) == ("adamw", 5e-4)
    assert chosen(batch_norm=False) == ("sgd", 0.01)  # vision transformers, VGG
    assert chosen(batch_norm=False, trained=False) == ("adamw", 1e-3)
    assert chosen({"batch_size": 128}, trained=False) == ("adamw", 2e-3)
    assert chosen(batch_norm=True, head_only=True) == ("sgd", 0.03)
    assert chosen(trained=False, head_only=True) == ("sgd", 0.03)  # on random features
    assert chosen(lora=True) == ("adamw", 2e-3)
    assert chosen(lora=True, texts=True) == ("adamw", 5e-4)
    assert chosen(texts=True) == ("adamw", 5e-5)
    # what is given stays
    assert chosen({"optimizer": "sgd"}, batch_norm=True) == ("sgd", 0.01)
    assert chosen({"lr": 0.3}, batch_norm=True) == ("adamw", 0.3)
    reasons = plan(made(lr=0.3), facts(batch_norm=True), USUAL).reasons
    assert "its usual learning rate would be 0.0005: 0.0005 for fine-tuning" in reasons["optimizer"]
    assert "optimizer" not in plan(made(lr=0.3, optimizer="adamw"), facts(), USUAL).reasons


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UsageError, match="warmup"):
        plan(made(epochs=2, warmup_epochs=3), facts(), USUAL)


def test_sizes_follow_the_weights_or_the_images():
    wide = lambda size: (size // 8, size // 8)  # noqa: E731
    assert choose_preprocess(made(), square(500), USUAL, wide)[0] == USUAL
    assert choose_preprocess(made(), square(32), None, wide)[0].image_size == 32
    assert choose_preprocess(made(), square(900), None, wide)[0] == USUAL
    assert choose_preprocess(made(), square(12), None, wide)[0].image_size == 16
    asked, _ = choose_preprocess(made(image_size=112), square(500), USUAL, wide)
    assert (asked.image_size, asked.resize) == (112, 128)
    own, reasons = choose_preprocess(made(mean="0.5 0.5 0.5", std="1 1 1"), square(32), None, wide)
    assert own.std == (1, 1, 1) and "mean" not in reasons
    for wrong in ({"mean": "0.5"}, {"std": "1 1 0"}):
        with pytest.raises(UsageError):
            choose_preprocess(made(**wrong), square(32), None, wide)


def test_long_images_are_not_cropped_by_default():
    wide = lambda size: (size // 8, size // 8)  # noqa: E731
    long, some = sized((100, 300), (100, 210), (100, 100)), sized((100, 300), *[(100, 120)] * 9)
    found, reasons = choose_preprocess(made(), long, USUAL, wide)
    assert found.fit == "squash" and "half and more of 67 % of them" in reasons["fit"]
    assert plan(made(), facts(), found).settings.fit == "squash"
    found, reasons = choose_preprocess(made(), some, USUAL, wide)
    assert found.fit == "crop" and "fit" not in reasons
    assert choose_preprocess(made(fit="crop"), long, USUAL, wide)[0].fit == "crop"
    assert choose_preprocess(made(fit="pad"), some, USUAL, wide)[0].fit == "pad"


def test_a_loaded_stem_is_never_changed():
    with torch.device("meta"):
        resnet, vgg = network("resnet18"), network("vgg11")
    assert choose_stem("auto", resnet, "none", None, 32)[0] == "small"
    assert choose_stem("auto", resnet, "none", None, 200)[0] == "imagenet"
    assert choose_stem("auto", resnet, "imagenet", None, 32)[0] == "imagenet"
    assert choose_stem("auto", vgg, "none", None, 32)[0] == "imagenet"
    assert choose_stem("small", vgg, "none", None, 32)[0] == "small"
    assert not supports_small_stem(network("unfreeze/tiny"))


def test_a_small_stem_is_put_in_from_scratch_only():
    begun = build_start("resnet18", "none", "auto", outputs=3, side=32)
    assert begun.stem == "small" and begun.network.conv1.kernel_size == (3, 3)
    assert begun.loaded is None and begun.wants is None and begun.head == ["fc.weight", "fc.bias"]


def test_no_augmentation_is_what_evaluation_sees():
    images = [np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)] * 2
    preprocess = Preprocess(16, 18)
    plain = view_maker_of("none", preprocess, 0)(images, np.array([4, 5]), 3)[0]
    assert plain.shape == (2, 16, 16, 3) and plain.dtype == torch.uint8
    assert np.array_equal(plain[0].numpy(), preprocess.pixels(images[0]))
    views = view_maker_of("photo", preprocess, 0)
    first = views(images, np.array([4, 5]), 3)[0]
    assert torch.equal(first, views(images, np.array([4, 5]), 3)[0])
    assert not torch.equal(first[0], first[1])


def test_training_views_are_gentler_than_pretraining():
    from unfreeze.data.augment.config import preset

    ours, theirs = training_view("photo", 224), preset("photo", 224, (0.14, 1.0))
    assert ours.scale[0] > theirs.scale[0] and ours.brightness < theirs.brightness
    assert ours.blur == ours.grey == 0 and training_view("digits", 16).flip == 0


@pytest.mark.parametrize("arch", ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_no_stem_is_chosen_that_cannot_be_built(arch):
    with torch.device("meta"):
        model = network(arch)
    stem, _ = choose_stem("auto", model, "none", None, 64)
    assert stem == "imagenet" and network(arch, stem=stem) is not None
