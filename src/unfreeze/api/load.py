"""`load`: a finished run as one `nn.Module`."""

from pathlib import Path

from unfreeze.runtime.isolation import isolated
from unfreeze.transfer.predictor import Classifier, load_classifier


@isolated()
def load(run: str | Path) -> Classifier:
    """The classifier of a run, or of its `model/` folder, on the CPU and in evaluation mode.

    It has `.classes`, `.preprocess` and `.predict(files or arrays)`; called with normalised
    images float32 [B, 3, S, S] it gives scores [B, C]. WeightsError where there is none.
    """
    return load_classifier(run)
