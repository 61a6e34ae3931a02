"""Values of the auto recipe for training that continues from weights (`--init`), with reasons.

Pretraining from random weights can only improve them; from good weights it can end below its start.
So the head, which is random, is trained first, early layers change least, and a run with labels
keeps the start unless a checkpoint is better (docs/CONTINUED.md).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.swav.dataset_stats import DatasetStats

CONTINUED_LR = 4  # the learning rate is divided by this
LAYER_DECAY = 0.7
PATIENCE = 5  # feature evaluations
FROZEN_SHARE = 0.1  # of the epochs: head and prototypes alone
# as published, and from random weights
CONTINUED_OFF: Mapping[str, Any] = {
    "keep": "last",
    "patience": 0,
    "layer_decay": 1.0,
    "freeze_backbone_epochs": 0,
    "bn_statistics": "batch",
}


def continued_values(
    s: PretrainSettings, facts: DatasetStats, epochs: int
) -> Iterator[tuple[str, Any, str]]:
    """(setting, value, reason) of each setting that only training from weights uses."""
    if s.init == "none" or s.recipe != "auto":
        why = "" if s.init == "none" else s.recipe
        yield from ((name, value, why) for name, value in CONTINUED_OFF.items())
        return
    if facts.labelled:
        yield "keep", "best", "the labels show whether a checkpoint is better than the start"
        yield "patience", PATIENCE, f"{PATIENCE} of about ten feature evaluations"
    else:
        yield "keep", "last", "without labels it is not known whether a checkpoint is better"
        yield "patience", 0, "without labels it is not known what is below the start"
    yield "layer_decay", LAYER_DECAY, "early layers of pretrained weights change least"
    if facts.own_head:
        yield "bn_statistics", "batch", "those of the weights are of such crops"
        yield "freeze_backbone_epochs", 0, "the projection head comes with the weights"
        return
    yield "bn_statistics", "frozen", "those of small batches of crops cost accuracy (docs/LOG.md)"
    frozen = max(1, round(FROZEN_SHARE * epochs)) if epochs > 1 else 0
    yield "freeze_backbone_epochs", frozen, "a random head would damage the pretrained weights"
