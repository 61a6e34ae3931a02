"""Griffe extension: a function that a stub only overloads is documented by its first overload."""

from typing import Any

import griffe


class Overloads(griffe.Extension):
    """Makes `unfreeze.pretrain` and the like, all overloads in `__init__.pyi`, known by name."""

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        """Give each name without an implementation its first overload."""
        for name, functions in mod.overloads.items():
            if name not in mod.members and functions:
                mod.set_member(name, functions[0])
