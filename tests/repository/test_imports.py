"""The house rules on imports, held by reading the code and by looking at what a fresh process loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trimtab

PACKAGE = Path(trimtab.__file__).parent
ROOMS = [
    {"errors"},
    {"fields"},
    {"storage", "intervals", "progress", "devices"},
    {"cells"},
    {"protocols"},
    {"activations"},
    {"datasets"},
    {"embedded"},
    {"probes"},
    {"models"},
    {"engine"},
    {"edits"},
    {"evaluate"},
    {"steer", "peft", "prompting"},
    {"compare"},
    {"report"},
    {"published"},
    {"export"},
    {"training"},
    {"cli"},
    {"__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imports_of(path: Path) -> list[str]:
    """Return the modules that a file imports at run time (type-only imports left out)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed_only = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typed_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_imports_a_room_to_its_right(path):
    here = room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "trimtab" and len(parts) > 1:
            there = parts[1]
            assert RANK[there] <= RANK[here], f"{here} imports {name}"
            assert there == here or RANK[there] < RANK[here] or {here, there} <= {"storage", "progress", "intervals"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_datasets_and_probes_know_no_transformer_and_hf_names_stay_home(path):
    here, names = room_of(path), {name.split(".")[0] for name in imports_of(path)}
    if here in ("datasets", "probes"):
        assert "transformers" not in names
    if here != "peft":
        assert "peft" not in names
    if here != "datasets":
        assert "datasets" not in names
    assert "pickle" not in names


def test_only_one_file_registers_hooks():
    registering = [p.name for p in FILES if "register_forward" in p.read_text(encoding="utf-8")]
    assert registering == ["hooks.py"]


def loaded_by(code: str) -> set[str]:
    """Return the top-level packages that a fresh process has loaded after running the code."""
    program = f"import sys\n{code}\nprint(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return set(out.split())


def test_importing_trimtab_and_its_command_line_loads_nothing_heavy():
    heavy = {"torch", "transformers", "peft", "sklearn", "numpy", "matplotlib"}
    assert not heavy & loaded_by("import trimtab")
    assert not heavy & loaded_by("import trimtab.cli")
    assert "torch" in loaded_by("import trimtab\ntrimtab.Head")  # the control: a name that needs it does load it


def test_datasets_load_neither_torch_nor_transformers():
    assert not {"torch", "transformers"} & loaded_by("import trimtab\ntrimtab.datasets.folklore()")


def test_every_public_name_is_there_and_others_are_refused():
    for name in trimtab.__all__:
        assert getattr(trimtab, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        trimtab.no_such_name  # noqa: B018


def test_nothing_in_the_package_folder_shadows_a_hugging_face_package_for_a_script_beside_it(tmp_path):
    code = "import peft, os; assert 'site-packages' in peft.__file__, peft.__file__"
    ran = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
