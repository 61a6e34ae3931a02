"""`unfreeze/small` as the encoder of a segmentation network."""

import pytest
import torch

from unfreeze.errors import UsageError
from unfreeze.models.build import build
from unfreeze.models.head import remove_head
from unfreeze.models.segmentation import (
    EncoderFeatures,
    arch_with_encoder,
    backbone_arch,
    build_segmentation,
    load_encoder,
)
from unfreeze.models.small import SmallEncoder
from unfreeze.models.stages import stages

pytest.importorskip("segmentation_models_pytorch")


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    network = build("unfreeze/small")
    network.train()
    with torch.no_grad():
        network(torch.rand(8, 3, 64, 64))
    return network.eval()


@pytest.mark.parametrize(("depth", "output_stride"), [(5, 32), (5, 16), (5, 8), (4, 32), (3, 32)])
def test_maps_have_the_strides_and_channels_that_decoders_are_told(depth, output_stride):
    encoder = SmallEncoder(depth, output_stride).eval()
    maps = encoder(torch.rand(1, 3, 64, 96))
    assert [part.shape[1] for part in maps] == list(encoder.out_channels)
    strides = [min(2**level, output_stride) for level in range(depth + 1)]
    assert [part.shape[2:] for part in maps] == [(64 // s, 96 // s) for s in strides]
    assert encoder.output_stride == strides[-1]


@pytest.mark.parametrize(
    ("decoder", "stride"), [("unet", 32), ("fpn", 32), ("deeplabv3plus", 16), ("upernet", 32)]
)
def test_its_features_are_those_of_pretraining(backbone, decoder, stride):
    network = build_segmentation(f"smp/{decoder}/unfreeze-small", 5).eval()
    load_encoder(network, backbone)
    images = torch.rand(2, 3, 96, 128)
    remove_head(backbone)
    with torch.no_grad():
        features = EncoderFeatures(network)(images)
        assert torch.allclose(features, backbone(images), atol=1e-6)
        assert network.encoder(images)[-1].shape[-1] == 128 // stride
        assert network(images).shape == (2, 5, 96, 128)


def test_a_changed_weight_changes_its_features(backbone):
    network = build_segmentation("smp/unet/unfreeze-small", 5).eval()
    images = torch.rand(2, 3, 96, 128)
    remove_head(backbone)
    with torch.no_grad():  # not loaded
        assert not torch.allclose(EncoderFeatures(network)(images), backbone(images), atol=1e-2)


def test_names_lead_from_the_weights_to_the_network_and_back():
    assert arch_with_encoder("unfreeze/small", "fpn") == "smp/fpn/unfreeze-small"
    assert backbone_arch("smp/fpn/unfreeze-small") == "unfreeze/small"
    with pytest.raises(UsageError, match="No encoder"):
        arch_with_encoder("unfreeze/tiny")


def test_its_stages_are_those_of_the_network():
    found = stages(build_segmentation("smp/unet/unfreeze-small", 5))
    assert [stage.modules for stage in found][1:] == [
        (f"encoder.model.stage{number}",) for number in (1, 2, 3)
    ]


def test_what_it_cannot_be_is_said():
    with pytest.raises(ValueError, match="depth 3, 4 or 5, not 2"):
        SmallEncoder(depth=2)
    with pytest.raises(ValueError, match="takes 3 channels, not 4"):
        SmallEncoder().set_in_channels(4)
