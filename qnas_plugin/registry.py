"""Names to modules: built-ins are found by file name, third parties by entry point; listing imports nothing."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Literal

from qnas_plugin.errors import UnknownNameError, UsageError

Kind = Literal["supernets", "tasks", "predictors", "search", "quantizers", "runtimes"]

_SINGULAR: dict[Kind, str] = {
    "supernets": "supernet",
    "tasks": "task",
    "predictors": "predictor",
    "search": "algorithm",
    "quantizers": "quantizer",
    "runtimes": "runtime",
}

_TOLD_BY: dict[Kind, frozenset[str]] = {"quantizers": frozenset({"version", "can_emit", "emit"})}
"""Functions that tell a module of a kind from others of its folder; without them each is one."""


def names(kind: Kind) -> tuple[str, ...]:
    """All registered names of a kind, sorted. Nothing is imported.

    Raises:
        UsageError: An installed package registers a name that this package or another one has already.
    """
    return tuple(sorted([*_built_in(kind), *_third_party(kind)]))


def load(kind: Kind, name: str) -> ModuleType:
    """The module registered under a name; ``-`` and ``_`` are the same.

    Raises:
        UnknownNameError: Nothing is registered under the name.
    """
    wanted = name.replace("-", "_")
    if wanted in _built_in(kind):
        return importlib.import_module(f"qnas_plugin.{kind}.{wanted}")
    third_party = _third_party(kind)
    if wanted not in third_party:
        raise UnknownNameError(_SINGULAR[kind], name, names(kind))
    module = third_party[wanted].load()
    if not isinstance(module, ModuleType):
        raise UsageError(f"entry point '{wanted}' in 'qnas_plugin.{kind}' must name a module, it names {module!r}")
    return module


def check(kind: Kind, name: str) -> None:
    """Checks that a name is registered, without importing anything.

    Raises:
        UnknownNameError: Nothing is registered under the name.
    """
    if name.replace("-", "_") not in names(kind):
        raise UnknownNameError(_SINGULAR[kind], name, names(kind))


def describe(kind: Kind, name: str) -> str:
    """The first line of a module's docstring, read without importing the module."""
    if name in _built_in(kind):
        source: Path | None = Path(__file__).parent / kind / f"{name}.py"
    else:
        spec = importlib.util.find_spec(_third_party(kind)[name].module)
        source = Path(spec.origin) if spec and spec.origin else None
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) if source else None
    return text.splitlines()[0] if text else ""


@lru_cache
def _built_in(kind: Kind) -> frozenset[str]:
    return _modules(kind, Path(__file__).parent / kind)


def _modules(kind: Kind, folder: Path) -> frozenset[str]:
    """The modules of a folder that are of a kind."""
    files = (path for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return frozenset(path.stem for path in files if kind not in _TOLD_BY or _TOLD_BY[kind] <= _functions(path))


def _functions(source: Path) -> set[str]:
    """Names of the functions of a module, read without importing it."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@lru_cache
def _third_party(kind: Kind) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=f"qnas_plugin.{kind}"), key=lambda point: (point.name, point.value)):
        name = point.name.replace("-", "_")
        if name in _built_in(kind) or name in found:
            raise UsageError(
                f"entry point '{point.name}' = '{point.value}' in 'qnas_plugin.{kind}' takes a name that is already "
                "registered; rename it or uninstall one of the two packages"
            )
        found[name] = point
    return found
