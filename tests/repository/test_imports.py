"""Imports run one way, in no circle, and nothing heavy is loaded unasked."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trimtab
from tests.repository.source import (
    PACKAGE,
    TREES,
    arrows,
    behind_faces,
    but_for,
    imports_of,
    require_none,
    within_circles,
)

# a room imports only rooms above it, and those of its own line only where that line is the ground
ROOMS = [
    {"errors"},
    {"before", "fields", "noise", "plain_values", "posix"},
    {"storage", "intervals", "progress", "devices", "hub"},
    {"cells", "card"},
    {"protocols"},
    {"activations"},
    {"datasets"},
    {"embedded"},
    {"probes"},
    {"models"},
    {"engine"},
    {"edits"},
    {"evaluate"},
    {"steer", "peft", "knowledge", "prompting"},
    {"compare"},
    {"report"},
    {"published"},
    {"export"},
    {"training"},
    {"cli"},
    {"__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
GROUND = ROOMS[2]


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def breaks_order(here: str, there: str) -> bool:
    if here == there or {here, there} <= GROUND:
        return False
    return RANK[there] >= RANK[here]


@but_for()
def test_no_file_imports_a_room_below_it_or_beside_it(only, left):
    wrong = {}
    for file in TREES.keys() - {"__init__.py"}:
        names = [f"{module}.{name}".split(".") for module, name in imports_of(file)]
        rooms = {parts[1] for parts in names if parts[0] == "trimtab" and parts[1] in RANK}
        wrong[file] = [f"imports {there}" for there in sorted(rooms) if breaks_order(room_of(file), there)]
    require_none(wrong, only, left)


def test_every_room_has_its_place_in_the_order():
    assert {room_of(file) for file in TREES} - {"__init__"} <= RANK.keys()


@but_for()
def test_no_file_stands_in_a_circle_of_imports(only, left):
    require_none(within_circles(arrows()), only, left)


def test_circles_are_found_through_a_packages_face():
    assert within_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == {"b": ["b", "c"], "c": ["b", "c"]}
    assert behind_faces()["trimtab.peft.LoRA"] == "peft/methods/lora.py"
    assert behind_faces()["trimtab.load_model"].startswith("models/load/")


def test_datasets_and_probes_know_no_transformer_and_hf_names_stay_home():
    for file in TREES:
        here, names = room_of(file), {module.split(".")[0] for module, _ in imports_of(file)}
        wrong = {"pickle"}
        wrong |= {"transformers"} if here in ("datasets", "probes") else set()
        wrong |= {"peft"} if here != "peft" else set()
        wrong |= {"datasets"} if here != "datasets" else set()
        assert not names & wrong, file


def loaded_by(code: str) -> set[str]:
    """Return the top-level packages that a fresh process has loaded after running the code."""
    program = f"import sys\n{code}\nprint(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return set(out.split())


def test_importing_trimtab_and_its_command_line_loads_nothing_heavy():
    heavy = {"torch", "transformers", "peft", "sklearn", "numpy", "matplotlib"}
    assert not heavy & loaded_by("import trimtab.cli")  # and so of trimtab, which that imports first
    assert "torch" in loaded_by("import trimtab\ntrimtab.Head")  # the control: a name that needs it does load it


def test_datasets_load_neither_torch_nor_transformers():
    assert not {"torch", "transformers"} & loaded_by("import trimtab\ntrimtab.datasets.folklore()")


def test_every_public_name_is_there_and_others_are_refused():
    for name in trimtab.__all__:
        assert getattr(trimtab, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        trimtab.no_such_name  # noqa: B018


def test_nothing_in_the_package_folder_shadows_a_hugging_face_package_for_a_script_beside_it(tmp_path):
    code = "from importlib.util import find_spec; print(find_spec('peft').origin, find_spec('trimtab').origin)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    theirs, ours = ran.stdout.split()
    assert "site-packages" in theirs
    assert ours == str(PACKAGE / "__init__.py")  # the control: what lies beside the script is found first
