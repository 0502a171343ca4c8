"""load_shift: whatever kind of shift a folder holds."""

from __future__ import annotations

from pathlib import Path

from trimtab.errors import Incompatible
from trimtab.steer.residual import KIND, ResidualShift
from trimtab.steer.shifts import HeadShift
from trimtab.storage import kind_of


def load_shift(path: str | Path) -> HeadShift | ResidualShift:
    """Return the shift of heads or of the residual stream that stands in a folder.

    Raises:
        Incompatible: there is no such folder, it holds something else, or its tensors are missing or damaged.
    """
    path = Path(path)
    if path.is_dir() and kind_of(path) == KIND:
        return ResidualShift.load(path)
    if path.is_dir() and kind_of(path) not in ("shift", None) and kind_of(path / "shift") is not None:
        raise Incompatible(f"{path} holds {kind_of(path)}; its shift is at {path / 'shift'}")
    return HeadShift.load(path)
