"""The house keeps its shape: imports only go down, files and functions stay short."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src" / "unfreeze"
FLOORS = {
    "errors": 0,
    "text": 0,
    "config": 0,
    "runtime": 1,
    "data": 2,
    "checkpoints": 2,
    "optim": 2,
    "models": 3,
    "evaluation": 3,
    "tasks": 4,
    "training": 5,
    "swav": 6,
    "transfer": 6,
    "reports": 7,
    "exports": 7,
    "runs": 8,
    "experiments": 9,
    "commands": 10,
    "cli": 11,
    "__main__": 12,
}
LOOPS = {("training", "fit"), ("transfer", "fit")}  # the two training loops may reach 80 lines
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc"}
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def room(path):
    """The room of a file; the package's own face stands on no floor."""
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported(tree, path):
    """(room, line) of everything of ours that the file imports, wherever the import stands."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "unfreeze" and len(parts) > 1 and parts[1] in FLOORS:
                yield parts[1], node.lineno


def test_every_room_stands_on_a_floor():
    assert {room(path) for path in FILES} - {"__init__"} <= set(FLOORS)


def test_every_folder_is_a_package():
    """A folder without `__init__.py` can be imported here, and is missing in what pip installs."""
    assert {path.parent for path in FILES} == {path.parent for path in ROOT.rglob("__init__.py")}


def test_imports_only_go_down():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {other}"
        for path, tree in TREES.items()
        if room(path) != "__init__"
        for other, line in imported(tree, path)
        if other != room(path)
        and FLOORS[other] >= FLOORS[room(path)]
        # words know each other: settings raise errors, and hold names
        and not (room(path) == "config" and other in ("errors", "text"))
    ]
    assert wrong == []


def modules_imported(tree):
    """Names of our modules (or of what is in them) that a file imports, for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def cycles(graph):
    """Modules that import themselves through others: each strongly connected part of `graph`."""
    reach = {}
    for start in graph:
        seen, todo = set(), list(graph[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph.get(module, ())
        reach[start] = seen
    parts = {frozenset(other for other in reach[m] if m in reach.get(other, ())) for m in graph}
    return [sorted(part) for part in parts if part]


def test_no_module_imports_itself_through_others():
    names = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in FILES
    }
    graph = {
        name: {other for other in modules_imported(TREES[path]) if other in names and other != name}
        for name, path in names.items()
    }
    assert cycles(graph) == []
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_class_name_means_two_things():
    names = [
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): count
        for path in FILES
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert long == {}


def test_functions_stay_short():
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > (80 if (room(path), node.name) in LOOPS else 60)
    ]
    assert long == []


def test_nothing_prints():
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert printing == []


def test_every_module_has_a_name_and_a_sentence():
    assert [path for path in FILES if path.stem in NAMELESS or path.parent.name in NAMELESS] == []
    assert [path for path, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_no_assert_stands_for_an_error():
    """A user's mistake is an error with a next step; `python -O` must change nothing."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_the_floors_test_sees_a_climb():
    climb = ast.parse("def f():\n    from unfreeze.swav import model\n")
    assert list(imported(climb, ROOT / "transfer" / "x.py")) == [("swav", 2)]
    assert FLOORS["swav"] >= FLOORS["transfer"]
