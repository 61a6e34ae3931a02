"""Names of other libraries lead to the same tensors, proved by what comes out of the network."""

import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision

from unfreeze.checkpoints.key_dialects import fuse_qkv
from unfreeze.checkpoints.key_matching import match_keys
from unfreeze.models.build import build
from unfreeze.models.load_weights import load_weights


def resnet_of_transformers(state):
    """torchvision's ResNet under transformers' names, in the order of its modules."""
    made = {}
    for name, tensor in state.items():
        name = re.sub(r"^conv1", "resnet.embedder.embedder.convolution", name)
        name = re.sub(r"^bn1", "resnet.embedder.embedder.normalization", name)
        hit = re.match(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.*)", name)
        if hit:
            stage, block, word, number, rest = hit.groups()
            part = (
                "convolution" if (word, number) in (("conv", number), ("downsample.", "0")) else ""
            )
            part = part or "normalization"
            inner = "shortcut" if word == "downsample." else f"layer.{int(number) - 1}"
            name = f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.{inner}.{part}.{rest}"
        made[name.replace("fc.", "classifier.1.")] = tensor
    # the shortcut is defined before the layers there
    return dict(sorted(made.items(), key=lambda one: (one[0].partition("layer.")[0], one[0])))


def vit_of_transformers(state, prefix="vit."):
    """timm's ViT under transformers' names: query, key and value apart."""
    made = {}
    for name, tensor in state.items():
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("cls_token", "embeddings.cls_token")
        name = name.replace("pos_embed", "embeddings.position_embeddings")
        name = re.sub(r"^norm\.", "layernorm.", name)
        name = re.sub(r"^blocks\.", "encoder.layer.", name)
        for old, new in (
            ("norm1", "layernorm_before"), ("norm2", "layernorm_after"),
            ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
            ("attn.proj", "attention.output.dense"),
        ):  # fmt: skip
            name = name.replace(old, new)
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                made[prefix + name.replace("attn.qkv", f"attention.attention.{part}")] = third
        else:
            made[name.replace("head.", "classifier.") if "head." in name else prefix + name] = (
                tensor
            )
    return made


def computed(state, x, heads):
    """A vision transformer by transformers' names, as its paper says it (arXiv 2010.11929)."""
    s = {name.removeprefix("vit."): t for name, t in state.items()}
    patch = s["embeddings.patch_embeddings.projection.weight"]
    x = F.conv2d(x, patch, s["embeddings.patch_embeddings.projection.bias"], stride=patch.shape[-1])
    x = torch.cat([s["embeddings.cls_token"], x.flatten(2).transpose(1, 2)], 1)
    x = x + s["embeddings.position_embeddings"]
    width = x.shape[-1]

    def linear(name, value):
        return F.linear(value, s[f"{name}.weight"], s[f"{name}.bias"])

    def norm(name, value):
        return F.layer_norm(value, (width,), s[f"{name}.weight"], s[f"{name}.bias"], 1e-12)

    for number in range(12):
        layer = f"encoder.layer.{number}"
        y = norm(f"{layer}.layernorm_before", x)
        q, k, v = (
            linear(f"{layer}.attention.attention.{part}", y)
            .unflatten(-1, (heads, -1))
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width / heads)).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        x = x + linear(f"{layer}.attention.output.dense", y)
        y = F.gelu(linear(f"{layer}.intermediate.dense", norm(f"{layer}.layernorm_after", x)))
        x = x + linear(f"{layer}.output.dense", y)
    return linear("classifier", norm("layernorm", x)[:, 0])


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=1000, img_size=32).eval()
    for tensor in model.parameters():
        tensor.data = torch.randn_like(tensor) * (0.05 if tensor.dim() > 1 else 0.2) + (
            tensor.data if tensor.dim() == 1 else 0
        )
    return model


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_resnets_of_transformers(arch, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(arch)
    torch.save(resnet_of_transformers(theirs.state_dict()), tmp_path / "pytorch_model.bin")
    model = build(arch)
    loaded = load_weights(model, str(tmp_path / "pytorch_model.bin"), arch=arch, skip_head=False)
    assert loaded.share == 1.0 and loaded.unexpected == ()
    assert "by the names of transformers" in loaded.account
    ours = model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.state_dict().items())


def test_a_vit_of_transformers_computes_what_its_paper_says(vit, tmp_path):
    state = vit_of_transformers(vit.state_dict())
    torch.save(state, tmp_path / "pytorch_model.bin")
    arch = "timm/vit_tiny_patch16_224"
    model = build(arch, image_size=32).eval()
    loaded = load_weights(model, str(tmp_path / "pytorch_model.bin"), arch=arch, skip_head=False)
    assert (loaded.share, loaded.unexpected, loaded.missing) == (1.0, (), ())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = torch.cat([computed(state, one[None], 3) for one in x])
        assert torch.allclose(model(x), expected, atol=1e-3)
        assert expected.std() > 0.1


def test_swapped_keys_and_values_would_be_seen(vit):
    state = vit_of_transformers(vit.state_dict())
    swapped = {n.replace(".key.", ".X.").replace(".value.", ".key.").replace(".X.", ".value."): t
               for n, t in state.items()}  # fmt: skip
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(computed(state, x, 3), computed(swapped, x, 3), atol=1e-2)


@pytest.mark.parametrize("direction", ["to torchvision", "to timm"])
def test_timms_and_torchvisions_vision_transformers_are_one(direction):
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(32, 16, 2, 3, 48, 96, num_classes=5).eval()
    theirs.heads.head.weight.data.normal_()
    ours = timm.models.VisionTransformer(
        32, 16, embed_dim=48, depth=2, num_heads=3, mlp_ratio=2, num_classes=5
    ).eval()
    first, second = (ours, theirs) if direction == "to torchvision" else (theirs, ours)
    state, entries = first.state_dict(), second.state_dict()
    found = match_keys(shapes(first), shapes(second))
    assert found.share == 1.0 and found.how.startswith("by the names of")
    for name, entry in entries.items():
        entry.copy_(state[found.pairs[name]])
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(first(x), second(x), atol=1e-4)


def test_only_whole_triples_are_fused():
    found = {
        "a.query.weight": (4, 4), "a.key.weight": (4, 4), "a.value.weight": (4, 4),
        "b.query.weight": (4, 4), "b.key.weight": (2, 4), "b.value.weight": (2, 4),
        "c.query.weight": (4, 4),
    }  # fmt: skip
    names = fuse_qkv(found)
    assert names["a.qkv.weight"] == ("a.query.weight", "a.key.weight", "a.value.weight")
    assert set(names) == {"a.qkv.weight", *list(found)[3:]}
