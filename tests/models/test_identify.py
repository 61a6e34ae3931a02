"""A network is known again by its names and shapes, in any wrapping."""

import functools
import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from unfreeze.models import catalogue
from unfreeze.models import identify as guess_module
from unfreeze.models.build import build, build_on_meta
from unfreeze.models.identify import identify_arch, match_arch

BUILT = functools.cache(build_on_meta)
NAMES = torchvision.models.list_models(module=torchvision.models)


def shapes(model, prefix="", drop=()):
    return {
        prefix + name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.startswith(tuple(drop))
    }


@pytest.fixture(autouse=True)
def _built_once(monkeypatch):
    monkeypatch.setattr(guess_module, "build_on_meta", BUILT)


@pytest.mark.parametrize(
    "arch",
    [
        *("torchvision/vgg13_bn", "torchvision/resnext50_32x4d", "torchvision/squeezenet1_1"),
        *("torchvision/mobilenet_v3_small", "torchvision/vit_b_32", "torchvision/googlenet"),
        *("unfreeze/tiny", "unfreeze/small", "unfreeze/resnet50w2"),
    ],
)
def test_networks_are_known_under_a_prefix(arch):
    found = identify_arch(shapes(build_on_meta(arch), "module.model."))
    assert (found.arch, found.share, found.stem) == (arch, 1.0, "imagenet")
    assert found.result.prefix == "module.model." and found.headed


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_torchvision_is_known(name):
    assert identify_arch(shapes(BUILT(f"torchvision/{name}"))).arch == f"torchvision/{name}"


def test_a_network_within_another_is_not_taken_for_it():
    # every entry of a ResNet-18 but its head is in a ResNet-34, too, with the same shape
    found = identify_arch(shapes(build_on_meta("resnet34"), drop=("fc.",)))
    assert (found.arch, found.share, found.headed) == ("torchvision/resnet34", 1.0, False)
    # and one that holds another is not taken for that
    for name in ("resnet50", "resnet101", "resnet18"):
        found = identify_arch(shapes(build_on_meta(name), "encoder.", drop=("fc.",)))
        assert (found.arch, found.share) == (f"torchvision/{name}", 1.0)


def test_another_number_of_classes_is_no_head():
    state = shapes(build_on_meta("resnet18")) | {"fc.weight": (7, 512), "fc.bias": (7,)}
    found = identify_arch(state)
    assert (found.arch, found.share, found.head, found.headed) == (
        "torchvision/resnet18",
        1.0,
        ("fc",),
        False,
    )
    assert not found.result.mismatched


def test_the_small_stem_is_seen():
    found = identify_arch(shapes(build_on_meta("resnet18", "small"), "backbone.", drop=("fc.",)))
    assert (found.arch, found.stem, found.share) == ("torchvision/resnet18", "small", 1.0)


def test_the_files_own_word_decides_between_equal_networks():
    state = shapes(build_on_meta("resnet18"))
    assert identify_arch(state).arch == "torchvision/resnet18"
    assert identify_arch(state, ["timm/resnet18"]).arch == "timm/resnet18"
    # a word that does not fit is not believed
    assert (
        identify_arch(state, ["resnet50", "no such network", "vgg11"]).arch
        == "torchvision/resnet18"
    )


def test_a_timm_network_is_known_where_the_file_names_it():
    state = shapes(build_on_meta("timm/convnext_atto"))
    assert identify_arch(state, ["convnext_atto"]).arch == "timm/convnext_atto"


def test_a_vision_transformer_is_known_by_its_first_layer():
    state = shapes(build_on_meta("timm/vit_small_patch16_224"), drop=("head.",))
    found = identify_arch({f"backbone.{name}": shape for name, shape in state.items()})
    assert (found.arch, found.share) == ("timm/vit_small_patch16_224", 1.0)


def test_what_is_no_image_network_is_none():
    assert identify_arch({"encoder.layer.0.attention.self.query.weight": (768, 768)}) is None
    assert identify_arch({}) is None


def test_half_a_network_is_still_the_closest():
    found = identify_arch(shapes(build_on_meta("resnet18"), drop=("layer4", "fc.")))
    assert found.arch == "torchvision/resnet18"
    assert found.share == pytest.approx(0.249, abs=0.001)


