"""Classes that frameworks leave in checkpoints beside the weights: passed over, never imported.

A Lightning file may hold its hyper-parameters as an `AttributeDict` or an OmegaConf tree, one of
OpenMMLab its loss history, anyone's a path. PyTorch's safe loader refuses a whole file for one such
name. Here the name leads to a stand-in of ours that keeps nothing: no class of the framework is
imported, none of its code is run, and the weights come out.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any


class Passed:
    """Stands where a framework's object was; takes whatever it is given and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Passed":
        """Anything at all is passed over."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """The state is passed over, too."""


def _mapping(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _path(*parts: Any) -> str:
    return "/".join(map(str, parts))


# whole names; the first that fits says what stands in
_STANDINS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path", _path),
    (r"(pytorch_lightning|lightning(\.pytorch)?)\.utilities\.parsing\.AttributeDict", OrderedDict),
    (r"lightning(\.|_)fabric\.utilities\.data\.AttributeDict", OrderedDict),
    (r"collections\.defaultdict", _mapping),
    (r"(omegaconf|mmengine)\.[\w.]+", Passed),
    (r"(pytorch_lightning|lightning(\.pytorch)?)\.callbacks\.[\w.]+", Passed),
    (r"numpy(\.core|\._core)\.multiarray\._reconstruct|numpy\.ndarray|typing\.Any", Passed),
    # kinds of values an OmegaConf tree names; as stand-ins, even calling them does nothing
    (r"(builtins|__builtin__)?\.?(dict|list|int|float|str|bool|object)", Passed),
)


def stand_ins(names: Iterable[str]) -> list[tuple[Callable[..., Any], str]]:
    """(stand-in, name) for each name that has one, as torch's `safe_globals` takes them.

    Only names from `unsafe_globals` belong here: those that torch itself would refuse. It goes on
    refusing a file for any other.
    """
    found = [(_stand_in(name), name) for name in names]
    return [(stand_in, name) for stand_in, name in found if stand_in is not None]


def _stand_in(name: str) -> Callable[..., Any] | None:
    return next((made for pattern, made in _STANDINS if re.fullmatch(pattern, name)), None)
