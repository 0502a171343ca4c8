"""The laws of the house that can be read off the code: one door, one place for hooks, short files, unique names."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from tests.repository.source import PACKAGE, TREES, but_for, home, imports_of, require_none

DOOR = "protocols/"
ASKED = {"edit", "edits", "shift", "method", "methods", "tuned", "control", "meter", "meters", "judge"}
HOOKS = ("register_forward", "register_full_backward", "register_backward", "register_module")
MOST_LINES, MOST_PARAMETERS = 300, 7
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def kinds() -> frozenset[str]:
    """Return the names of all edits, methods, controls, meters and judges: what derives from a base of the door."""
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {"Edit", "Method", "Control", "Meter", "Judge"}
    for _ in classes:
        more = {c.name for c in classes if {ast.unparse(base).split(".")[-1] for base in c.bases} & found}
        if more <= found:
            break
        found |= more
    return frozenset(found)


def words(node: ast.AST) -> set[str]:
    """Return the words of which the identifiers in an expression are made."""
    return {word for name in identifiers(node) for word in name.lower().split("_")}


def identifiers(node: ast.AST) -> set[str]:
    """Return the identifiers in an expression."""
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)
    }


def keyholes(tree: ast.AST) -> Iterator[str]:
    """Yield what asks an edit, method, control, meter or judge for its kind, or for what it may lack."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            name, first = node.func.id, node.args[0]
            if (
                (name in ("getattr", "hasattr", "setattr") and len(node.args) > 1 and words(first) & ASKED)
                or (name in ("type", "callable", "vars") and len(node.args) == 1 and words(first) & ASKED)
                or (name in ("isinstance", "issubclass") and identifiers(node.args[-1]) & kinds())
            ):
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.MatchClass) and identifiers(node.cls) & kinds():
            yield f"{node.lineno}: case {ast.unparse(node.cls)}"
        elif isinstance(node, ast.ExceptHandler) and node.type and "AttributeError" in identifiers(node.type):
            yield f"{node.lineno}: except AttributeError"
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call):
            asked = node.value.func
            if isinstance(asked, ast.Attribute) and asked.attr == "describe" and "kind" in ast.unparse(node.slice):
                yield f"{node.lineno}: {ast.unparse(node)}"


@but_for()
def test_nobody_asks_what_is_not_declared(only, left):
    require_none({file: keyholes(tree) for file, tree in TREES.items() if not file.startswith(DOOR)}, only, left)


def test_every_kind_of_keyhole_is_seen():
    seen = """
        getattr(edit, "on", None)
        hasattr(self.method, "fitter")
        isinstance(x, HeadShift | Edit)
        type(shift)
        callable(judge)
        edit.describe()["kind"] == "shift"
        """
    for line in seen.strip().splitlines():
        assert list(keyholes(ast.parse(line.strip()))), line
    assert list(keyholes(ast.parse("match x:\n    case NoEdit():\n        pass")))
    assert list(keyholes(ast.parse("try:\n    x.on\nexcept AttributeError:\n    pass")))
    assert not list(keyholes(ast.parse('getattr(config, "method"), type(model), isinstance(x, Tensor), x["kind"]')))


def test_only_one_file_registers_hooks():
    registering = {
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith(HOOKS)
    }
    assert registering == {"models/hooks.py"}


def environment_changes(tree: ast.AST) -> Iterator[str]:
    """Yield what changes the process's environment."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            if not isinstance(node.ctx, ast.Load):
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os.environ":
            if node.attr in ("pop", "popitem", "setdefault", "update", "clear"):
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.putenv", "os.unsetenv"):
            yield f"{node.lineno}: {ast.unparse(node)}"


@but_for(
    "models/processes.py",
)
def test_nobody_changes_the_environment(only, left):
    require_none({file: environment_changes(tree) for file, tree in TREES.items()}, only, left)


@but_for()
def test_files_are_short(only, left):
    lines = {file: len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in TREES}
    require_none({file: [f"{n} lines"] for file, n in lines.items() if n >= MOST_LINES}, only, left)


def wide(tree: ast.AST) -> Iterator[str]:
    """Yield the functions of more parameters than a reader holds in mind."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            given = given[given[:1] in (["self"], ["cls"]) :]
            if len(given) > MOST_PARAMETERS:
                yield f"{node.lineno}: {node.name} takes {len(given)}"


@but_for()
def test_functions_take_few_parameters(only, left):
    # the shell's verbs have a parameter for each of their flags
    require_none({file: wide(tree) for file, tree in TREES.items() if not file.startswith("cli/")}, only, left)


@but_for()
def test_a_public_name_means_one_thing(only, left):
    homes = defaultdict(list)
    verbs = {home(module) for module, _ in imports_of("cli/__init__.py")}  # which are called what they call
    for file, tree in TREES.items():
        for node in tree.body:
            public = isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_")
            if public and not (file in verbs and isinstance(node, Function)):
                homes[node.name].append(file)
    require_none({name: files for name, files in homes.items() if len(files) > 1}, only, left)


@but_for()
def test_a_files_name_means_one_thing(only, left):
    places = defaultdict(list)
    for file in TREES:
        if not file.startswith("cli/"):  # a verb is called what it calls
            places[file.split("/")[-1]].append(file)
    places.pop("__init__.py")
    require_none({name: files for name, files in places.items() if len(files) > 1}, only, left)
