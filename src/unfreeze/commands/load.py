"""`load`: the model of a finished run as an `nn.Module`."""

from pathlib import Path

from unfreeze.runtime.isolation import isolated
from unfreeze.transfer.predictor import Classifier, load_classifier


@isolated()
def load(run: str | Path) -> Classifier:
    """The classifier of a run folder or its `model/` folder, on the CPU and in eval mode.

    It has `.classes`, `.preprocess` and `.predict(files or arrays)`; its forward pass maps
    normalised images float32 [B, 3, S, S] to logits [B, C]. WeightsError if there is no model.
    """
    return load_classifier(run)
