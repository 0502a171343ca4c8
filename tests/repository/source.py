"""The package as text: its files' syntax trees, what each imports at run time, and laws with what is left to mend."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import trimtab

PACKAGE = Path(trimtab.__file__).parent
TREES: dict[str, ast.Module] = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""File, as a path within the package -> its tree."""


def dotted(file: str) -> str:
    """Return the module that a file is."""
    parts = ["trimtab", *Path(file).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILE_OF = {dotted(file): file for file in TREES}


def run_time(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes of a file but for what only type checkers read."""
    typed_only = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test).endswith("TYPE_CHECKING")
        for part in test.body
        for node in ast.walk(part)
    }
    return (node for node in ast.walk(tree) if id(node) not in typed_only)


def imports_of(file: str) -> list[tuple[str, str]]:
    """Return (module, name) of what a file imports at run time, inside functions too; a whole module has no name."""
    found = []
    for node in run_time(TREES[file]):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def behind_faces() -> dict[str, str]:
    """Return for every name that a package's `__init__` hands on, eagerly or by a table, the file it comes from."""
    behind = {}
    for file, tree in TREES.items():
        if not file.endswith("__init__.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trimtab"):
                for alias in node.names:
                    behind[f"{dotted(file)}.{alias.asname or alias.name}"] = home(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and value.value:
                        for module in (f"{value.value}", f"trimtab.{value.value}", f"{dotted(file)}.{value.value}"):
                            if module in FILE_OF:
                                behind[f"{dotted(file)}.{key.value}"] = FILE_OF[module]
    return {name: there for name, there in behind.items() if there}


def home(name: str) -> str:
    """Return the file of a module, or of the module that a name stands in; nothing if it is none of the package's."""
    return FILE_OF.get(name) or FILE_OF.get(name.rpartition(".")[0], "")


def arrows() -> dict[str, set[str]]:
    """Return for every file those that it imports; through a package's face, the file behind it."""
    behind, found = behind_faces(), {}
    for file in TREES:
        wanted = {f"{module}.{name}" if name else module for module, name in imports_of(file)}
        there = {behind.get(name) or home(name) for name in wanted}
        found[file] = {other for other in there if other and other != file and not other.endswith("__init__.py")}
    return found


def within_circles(graph: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Return for every file that can be reached from itself all files of its circle."""
    reached = {file: reachable(graph, file) for file in graph}
    return {
        file: sorted(other for other in there if file in reached[other])
        for file, there in reached.items()
        if file in there
    }


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Return all files that one imports, and that those import."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += graph[file]
    return found


def but_for(*left: str) -> Any:
    """Parametrise a law: all else must keep it now; each thing that is left to mend leaves this list when it does."""
    mark = pytest.mark.xfail(strict=True, raises=AssertionError, reason="left to mend")
    rest = pytest.param(None, left, id="all else")
    return pytest.mark.parametrize("only, left", [rest, *(pytest.param(x, left, id=x, marks=mark) for x in left)])


def require_none(wrong: Mapping[str, Iterable[Any]], only: str | None, left: tuple[str, ...]) -> None:
    """Assert that nothing is wrong, with one thing or with all that are not left."""
    found = {name: list(what) for name, what in wrong.items() if (name not in left if only is None else name == only)}
    assert not any(found.values()), {name: what for name, what in found.items() if what}
