"""The house: which room may import which, so that the flow of the data shows in the tree."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "qnas_plugin"

ORDER = (
    ("errors", "_version", "files", "registry", "user_function"),
    ("space", "objectives", "data"),
    ("additive",),
    ("hardware",),
    ("runtimes",),
    ("tasks",),
    ("build",),
    ("quantizers",),
    ("supernets",),
    ("training",),
    ("measure",),
    ("latency",),
    ("predictors",),
    ("search",),
    ("study",),
    ("evaluate",),
    ("request",),
    ("results",),
    ("commands",),
    ("api", "console"),
    ("cli",),
    ("hosts", "__init__", "__main__"),
    ("testing",),
)
"""Rooms and single files, from the ground up: each imports what stands above it here, and its own room."""

LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """What a module imports of this package, types and imports inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "qnas_plugin":
            module = node.module.removeprefix("qnas_plugin").strip(".")
            for alias in node.names:
                name = f"{module}.{alias.name}".strip(".")
                found.add(name if name in known else module or "__init__")
    return found


def test_each_file_of_the_root_has_its_place() -> None:
    here = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert here == set(LEVEL)


def test_imports_go_up_only() -> None:
    known = modules()
    wrong = [
        f"{name} imports {other}"
        for name, path in known.items()
        for other in imported(path, known)
        if name.split(".")[0] != other.split(".")[0] and LEVEL[other.split(".")[0]] > LEVEL[name.split(".")[0]]
    ]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = modules()
    graph = {name: imported(path, known) - {name} for name, path in known.items()}
    done: set[str] = set()
    cycles: list[list[str]] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            cycles.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    assert not cycles


def test_no_file_is_longer_than_a_person_reads_at_once() -> None:
    assert not [name for name, path in modules().items() if len(path.read_text(encoding="utf-8").splitlines()) > 400]
