"""LoRA beside the weights is merged as it was trained, or refused by name; never dropped."""

import json

import pytest
import torch

from unfreeze.checkpoints.adapters import adapter_names, merge_adapters
from unfreeze.errors import WeightsError
from unfreeze.models.build import build
from unfreeze.models.load_weights import load_weights

TINY = "unfreeze/tiny"
LAYER = "stage1.conv1"
RANK = 4


def tuned(adapter="default", wrapped=True, state=None):
    """A tiny network's entries with LoRA on one convolution, as PEFT writes them."""
    torch.manual_seed(0)
    state = dict(state or build(TINY).state_dict())
    weight = state.pop(f"{LAYER}.weight")
    name = f"{adapter}." if adapter else ""
    state[f"{LAYER}.base_layer.weight" if wrapped else f"{LAYER}.weight"] = weight
    state[f"{LAYER}.lora_A.{name}weight"] = torch.randn(RANK, *weight.shape[1:])
    state[f"{LAYER}.lora_B.{name}weight"] = torch.randn(weight.shape[0], RANK, 1, 1)
    return {f"base_model.model.{n}": t for n, t in state.items()}


def change(state, scale):
    down, up = (next(t for n, t in state.items() if f"lora_{x}" in n) for x in "AB")
    return scale * torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)


def loaded(path, **options):
    model = build(TINY)
    return model, load_weights(model, str(path), arch=TINY, **options)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8, "r": RANK}, 8 / RANK),
        ({"lora_alpha": 8, "r": RANK, "use_rslora": True}, 8 / RANK**0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"conv1": 2}}, 2 / RANK),
    ],
)
def test_it_is_merged_by_the_configuration_beside_it(tmp_path, wrapped, config, scale):
    state = tuned(wrapped=wrapped)
    torch.save(state, tmp_path / "w.pth")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model, found = loaded(tmp_path / "w.pth")
    name = f"base_model.model.{LAYER}.{'base_layer.' if wrapped else ''}weight"
    assert found.share == 1.0 and "LoRA adapters of 1 layers merged" in found.account
    expected = state[name] + change(state, scale)
    assert torch.allclose(model.get_submodule(LAYER).weight, expected, atol=1e-6)


def test_it_is_merged_by_its_own_alpha(tmp_path):
    plain = build(TINY).state_dict()
    weight = plain[f"{LAYER}.weight"]
    down, up = torch.randn(RANK, *weight.shape[1:]), torch.randn(weight.shape[0], RANK, 1, 1)
    more = {
        f"{LAYER}.lora_down.weight": down,
        f"{LAYER}.lora_up.weight": up,
        f"{LAYER}.alpha": torch.tensor(2.0),
    }
    torch.save(plain | more, tmp_path / "w.pth")
    model, _ = loaded(tmp_path / "w.pth")
    expected = weight + 2 / RANK * torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    assert torch.allclose(model.get_submodule(LAYER).weight, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("state", "config", "says"),
    [
        (tuned(), None, "scaling factor .alpha. is unknown"),
        (tuned(), {"r": 4}, "scaling factor .alpha. is unknown"),
        (tuned(), {"lora_alpha": 8, "use_dora": True}, "not plain LoRA"),
        (tuned() | {f"base_model.model.{LAYER}.lora_magnitude_vector": torch.ones(3)},
         {"lora_alpha": 8}, r"lora_magnitude_vector is not plain LoRA"),
        ({n: t for n, t in tuned().items() if "base_layer" not in n}, {"lora_alpha": 8},
         "it lacks the weights of "),
        ({n: t for n, t in tuned().items() if "lora_" in n}, {"lora_alpha": 8},
         "it lacks the weights of "),
        (tuned("one") | {n: t for n, t in tuned("two").items() if "lora_" in n},
         {"lora_alpha": 8}, "belong to several adapters"),
        (tuned() | {"base_model.model.x.hada_w1_a": torch.ones(2, 2)}, {"lora_alpha": 8},
         "hada_w1_a is not plain LoRA"),
        ({**build(TINY).state_dict(), f"{LAYER}.lora_A": torch.ones(4, 9)}, {"lora_alpha": 8},
         "lora_A is not plain LoRA"),
        ({**build(TINY).state_dict(), "blocks.0.ia3_l": torch.ones(4)}, None, "ia3_l"),
    ],
    ids=["no-config", "no-alpha", "dora", "magnitude", "no-base", "alone", "two", "loha", "loralib",
         "ia3"],
)  # fmt: skip
def test_what_cannot_be_merged_exactly_is_refused_by_name(tmp_path, state, config, says):
    torch.save(state, tmp_path / "w.pth")
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for partial in (False, True):
        with pytest.raises(WeightsError, match=f"contains adapters .*{says}"):
            loaded(tmp_path / "w.pth", allow_partial=partial)


def test_a_head_that_was_trained_beside_them_is_the_one(tmp_path):
    state = tuned()
    head = state.pop("base_model.model.head.weight")
    state["base_model.model.head.original_module.weight"] = head
    state["base_model.model.head.modules_to_save.default.weight"] = head + 1
    found = merge_adapters(state, {"hyper_parameters": {"lora_alpha": 8}}, None, "x").tensors
    assert torch.equal(found["base_model.model.head.weight"], head + 1)
    assert not any("original" in name for name in found)


def test_names_of_plain_networks_are_no_adapters():
    for arch in ("resnet18", "timm/vit_tiny_patch16_224", "timm/convnext_atto"):
        with torch.device("meta"):
            assert adapter_names(build(arch).state_dict()) == []
