"""Control: what takes over another method's chosen setting and draws its edit anew; it has nothing to choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from trimtab.edits import Edit


@runtime_checkable
class Control(Protocol):
    """A random counterpart of another method's edit, such as `trimtab.steer.RandomDirection`."""

    @property
    def name(self) -> str:
        """A short name for tables."""
        ...

    @property
    def draws(self) -> int:
        """Draws in every fold and under every seed."""
        ...

    @property
    def follows(self) -> str:
        """The row whose chosen setting it takes."""
        ...

    def draw(self, edit: Any, *, seed: Sequence[int]) -> Edit:
        """Return the counterpart of an edit that the followed method made; the seed's numbers decide it."""
        ...
