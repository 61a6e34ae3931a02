"""SwAV (Caron et al., arXiv 2006.09882): pure functions for the codes, the loss and the crops."""

from unfreeze.data.augment.multicrop import multicrop
from unfreeze.optim.larc import LARC
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.sinkhorn import sinkhorn

__all__ = ["LARC", "multicrop", "sinkhorn", "swapped_prediction_loss"]
