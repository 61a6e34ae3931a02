"""Names that other packages register under the entry point group `unfreeze.tasks`.

    [project.entry-points."unfreeze.tasks"]
    "pretrain.simsiam" = "my_package:SimSiam"

Entries are listed without importing them, so that `--help` stays fast.
"""

from functools import cache

GROUP = "unfreeze.tasks"


@cache
def registered(kind: str) -> dict[str, str]:
    """Name -> `module:class` of each entry `kind.NAME`, by name."""
    from importlib.metadata import entry_points  # a third of the time of --help

    prefix = f"{kind}."
    entries = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    ours = [entry for entry in entries if entry.name.startswith(prefix)]
    return {entry.name.removeprefix(prefix): entry.value for entry in ours}
