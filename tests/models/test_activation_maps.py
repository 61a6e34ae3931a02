"""Class-activation maps: equal to CAM, in the right place, and of an unchanged network."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from unfreeze.errors import UsageError
from unfreeze.models.activation_maps import activation_maps
from unfreeze.models.build import build
from unfreeze.models.head import replace_head

SIDE, PATCH = 32, 8


def unit(maps):
    maps = maps.clamp_min(0)
    return maps / maps.amax(dim=(1, 2), keepdim=True)


def cam(features, weight, classes):
    """Zhou et al. 2016: the class's weights over the channels, at each position."""
    return unit(torch.einsum("bchw,bc->bhw", features, weight[classes]))


@pytest.mark.parametrize(
    "arch", ["unfreeze/tiny", "torchvision/resnet18", "timm/test_efficientnet"]
)
def test_with_pooling_and_a_linear_layer_it_is_cam(arch):
    torch.manual_seed(0)
    network = build(arch).eval()
    images, classes = torch.randn(4, 3, 64, 64), torch.tensor([3, 0, 3, 7])
    seen = []
    last = {"unfreeze/tiny": "stage3", "torchvision/resnet18": "layer4"}.get(arch, "bn2.act")
    handle = network.get_submodule(last).register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.no_grad():
        network(images)
    handle.remove()
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.weight[:, ::2].abs_()  # a map of negative values alone has no largest one
    weight = head.weight.detach()
    found = activation_maps(network, images, classes, relative=False)
    assert torch.allclose(found, cam(seen[0], weight, classes), atol=1e-5)
    found = activation_maps(network, images, classes)
    assert torch.allclose(found, cam(seen[0], weight - weight.mean(dim=0), classes), atol=1e-5)


def test_where_feature_maps_are_flattened_each_position_has_its_own_weights():
    """Grad-CAM averages the gradient over positions, and would be wrong here."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5 * 6 * 4, 3)
    network = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)
    images, classes = torch.randn(3, 3, 6, 4), torch.tensor([0, 1, 2])
    features = functional.relu(conv(images)).detach()
    weights = linear.weight.detach()[classes].reshape(3, 5, 6, 4)
    found = activation_maps(network, images, classes, relative=False)
    assert torch.allclose(found, unit((weights * features).sum(dim=1)), atol=1e-6)


def test_tokens_lie_where_their_patches_are():
    """Without blocks each token is its patch's: a lone bright patch gives the only contribution."""
    torch.manual_seed(0)
    network = build("timm/test_vit").eval()
    replace_head(network, 2)
    network.blocks, network.norm = nn.Sequential(nn.Identity()), nn.Identity()
    network.global_pool, network.pool_type = "avg", "avg"
    with torch.no_grad():
        network.pos_embed.zero_()
        network.patch_embed.proj.bias.zero_()
    side = network.patch_embed.proj.kernel_size[0]
    cells = network.patch_embed.grid_size[0]
    for row, column in ((0, 0), (0, cells - 1), (3, 1), (cells - 1, 2)):
        images = torch.zeros(1, 3, side * cells, side * cells)
        rows, columns = (slice(side * n, side * (n + 1)) for n in (row, column))
        images[:, :, rows, columns] = torch.randn(1, 3, side, side)
        with torch.no_grad():
            token = network.patch_embed.proj(images)[0, :, row, column]
            network.head.weight[0] = token
            network.head.weight[1] = -token
        expected = torch.zeros(1, cells, cells)
        expected[0, row, column] = 1
        found = activation_maps(network, images, torch.tensor([0]))
        assert torch.allclose(found, expected, atol=1e-5)
        # what lowers a score is not shown
        assert not activation_maps(network, images, torch.tensor([1])).any()


