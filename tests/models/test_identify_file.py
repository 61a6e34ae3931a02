"""Weights say which network they are of, and nobody has to repeat it."""

import pytest
import torch

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.checkpoints.state import save_state
from unfreeze.errors import WeightsError
from unfreeze.models.build import build
from unfreeze.models.identify_file import KnownArchitecture, arch_of_weights

TINY = "unfreeze/tiny"


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
@pytest.mark.parametrize(
    "name", ["last.ckpt", "best.ckpt", "epoch-0002_loss-1.000.ckpt", "renamed.pth"]
)
def test_a_checkpoint_of_ours_says_its_network(tmp_path, kind, name):
    card = ModelCard("backbone", "torchvision/resnet18", "small")
    save_state(
        tmp_path / name, {"kind": kind, "card": card.as_dict(), "model": {"x": torch.ones(2)}}
    )
    assert arch_of_weights(str(tmp_path / name)) == KnownArchitecture(
        "torchvision/resnet18", "small"
    )


def test_a_file_whose_names_tell_needs_no_more(tmp_path):
    torch.save({f"module.{n}": t for n, t in build(TINY).state_dict().items()}, tmp_path / "w.pth")
    assert arch_of_weights(str(tmp_path / "w.pth")) == KnownArchitecture(TINY, "imagenet")


def test_the_stem_of_a_file_is_seen_beside_a_given_architecture(tmp_path):
    torch.save(build("resnet18", stem="small").state_dict(), tmp_path / "w.pth")
    assert arch_of_weights(str(tmp_path / "w.pth"), "resnet18") == KnownArchitecture(
        "resnet18", "small"
    )


def test_of_a_part_the_closest_is_named_with_what_to_type(tmp_path):
    state = {n: t for n, t in build("resnet18").state_dict().items() if not n.startswith("layer3")}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"closest is torchvision/resnet18, .* 81\.2%"
    ) as refused:
        arch_of_weights(str(tmp_path / "w.pth"))
    assert "--arch torchvision/resnet18 --allow-partial" in refused.value.next_step


def test_what_is_no_network_is_refused_and_not_taken_for_the_default(tmp_path):
    torch.save({"a.weight": torch.zeros(3, 4)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="matches no known architecture") as refused:
        arch_of_weights(str(tmp_path / "w.pth"))
    assert "--arch" in refused.value.next_step


@pytest.mark.parametrize("spec", ["none", "imagenet", "https://example.org/w.pth"])
def test_names_and_addresses_say_nothing(spec):
    assert arch_of_weights(spec) is None
