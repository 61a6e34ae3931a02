"""Low-rank adapters compute what the equation says, merged and unmerged, and leave no trace."""

import sys

import pytest
import timm
import torch
from torch import nn

from unfreeze.checkpoints.adapters import adapter_names
from unfreeze.errors import UsageError
from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.models.lora import (
    SCALE,
    add_lora,
    attention_layers,
    frozen_with_lora,
    merge_lora,
    merged_tensors,
)
from unfreeze.models.text import TextClassifier

pytest.importorskip("peft")
EVA = {"patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2, "use_rot_pos_emb": True}
EVA |= {"qkv_fused": True, "num_classes": 3, "img_size": 64, "dynamic_img_size": True}


def bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=30, intermediate_size=32, **sizes)
    return TextClassifier(transformers.BertModel(config), "mean", 3)


def vit():
    network = build("timm/test_vit")
    replace_head(network, 3)
    return network


def eva(**options):
    return timm.models.eva.Eva(**EVA, **options)


# network, its layers with adapters, an input
NETWORKS = {
    "timm's vision transformer": (vit, 2 * 6, lambda: torch.randn(2, 3, 64, 64)),
    "BERT": (bert, 2 * 4, lambda: torch.randint(0, 30, (2, 7, 2)).int().clamp(max=1)),
    "EVA-02, which calls no qkv": (eva, 2, lambda: torch.randn(2, 3, 64, 64)),
    "DINOv3": (
        lambda: eva(qkv_bias=False, global_pool="token", num_reg_tokens=4),
        4,
        lambda: torch.randn(2, 3, 64, 64),
    ),
}


def doubled(x):
    return x.double() if x.is_floating_point() else x


def randomise(network):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if adapter_names([name]):
                parameter.normal_(std=0.3)


@pytest.mark.parametrize("kind", NETWORKS)
def test_merged_equals_unmerged(kind):
    make, layers, inputs = NETWORKS[kind]
    torch.manual_seed(0)
    network, x = make().eval(), doubled(inputs())
    plain = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    shapes = {n: tuple(network.get_submodule(n).weight.shape) for n in attention_layers(network)}
    before = network.double()(x)
    network.float()
    names = add_lora(network, 4, kind)
    network.double()
    assert len(names) == layers and torch.equal(network(x), before)  # B is zero
    sizes = {name: p.numel() for name, p in network.named_parameters() if adapter_names([name])}
    assert sum(sizes.values()) == sum(4 * sum(shapes[name]) for name in names)
    randomise(network)
    output = network(x)
    gradients = torch.autograd.grad(
        output.sum(), [p for n, p in network.named_parameters() if n in sizes], allow_unused=True
    )
    assert all(gradient is not None for gradient in gradients)
    assert (output - before).abs().max() > 1e-6  # adapters do something
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    assert merge_lora(network) == layers
    assert torch.allclose(network(x), output, rtol=0, atol=1e-10)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == plain
    again = merged_tensors(trained, 4)  # our own merge of adapters in files
    assert all(torch.allclose(again[n], v, atol=1e-6) for n, v in network.state_dict().items())


def test_a_layer_with_adapters_is_the_papers_equation():
    torch.manual_seed(0)
    network = vit()
    name = add_lora(network, 2, "vit")[0]
    randomise(network)
    network.double()
    layer, x = network.get_submodule(name), torch.randn(5, 64, dtype=torch.float64)
    low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    base = layer.get_base_layer()
    expected = x @ (base.weight + SCALE * high @ low).T + base.bias
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)


def test_everything_but_adapters_and_head_is_frozen():
    network = bert()
    add_lora(network, 2, "bert")
    frozen = frozen_with_lora(network, ["head.weight", "head.bias"])
    trained = {name for name, _ in network.named_parameters()} - frozen
    assert {"head.weight", "head.bias"} < trained and not adapter_names(frozen)
    assert all(adapter_names([name]) for name in trained - {"head.weight", "head.bias"})
    assert "encoder.encoder.layer.0.attention.self.query.base_layer.weight" in frozen


def test_pooling_and_uncalled_layers_get_no_adapter():
    options = {"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}
    pooled = timm.models.VisionTransformer(
        64, **options, global_pool="map", class_token=False, fc_norm=False, dynamic_img_size=True
    )
    assert set(attention_layers(pooled)) == {"blocks.0.attn.qkv", "blocks.0.attn.proj"}
    assert set(attention_layers(eva())) == {"blocks.0.attn.proj", "blocks.1.attn.proj"}


@pytest.mark.parametrize("arch", ["unfreeze/tiny", "timm/test_convnext", "vit_b_16"])
def test_networks_without_such_layers_are_refused(arch):
    with torch.device("meta"):
        network = build(arch)
    with pytest.raises(UsageError, match="has no attention layers") as refused:
        add_lora(network, 4, arch)
    assert "--freeze stage:N" in refused.value.next_step


def test_a_rank_as_high_as_the_layers_and_an_absent_package_are_refused(monkeypatch):
    with pytest.raises(UsageError, match=r"not below the width .* which is 64"):
        add_lora(vit(), 64, "timm/test_vit")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match="needs the package peft") as refused:
        add_lora(vit(), 4, "timm/test_vit")
    assert "unfreeze[lora]" in refused.value.next_step
    assert isinstance(vit().get_submodule("blocks.0.attn.qkv"), nn.Linear)