def test_a_skeleton_is_the_network_without_numbers():
    for arch in ("torchvision/regnet_y_400mf", "timm/resnet18", "unfreeze/tiny"):
        model = build_on_meta(arch)
        assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
        assert shapes(model) == shapes(build(arch))
    assert torch.empty(2).device.type == "cpu"


def other_words(state):
    """Entries under names of nobody's, in the same order."""
    return {f"net.{i}.{n.rpartition('.')[2]}": s for i, (n, s) in enumerate(state.items())}


def test_entries_under_other_names_are_known_by_the_order_of_shapes():
    state = shapes(BUILT("timm/mobilenetv3_small_050"))
    found = identify_arch(other_words(state))
    assert (found.arch, found.share) == ("timm/mobilenetv3_small_050", 1.0)
    assert found.result.how == "by the order of their shapes" and not found.rivals


def test_tensorflows_efficientnet_is_known_by_its_port(shared):
    path = shared / "weights" / "efficientnet-lite0-imagenet.pth"
    found = identify_arch(shapes_of(torch.load(path, weights_only=True)))
    assert (found.arch, found.share, found.rivals) == ("timm/tf_efficientnet_lite0", 1.0, ())


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_of_networks_that_compute_something_else_none_is_chosen_unless_a_name_says_it():
    state = shapes(BUILT("timm/tf_efficientnet_b0"))
    found = identify_arch(state)
    assert {found.arch, *found.rivals} >= {"timm/tf_efficientnet_b0", "timm/efficientnet_b0"}
    named = identify_arch(state, file="tf_efficientnet_b0_ns-c0e6a31c.pth")
    assert (named.arch, named.rivals) == ("timm/tf_efficientnet_b0", ())
    assert identify_arch(state, ["tf_efficientnet_b0"]).rivals == ()
    # torchvision's own names mean torchvision's networks, which timm builds in other ways, too
    assert identify_arch(shapes(BUILT("torchvision/resnet18"))).rivals == ()


@pytest.mark.parametrize("arch", ["timm/vit_tiny_patch16_224", "torchvision/resnet50"])
def test_names_of_transformers_are_known(arch):
    from tests.checkpoints.test_key_dialects import resnet_of_transformers, vit_of_transformers

    state = BUILT(arch).state_dict()
    theirs = vit_of_transformers(state) if "vit" in arch else resnet_of_transformers(state)
    found = identify_arch(shapes_of(theirs))
    assert (found.arch, found.share, found.rivals) == (arch, 1.0, ())
    assert found.result.how == "by the names of transformers"


@pytest.mark.parametrize(
    "name", ["convnext_atto", "resnet18", "regnetx_002", "densenet121", "vit_tiny_patch16_224"]
)
@pytest.mark.parametrize("options", [{"features_only": True}, {"num_classes": 0}], ids=["f", "0"])
def test_timms_networks_without_a_head_are_known(name, options):
    with torch.device("meta"):
        state = timm.create_model(name, **options).state_dict()
    # smp keeps such a network as the encoder of a larger one
    for file in (state, {f"encoder.model.{n}": t for n, t in state.items()}):
        found = match_arch(shapes_of(file), f"timm/{name}")
        assert found.share > 0.9 and not found.result.mismatched
        assert identify_arch(shapes_of(file)).share > 0.9


def test_the_catalogue_holds_what_is_installed():
    held = json.loads((Path(catalogue.__file__).parent / catalogue.FILE).read_text())
    if held["timm"] != timm.__version__:
        pytest.skip("another timm than the catalogue was written with")
    known = {arch for alike in catalogue.catalogue() for group in alike.groups for arch in group}
    missing = {f"timm/{name}" for name in timm.list_models()} - known
    assert len(missing) < 20 and {f"torchvision/{name}" for name in NAMES} <= known
    for arch in ("torchvision/resnet18", "timm/convnext_atto", "unfreeze/tiny"):
        row = catalogue._hash_network(arch)
        (alike,) = (a for a in catalogue.catalogue() if any(arch in g for g in a.groups))
        assert row.sketch == "".join(alike.sketch)
