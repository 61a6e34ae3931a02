"""Counts the structure of the code: files, lines, folders, import cycles, files from CLI to update.

    python benchmarks/structure.py [--source src/unfreeze] [--run] [--json structure.json]

`--run` starts `pretrain` and `finetune` on the built-in digits and lists our files on the stack
when the optimizer makes its first step: those to open, downwards, to see what a command does.
"""

import argparse
import ast
import contextlib
import json
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

SMALL = 60  # lines


def modules(root: Path) -> dict[str, tuple[Path, ast.Module]]:
    """Name -> (path, syntax tree) of each module of the package `root`."""
    return {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): (
            path,
            ast.parse(path.read_text(encoding="utf-8")),
        )
        for path in sorted(root.rglob("*.py"))
    }


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of ours that a file imports anywhere, for types too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
            names |= inner or {node.module}
    return names & known


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import themselves through each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph[module]
        reach[start] = seen
    groups = {frozenset(other for other in reach[m] if m in reach[other]) for m in graph}
    return [sorted(group) for group in groups if group]


def counts(root: Path) -> dict[str, Any]:
    """The figures of a source tree."""
    known = modules(root)
    graph = {name: imports(tree, set(known)) - {name} for name, (_, tree) in known.items()}
    importers = Counter(other for others in graph.values() for other in others)
    lines = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, (path, _) in known.items()
    }
    classes = Counter(
        node.name
        for _, tree in known.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    folders = Counter(str(path.parent.relative_to(root)) for path, _ in known.values())
    once = [
        name
        for name, (path, _) in known.items()
        if lines[name] < SMALL and importers[name] == 1 and path.name != "__init__.py"
    ]
    return {
        "files": len(known),
        "lines": sum(lines.values()),
        "files_in_the_largest_folders": dict(folders.most_common(4)),
        "small_files_imported_once": sorted(once),
        "import_cycles": cycles(graph),
        "class_names_twice": sorted(name for name, count in classes.items() if count > 1),
    }


class _FirstStep(BaseException):
    """Ends a run at its optimizer's first step; no handler of ours catches it."""


def files_to_update(words: list[str], root: Path) -> list[str]:
    """Our files on the stack at the optimizer's first step of a command, outermost first."""
    import torch

    from unfreeze.cli.main import main as command

    seen: list[str] = []

    def step(*_: Any, **__: Any) -> None:
        frames = [Path(frame.filename) for frame in traceback.extract_stack()]
        ours = [str(path.relative_to(root)) for path in frames if path.is_relative_to(root)]
        seen.extend(dict.fromkeys(ours))
        raise _FirstStep

    with tempfile.TemporaryDirectory() as folder:
        torch.optim.AdamW.step = step  # type: ignore[method-assign]
        torch.optim.SGD.step = step  # type: ignore[method-assign]
        with contextlib.suppress(_FirstStep):
            command([*words, "--out", f"{folder}/run"])
    return seen


def main() -> None:
    """Print the figures, and write them with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--source", type=Path, default=Path("src/unfreeze"))
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    root = args.source.resolve()
    result = counts(root)
    if args.run:
        small = ["digits", "--limit", "64", "--device", "cpu", "--arch", "unfreeze/tiny"]
        pretrain = ["pretrain", *small, "--tune", "off", "--epochs", "1", "--watch-every", "0"]
        finetune = [
            "finetune",
            *small,
            "--weights",
            "none",
            "--epochs",
            "1",
            "--optimizer",
            "adamw",
        ]
        for words in (pretrain, finetune):
            result[f"files_to_update_{words[0]}"] = files_to_update(words, root)
    for name, value in result.items():
        shown = f"{len(value)}: {', '.join(map(str, value))}" if isinstance(value, list) else value
        sys.stdout.write(f"{name}: {shown}\n")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
