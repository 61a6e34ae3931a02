"""A network with its preprocessing inside: uint8 [H, W, 3] of any size to probabilities [C].

Pillow's 8-bit resize (Resample.c) is reproduced to the bit. It multiplies rows and columns, one
after the other, with weights of 22 fractional bits, and rounds to uint8 after each; here both
passes are matrix products with the same weights, which the graph computes from H and W. Each weight
is split into two parts of 11 bits, so that float32 adds integers below 2^24: exactly, in any order.
"""

import PIL
import torch
from torch import Tensor, nn

from unfreeze.data.images.preprocess import Preprocess
from unfreeze.exports.exported_model import ExportedModel

# from here on Pillow resizes images vertically first that lose much more height than width
_VERTICAL_FIRST = 13
_is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]


class ImagePreprocessing(nn.Module):
    """`Preprocess` as tensor operations on one image: uint8 [H, W, 3] to float32 [1, 3, S, S].

    Equal to the bit as long as no pixel is the sum of more than 40 others in a row (resized to a
    20th, if bicubic to a 10th); beyond, float32 may round a rare pixel off by one. Not for
    `fit="tile"`, which makes many inputs of one image.
    """

    shift: Tensor
    scale: Tensor
    bars: Tensor

    def __init__(self, preprocess: Preprocess, pillow: str = PIL.__version__) -> None:
        super().__init__()
        p = preprocess
        if p.fit not in ("crop", "squash", "pad") or (p.width and p.fit != "squash"):
            raise ValueError(f"no preprocessing for fit {p.fit} and width {p.width}")
        self.fit, self.bilinear = p.fit, p.interpolation == "bilinear"
        self.height, self.width = p.shape
        self.shorter = float(max(p.resize, p.image_size))
        self.vertical_first = int(pillow.partition(".")[0]) >= _VERTICAL_FIRST
        mean, std = (torch.tensor(values, dtype=torch.float32) * 255 for values in (p.mean, p.std))
        bars = (torch.tensor(p.mean, dtype=torch.float64) * 255).round().clamp(0, 255).float()
        self.register_buffer("shift", mean[:, None, None])
        self.register_buffer("scale", std[:, None, None])
        self.register_buffer("bars", bars[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """The network's input of one image."""
        # float64 as Python computes sizes, and Pillow weights
        rows = torch.arange(image.shape[0], dtype=torch.float64, device=image.device)
        columns = torch.arange(image.shape[1], dtype=torch.float64, device=image.device)
        height, width = rows[-1:] + 1, columns[-1:] + 1
        tall, wide = self.sizes(height, width)
        y = self.seen(tall, self.height)
        x = self.seen(wide, self.width)
        planes = self.resized(
            image.permute(2, 0, 1).float(),
            self.weights(y, tall, rows, height),
            self.weights(x, wide, columns, width),
            (height > tall) & (height - tall > 2 * (width - wide)),
        )
        if self.fit == "pad":
            inside = ((y >= 0) & (y < tall))[:, None] & ((x >= 0) & (x < wide))
            planes = torch.where(inside, planes, self.bars)
        return ((planes - self.shift) / self.scale)[None]

    def sizes(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """(height, width) [1] of the resized image, before the crop or the bars."""
        if self.fit == "squash":
            return height * 0 + self.height, width * 0 + self.width
        if self.fit == "pad":
            scale = self.height / torch.maximum(height, width)
            return (height * scale).round().clamp(min=1), (width * scale).round().clamp(min=1)
        shorter = torch.minimum(height, width)
        tall = (height * self.shorter / shorter).floor().clamp(min=self.height)
        return tall, (width * self.shorter / shorter).floor().clamp(min=self.width)

    def seen(self, length: Tensor, side: int) -> Tensor:
        """Positions [S] in a resized row of `length` pixels that the network sees."""
        first = ((length - side) / 2).round()
        if self.fit == "pad":  # negative: bars
            first = -((side - length) / 2).floor()
        return torch.arange(side, dtype=torch.float64, device=length.device) + first

    def weights(self, seen: Tensor, length: Tensor, positions: Tensor, count: Tensor) -> Tensor:
        """Weights [S, N] times 2^22 of the N pixels of a row, resized to `length`."""
        ratio = count / length
        stretch = ratio.clamp(min=1)
        x = ((positions - ((seen + 0.5) * ratio)[:, None] + 0.5) * (1 / stretch)).abs()
        if self.bilinear:
            values = (1 - x).clamp(min=0)
        else:
            near = (1.5 * x - 2.5) * x * x + 1  # Keys 1981 with a = -0.5
            far = (((x - 5) * x + 8) * x - 4) * -0.5
            values = torch.where(x < 1, near, torch.where(x < 2, far, x * 0))
        total = values.sum(dim=1, keepdim=True)
        values = values / torch.where(total == 0, total + 1, total) * 4194304.0  # 2^22
        return torch.where(values < 0, (values - 0.5).ceil(), (values + 0.5).floor())

    def resized(self, planes: Tensor, down: Tensor, across: Tensor, vertical: Tensor) -> Tensor:
        """Planes [3, S, S] of [3, H, W], with weights [S, H] and [S, W].

        `vertical` [1]: whether Pillow resizes vertically first, which it rounds otherwise.
        """
        if not self.vertical_first:
            return _horizontal_first(planes, down, across)
        # TorchScript compiles the plain `if` below, and nothing of this
        if not _is_scripting():  # noqa: SIM102
            if torch.compiler.is_exporting():
                return _chosen(vertical[0], planes, down, across)
        if bool(vertical):
            return _vertical_first(planes, down, across)
        return _horizontal_first(planes, down, across)


def _chosen(vertical: Tensor, planes: Tensor, down: Tensor, across: Tensor) -> Tensor:
    operands = (planes, down, across)
    result: Tensor = torch.cond(vertical, _vertical_first, _horizontal_first, operands)
    return result


def _horizontal_first(planes: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return _down(_across(planes, across), down)


def _vertical_first(planes: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return _across(_down(planes, down), across)


def _across(planes: Tensor, weights: Tensor) -> Tensor:
    """Integers 0 to 255 as float32 [3, M, S] of such [3, M, N], with weights [S, N]."""
    products = planes @ _halves(weights).t()
    side = weights.shape[0]
    return _shifted(products[:, :, :side], products[:, :, side:])


def _down(planes: Tensor, weights: Tensor) -> Tensor:
    """The same of the other axis: [3, S, M] of [3, N, M]."""
    products = _halves(weights) @ planes
    side = weights.shape[0]
    return _shifted(products[:, :side], products[:, side:])


def _halves(weights: Tensor) -> Tensor:
    """float32 [2S, N]: the high and the low 11 bits of weights [S, N]."""
    high = ((weights + 1024.0) / 2048.0).floor()
    return torch.cat([high, weights - high * 2048.0]).float()


def _shifted(high: Tensor, low: Tensor) -> Tensor:
    """(high * 2^11 + low + 2^21) >> 22, clipped to uint8; no number is above 2^24."""
    whole = (high / 2048.0).floor()
    rest = (high - whole * 2048.0) * 2048.0 + low + 2097152.0
    return (whole + (rest / 4194304.0).floor()).clamp(0, 255)


class WithPreprocessing(nn.Module):
    """One image, uint8 [H, W, 3], to the network's features [D], or to probabilities [C].

    `temperature`: probabilities are softmax(scores / temperature), as `predict` gives them, with
    `several` labels for an image sigmoid(scores); None: the network's outputs are returned.
    """

    def __init__(
        self,
        preprocessing: nn.Module,
        network: nn.Module,
        temperature: float | None,
        *,
        several: bool = False,
    ) -> None:
        super().__init__()
        self.preprocessing, self.network = preprocessing, network
        self.temperature, self.several = temperature, several

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities or features of one image."""
        outputs: Tensor = self.network(self.preprocessing(image)).float()
        temperature = self.temperature
        if self.several:
            outputs = outputs.sigmoid()
        elif temperature is not None:
            outputs = (outputs / temperature).softmax(dim=1)
        return outputs[0]


EXAMPLE = torch.zeros(301, 402, 3, dtype=torch.uint8)  # an image to trace a program with


def with_preprocessing(
    subject: ExportedModel, network: nn.Module | None = None
) -> WithPreprocessing:
    """The subject's network, or a traced `network` instead, with preprocessing and softmax."""
    temperature = subject.card.temperature if subject.gives == "probabilities" else None
    return WithPreprocessing(
        ImagePreprocessing(subject.preprocess),
        network or subject.recorded(),
        temperature,
        several=subject.thresholds is not None,
    ).eval()
