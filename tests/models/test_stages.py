import pytest
import torchvision
from torch import nn

from unfreeze.models.head import head_layers, remove_head
from unfreeze.models.stages import stages


@pytest.fixture
def listed(meta):
    return lambda arch: {stage.name: stage.modules for stage in stages(meta(arch))}


def holds(model):
    """The law: every entry but the head's lies in exactly one stage."""
    heads, found = head_layers(model), stages(model)
    for name in model.state_dict():
        owners = sum(stage.owns(name) for stage in found)
        assert owners == (0 if name.startswith(tuple(f"{head}." for head in heads)) else 1), name
    assert found[0].name == "stem"
    assert 3 <= len(found) <= 7
    assert len({stage.name for stage in found}) == len(found)


def test_law_every_parameter_but_the_heads_lies_in_exactly_one_stage(sampled, meta):
    holds(meta(sampled))


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_law_for_every_torchvision_model(name, meta, monkeypatch):
    for draw in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_"):
        monkeypatch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor)
    holds(meta(f"torchvision/{name}"))


def test_resnet(listed):
    assert listed("resnet50") == {
        "stem": ("conv1", "bn1"),
        **{f"layer{n}": (f"layer{n}",) for n in (1, 2, 3, 4)},
    }


def test_vgg_is_cut_at_its_poolings_and_its_linears_are_the_last_stage(listed):
    assert listed("vgg11") == {
        "stem": ("features.0",),
        "stage1": ("features.3",),
        "stage2": ("features.6", "features.8"),
        "stage3": ("features.11", "features.13"),
        "stage4": ("features.16", "features.18"),
        "stage5": ("classifier.0", "classifier.3"),
    }


def test_squeezenet_is_cut_at_its_poolings(listed):
    assert listed("squeezenet1_1") == {
        "stem": ("features.0",),
        "stage1": ("features.3", "features.4"),
        "stage2": ("features.6", "features.7"),
        "stage3": ("features.9", "features.10", "features.11", "features.12"),
    }


def test_a_transformer_of_one_resolution_is_cut_into_four_runs_of_blocks(listed):
    found = listed("vit_b_32")
    assert found["stem"] == ("class_token", "encoder.pos_embedding", "conv_proj")
    assert [len(found[f"stage{n}"]) for n in (1, 2, 3, 4)] == [3, 3, 3, 4]
    assert found["stage4"][-1] == "encoder.ln"


def test_timm_stages_keep_their_names(listed):
    assert list(listed("timm/convnext_atto")) == ["stem", *(f"stages.{n}" for n in range(4))]
    assert list(listed("timm/resnet18")) == list(listed("resnet18"))


def test_no_stage_takes_the_name_of_another_module(listed):
    assert list(listed("shufflenet_v2_x0_5")) == ["stem", "part1", "part2", "part3"]


@pytest.mark.parametrize("arch", ["resnet18", "vgg11", "squeezenet1_1", "unfreeze/small"])
def test_stages_are_the_same_without_the_head_and_with_a_small_image_stem(arch, meta):
    model = meta(arch)
    before = stages(model)
    remove_head(model)
    assert stages(model) == before
    if arch == "resnet18":
        assert stages(meta(arch, stem="small")) == before