@pytest.mark.parametrize(
    ("arch", "grid"),
    [
        ("timm/test_vit", (10, 10)),  # class token
        ("timm/test_vit2", (10, 10)),  # pooled tokens
        ("timm/test_vit3", (10, 10)),  # attention pooling
        ("timm/test_convnext", (5, 5)),
        ("torchvision/squeezenet1_1", (9, 9)),
    ],
)
def test_every_family_has_maps_and_stays_as_it_was(arch, grid):
    torch.manual_seed(0)
    network = build(arch)
    replace_head(network, 3)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.train()
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(2, 3, 160, 160)
    hooks = [len(module._forward_hooks) for module in network.modules()]
    with torch.inference_mode():
        images = images.clone()
        maps = activation_maps(network, images, torch.tensor([0, 1]))
    assert maps.shape == (2, *grid) and not maps.requires_grad
    assert maps.min() >= 0 and maps.max() <= 1 and maps.flatten(1).any(dim=1).any()
    # neither weights nor running statistics, modes, gradients and hooks
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert hooks == [len(module._forward_hooks) for module in network.modules()]


def pasted(count, seed):
    """(images, labels, corners): noise with a patch at a random place, striped by its class."""
    draw = torch.Generator().manual_seed(seed)
    images = 0.7 * torch.randn(count, 3, SIDE, SIDE, generator=draw)
    labels = torch.arange(count) % 3
    corners = torch.randint(0, SIDE // PATCH, (count, 2), generator=draw) * PATCH
    stripes = torch.tensor([-1.5, 1.5]).repeat_interleave(2).repeat(PATCH // 4)
    looks = [stripes[:, None].expand(PATCH, PATCH), stripes[None].expand(PATCH, PATCH)]
    looks.append(looks[0] * looks[1] / 1.5)
    for image, label, (top, left) in zip(images, labels.tolist(), corners.tolist(), strict=True):
        image[:, top : top + PATCH, left : left + PATCH] = looks[label]
    return images, labels, corners


def trained(network, steps, lr):
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    network.train()
    for step in range(steps):
        images, labels, _ = pasted(48, step)
        loss = functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def hits(maps, corners):
    """Share of maps whose peak lies in the patch, to within half a cell of the map."""
    cell = SIDE / maps.shape[-1]
    peak = maps.flatten(1).argmax(dim=1)
    places = torch.stack([peak // maps.shape[-1], peak % maps.shape[-1]], dim=1) * cell + cell / 2
    inside = (places >= corners - cell / 2) & (places <= corners + PATCH + cell / 2)
    return inside.all(dim=1).float().mean().item()


@pytest.mark.parametrize("arch", ["cnn", "avg", "token"])
def test_the_peak_lies_on_the_object_and_depends_on_the_weights(arch):
    """Pointing game, and the sanity check of arXiv 1810.03292."""
    torch.manual_seed(0)
    if arch == "cnn":
        network = trained(build("unfreeze/tiny"), 16, 3e-3)
    else:
        from timm.models.vision_transformer import VisionTransformer

        network = VisionTransformer(
            img_size=SIDE,
            patch_size=4,
            num_classes=3,
            embed_dim=48,
            depth=2,
            num_heads=3,
            global_pool=arch,
        )
        network = trained(network, 80, 3e-3)
    images, labels, corners = pasted(150, 12345)
    with torch.no_grad():
        right = (network(images).argmax(dim=1) == labels).float().mean()
    maps = activation_maps(network, images, labels)
    assert right > 0.9 and hits(torch.rand_like(maps), corners) < 0.25  # chance
    # a class token is read through an attention: its map is the rougher one
    assert hits(maps, corners) > {"cnn": 0.9, "avg": 0.75, "token": 0.45}[arch]
    other = copy.deepcopy(network)
    for module in other.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    changed = activation_maps(other, images, labels)
    pairs = torch.stack([maps.flatten(1), changed.flatten(1)], dim=1)
    alike = torch.tensor([torch.corrcoef(pair)[0, 1].nan_to_num() for pair in pairs])
    assert alike.mean() < 0.5


def test_a_network_without_feature_maps_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(UsageError, match="no feature map"):
        activation_maps(network, torch.randn(1, 3, 8, 8), torch.tensor([0]))
