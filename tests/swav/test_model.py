import torch
from torch import nn

from unfreeze.swav.model import SwAV


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.layer = nn.Linear(3, 8)

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return self.layer(x.mean((2, 3)))


def model(hidden=5):
    torch.manual_seed(0)
    return SwAV(Counting(), 8, hidden=hidden, feat_dim=4, prototypes=6)


def test_one_backbone_pass_a_resolution_and_views_stay_in_order():
    net = model().eval()
    views = [torch.randn(2, 3, s, s) for s in (16, 16, 8, 8, 8)]
    Z, scores = net(views)
    assert net.backbone.seen == [(4, 3, 16, 16), (6, 3, 8, 8)]
    assert Z.shape == (10, 4) and scores.shape == (10, 6)
    for v, view in enumerate(views):
        assert torch.allclose(net([view])[0], Z[2 * v : 2 * v + 2], atol=1e-6)


def test_features_are_unit_and_scores_are_cosines_with_unit_prototypes():
    net = model()
    net.normalise_prototypes()
    Z, scores = net([torch.randn(4, 3, 8, 8)] * 2)
    assert torch.allclose(Z.norm(dim=1), torch.ones(8), atol=1e-6)
    assert scores.abs().max() <= 1 + 1e-6 and net.prototypes.bias is None


def test_names_are_the_references():
    names = set(model().state_dict())
    assert {
        "projection_head.0.weight",
        "projection_head.1.running_mean",
        "projection_head.3.bias",
        "prototypes.weight",
    } <= names
    assert "projection_head.weight" in set(model(hidden=0).state_dict())


def test_scores_stay_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Z, scores = model()([torch.randn(4, 3, 8, 8)] * 2)
    assert Z.dtype == scores.dtype == torch.float32
