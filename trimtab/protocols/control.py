"""Control: everything that is ever asked of what could have had an edit's effect by luck."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from trimtab.protocols.edit import Edit
from trimtab.protocols.plain_repr import FieldsRepr


class Control(FieldsRepr, ABC):
    """What could have had another method's effect by luck: it takes that row's chosen edit and draws others like it."""

    name: str
    """A short name for tables."""
    draws: int = 10
    """Draws in every fold and under every seed."""
    follows: str
    """The row whose chosen edit it takes."""

    @abstractmethod
    def edits(self, after: Edit, n: int, *, seed: Sequence[int]) -> Iterator[Edit]:
        """Yield n counterparts of the edit that was chosen; the seed's numbers alone decide them.

        The first k of n are the k that are yielded where k are asked for.

        Raises:
            BadValue: an edit of a kind that it has no counterpart of.
        """

    def describe(self) -> dict[str, Any]:
        """Return plain values that tell one control from another."""
        return {"control": type(self).__name__, "name": self.name, "draws": self.draws, "follows": self.follows}
