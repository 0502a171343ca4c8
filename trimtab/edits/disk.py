"""load_edit: whatever a folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from trimtab.edits.residual import KIND, ResidualShift
from trimtab.edits.shifts import HeadShift
from trimtab.protocols import Edit
from trimtab.storage import kind_of


def load_shift(path: str | Path) -> HeadShift | ResidualShift:
    """Return the shift of heads or of the residual stream that stands in a folder, or in the `shift` folder of a run.

    Raises:
        Incompatible: there is no such folder, it holds something else, or its tensors are missing or damaged.
    """
    path = Path(path)
    if path.is_dir() and kind_of(path) not in (KIND, "shift") and (path / "shift").is_dir():
        path = path / "shift"
    if path.is_dir() and kind_of(path) == KIND:
        return ResidualShift.load(path)
    return HeadShift.load(path)


def load_edit(path: str | Path, kinds: Sequence[type[Edit]] = ()) -> Edit:
    """Return the edit that stands in a folder, whatever it is; `kinds` are classes of the user's own it may hold.

    Raises:
        Incompatible: there is no such folder, or it holds something else or is damaged.
    """
    path = Path(path)
    held = kind_of(path)
    for kind in kinds:
        if held == kind.__name__:
            return kind.load(path)  # pyright: ignore[reportAttributeAccessIssue]
    if held == "tuned edit" or (path / "adapter_config.json").is_file():
        return import_module("trimtab.peft.edit").TunedEdit.load(path)
    return load_shift(path)
