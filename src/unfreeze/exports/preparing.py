"""Code lines for an export's README, and preprocessing values in other tools' terms."""

import math

from unfreeze.data.preprocess import Preprocess
from unfreeze.exports.folder import ABOUT
from unfreeze.exports.subject import Subject

PREPARE, IMAGE = "prepare.py", "image.jpg"
_IMPORT = ("from prepare import prepare  # prepare.py in this folder",)


def torch_lines(subject: Subject) -> list[str]:
    """Python lines that print the output of `model`, a PyTorch module, for one image."""
    call = f'model(torch.from_numpy(prepare("{IMAGE}")[None]))'
    lines = [*_IMPORT, "with torch.inference_mode():", f"    {subject.gives} = {call}"]
    if subject.gives == "features":
        return [*lines, "print(features.shape)"]
    return [
        *lines,
        f"probabilities = {_scaled_scores(subject)}.softmax(dim=1)[0].numpy()",
        *_print_lines(),
    ]


def numpy_lines(subject: Subject) -> list[str]:
    """Python lines that print the result of `outputs`, a NumPy function, for one image."""
    lines = [*_IMPORT, f'{subject.gives} = outputs(prepare("{IMAGE}")[None])']
    if subject.gives == "features":
        return [*lines, "print(features.shape)"]
    return [
        *lines,
        f"powers = numpy.exp({_scaled_scores(subject, 'scores - scores.max()')})[0]",
        "probabilities = powers / powers.sum()",
        *_print_lines(),
    ]


def _scaled_scores(subject: Subject, scores: str = "scores") -> str:
    """The expression of scores divided by the calibration temperature."""
    temperature = subject.card.temperature
    return scores if temperature == 1 else f"(({scores}) / {temperature!r})"


def _print_lines() -> list[str]:
    return [
        f'classes = json.loads(pathlib.Path("{ABOUT}").read_text(encoding="utf-8"))["classes"]',
        "print(classes[probabilities.argmax()], float(probabilities.max()))",
    ]


def shorter(preprocess: Preprocess) -> int:
    """Pixels of the shorter side after resizing, before the centre crop."""
    return max(preprocess.resize, preprocess.image_size)


def crop_share(preprocess: Preprocess) -> float:
    """The `crop_pct` of timm, chosen so that timm resizes the shorter side to the same pixels.

    timm truncates `image_size / crop_pct` to an integer; a rounded share can be off by one.
    """
    size, shorter_side = preprocess.image_size, shorter(preprocess)
    share = size / shorter_side
    while math.floor(size / share) < shorter_side:
        share = math.nextafter(share, 0)
    return share
