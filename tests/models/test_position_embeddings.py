"""Vision transformers take images of any size, and at their own compute what they always did."""

import pytest
import timm
import torch
import torchvision

from unfreeze.commands.summary import summary
from unfreeze.errors import UsageError
from unfreeze.models.adapt import adapt_tensor
from unfreeze.models.build import build
from unfreeze.models.position_embeddings import ANY_SIZE, allow_any_size
from unfreeze.models.stages import stages
from unfreeze.transfer.plan import last_feature_map_size

VIT = "timm/vit_tiny_patch16_224"


def networks(kind, size=64):
    """(one for any size, the library's own for `size`), with the same weights."""
    torch.manual_seed(0)
    if kind == "timm":
        options = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 3}
        ours = timm.models.VisionTransformer(224, **options, **ANY_SIZE)
        theirs = timm.models.VisionTransformer(size, **options)
    else:
        ours = allow_any_size(
            torchvision.models.VisionTransformer(224, 16, 2, 3, 48, 96, num_classes=3)
        )
        theirs = torchvision.models.VisionTransformer(size, 16, 2, 3, 48, 96, num_classes=3)
    entries = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        entries[name].copy_(adapt_tensor(theirs, name, tensor, entries[name]))
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_at_its_own_size_it_is_the_librarys(kind):
    ours, theirs = networks(kind, 224)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_at_another_size_it_is_the_network_made_for_that(kind):
    ours, theirs = networks(kind)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
        assert ours(torch.randn(1, 3, 100, 72)).shape == (1, 3)  # patches reach over the edge


def test_what_is_built_by_name_takes_any_size():
    for arch in (VIT, "vit_b_16", "timm/eva02_tiny_patch14_224"):
        with torch.device("meta"):
            assert build(arch).eval()(torch.empty(1, 3, 96, 96)).shape == (1, 1000)


@pytest.mark.parametrize("arch", [VIT, "timm/deit_tiny_distilled_patch16_224", "vit_b_16"])
def test_its_stages_and_maps_are_known_at_every_size(arch):
    with torch.device("meta"):
        model = build(arch)
    assert len(stages(model)) == 5
    assert last_feature_map_size(model, 224) == (14, 14) and last_feature_map_size(model, 96) == (
        6,
        6,
    )


def test_a_summary_at_another_size():
    found = summary(VIT, input="3x96x96")
    assert next(one for one in found.layers if one["name"] == "blocks.0.norm1")["output"][0] == 37


@pytest.mark.parametrize(
    "arch", ["timm/swin_tiny_patch4_window7_224", "maxvit_t", "timm/mixer_s16_224"]
)
def test_a_network_of_one_size_alone_is_refused_in_words(arch):
    with pytest.raises(UsageError, match="does not accept a 3x96x96 image") as refused:
        summary(arch, input="3x96x96")
    assert "--image-size" in refused.value.next_step
