"""load_edit: whatever kind of edit a folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from trimtab.errors import Incompatible, nearest
from trimtab.hub import folder_of
from trimtab.protocols import Edit, as_edit_class
from trimtab.storage import RECORD, kind_of, load_record

KINDS = {
    "shift": "trimtab.edits.vectors.HeadShift",
    "residual shift": "trimtab.edits.vectors.ResidualShift",
    "prompted": "trimtab.edits.prompts.Prompted",
    "stated": "trimtab.edits.prompts.Stated",
    "retrieved": "trimtab.edits.retrieval.Retrieved",
    "stacked": "trimtab.edits.combined.Stacked",
    "no edit": "trimtab.edits.combined.NoEdit",
    "eraser": "trimtab.edits.erasure.Eraser",
    "ablation": "trimtab.edits.ablation.DirectionalAblation",
    "memory edit": "trimtab.edits.memory_edit.MemoryEdit",
    "weight edit": "trimtab.edits.weight_edit.WeightEdit",
    "tuned edit": "trimtab.peft.tuned_edit.TunedEdit",
}
"""Kind of a folder's record -> the class that loads it, imported on use. A folder itself never names code."""
HOLDING = {"fit": "shift", "demo run": "shift"}
"""Kind of a result that holds an edit -> the folder within it that does."""
ADAPTER = "adapter_config.json"
"""What Hugging Face PEFT, and every tool that uses it, writes beside an adapter's tensors."""


def load_edit(path: str | Path, *, kinds: Sequence[type[Edit]] = ()) -> Any:
    """Return the edit that a folder holds: one that `save` wrote, the shift of a run, or a PEFT adapter of any tool.

    Args:
        kinds: classes of your own, each found by its `kind` and read by its `load`.

    Raises:
        Incompatible: there is no such folder (the nearest results are offered), it holds something else, or its files
            are missing or damaged.
        BadValue: what is given as a class is none of edits.
    """
    path, known = Path(path), {cls.kind: cls for cls in map(as_edit_class, kinds)}
    kind = kind_of_edit(path)
    if kind in HOLDING:
        return load_edit(path / HOLDING[kind], kinds=kinds)
    if kind in known:
        return known[kind].load(path)
    if kind is None:
        if (path / RECORD).is_file():
            load_record(path, "edit")  # says what is wrong with it
        raise Incompatible(f"expected an edit at {path}, there is none{_beside(path)}")
    if kind not in KINDS:
        advice = "give the class that loads it: load_edit(..., kinds=[Mine]), in the shell --edit-class FILE.py:NAME"
        raise Incompatible(f"expected an edit at {path}, found {kind}; {advice}")
    home, _, name = KINDS[kind].rpartition(".")
    cls: Any = getattr(import_module(home), name)
    return cls.load(path, kinds=kinds) if kind == "stacked" else cls.load(path)


def from_pretrained(name: str | Path, *, revision: str | None = None, kinds: Sequence[type[Edit]] = ()) -> Any:
    """Return the edit of any kind that a folder holds, or a repository of the Hugging Face hub (`org/name`).

    Args:
        revision: branch, tag or commit on the hub. Nothing but a hub id reaches the network.
        kinds: as of `load_edit`.

    Raises:
        Incompatible: there is no such folder or repository, or it holds something else.
    """
    return load_edit(folder_of(name, revision), kinds=kinds)


def kind_of_edit(path: Path) -> str | None:
    """Return the kind of the result that a folder holds, or None; an adapter of another tool is a tuned edit."""
    try:
        return kind_of(path) or ("tuned edit" if (path / ADAPTER).is_file() else None)
    except OSError:  # a name that no disk can hold
        return None


def _beside(missing: Path) -> str:
    parent = missing.parent
    folders = sorted(parent.iterdir()) if parent.is_dir() else []
    held = [folder.name for folder in folders if kind_of_edit(folder) in {*KINDS, *HOLDING}]
    return nearest(missing.name, held) or "; name a folder that an edit was saved to"


load_shift = load_edit
