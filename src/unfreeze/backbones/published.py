"""SwAV's published weights by name: URL, architecture and licence."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from unfreeze.data.preprocess import Preprocess

_BASE_URL = "https://dl.fbaipublicfiles.com/deepcluster/"
LICENCE = "SwAV's published weights are under CC BY-NC 4.0: no commercial use."
# The reference trains and tests with std 0.228 for red, where ImageNet's is 0.229.
WANTS = Preprocess(224, 256, mean=(0.485, 0.456, 0.406), std=(0.228, 0.224, 0.225))


@dataclass(frozen=True)
class Published:
    """A file of published weights and its architecture (the file has no `fc`)."""

    url: str
    arch: str = "torchvision/resnet50"


# the reference's model zoo; `swav` is its best ResNet-50
PUBLISHED = {
    "swav": Published(_BASE_URL + "swav_800ep_pretrain.pth.tar"),
    "swav-800ep": Published(_BASE_URL + "swav_800ep_pretrain.pth.tar"),
    "swav-400ep": Published(_BASE_URL + "swav_400ep_pretrain.pth.tar"),
    "swav-200ep": Published(_BASE_URL + "swav_200ep_pretrain.pth.tar"),
    "swav-100ep": Published(_BASE_URL + "swav_100ep_pretrain.pth.tar"),
    "swav-400ep-bs256": Published(_BASE_URL + "swav_400ep_bs256_pretrain.pth.tar"),
    "swav-200ep-bs256": Published(_BASE_URL + "swav_200ep_bs256_pretrain.pth.tar"),
    "swav-400ep-2x224": Published(_BASE_URL + "swav_400ep_2x224_pretrain.pth.tar"),
    "swav-w2": Published(_BASE_URL + "swav_RN50w2_400ep_pretrain.pth.tar", "unfreeze/resnet50w2"),
    "swav-w4": Published(_BASE_URL + "swav_RN50w4_400ep_pretrain.pth.tar", "unfreeze/resnet50w4"),
    "swav-w5": Published(_BASE_URL + "swav_RN50w5_400ep_pretrain.pth.tar", "unfreeze/resnet50w5"),
}


def licence_of(spec: str) -> str:
    """The licence of the published weights that `spec` (name, path or URL) names; else ""."""
    files = {PurePosixPath(entry.url).name for entry in PUBLISHED.values()}
    known = spec in PUBLISHED or PurePosixPath(spec.replace("\\", "/")).name in files
    return LICENCE if known else ""
