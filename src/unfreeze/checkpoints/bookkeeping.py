"""Stand-ins for framework classes in checkpoints, so that their weights load safely.

A Lightning checkpoint may contain hyper-parameters as an `AttributeDict` or an OmegaConf tree, an
OpenMMLab one its loss history, any of them a path. PyTorch's weights-only loader refuses the file
for one such class. Here its name maps to an empty stand-in: nothing of the framework is imported
or run, and the weights are read.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any


class Passed:
    """Replaces a framework's object: accepts any arguments and stores nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Passed":
        """Ignores all arguments."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Ignores the state."""


def _mapping(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _path(*parts: Any) -> str:
    return "/".join(map(str, parts))


# (pattern of the full name, stand-in); the first match is used
_STANDINS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path", _path),
    (r"(pytorch_lightning|lightning(\.pytorch)?)\.utilities\.parsing\.AttributeDict", OrderedDict),
    (r"lightning(\.|_)fabric\.utilities\.data\.AttributeDict", OrderedDict),
    (r"collections\.defaultdict", _mapping),
    (r"(omegaconf|mmengine)\.[\w.]+", Passed),
    (r"(pytorch_lightning|lightning(\.pytorch)?)\.callbacks\.[\w.]+", Passed),
    (r"numpy(\.core|\._core)\.multiarray\._reconstruct|numpy\.ndarray|typing\.Any", Passed),
    # value types in an OmegaConf tree; calling a stand-in does nothing
    (r"(builtins|__builtin__)?\.?(dict|list|int|float|str|bool|object)", Passed),
)


def stand_ins(names: Iterable[str]) -> list[tuple[Callable[..., Any], str]]:
    """(stand-in, name) for each name that has one, as `torch.serialization.safe_globals` expects.

    `names`: from `unsafe_globals`, those that torch would refuse. Names without a stand-in remain
    refused.
    """
    pairs = [(_stand_in(name), name) for name in names]
    return [(stand_in, name) for stand_in, name in pairs if stand_in is not None]


def _stand_in(name: str) -> Callable[..., Any] | None:
    return next((stand_in for pattern, stand_in in _STANDINS if re.fullmatch(pattern, name)), None)
