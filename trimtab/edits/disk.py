"""load_shift: whatever kind of shift a folder holds."""

from __future__ import annotations

from pathlib import Path

from trimtab.edits.residual import KIND, ResidualShift
from trimtab.edits.shifts import HeadShift
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
