"""What is found out about a model once within a call, for edits that are entered many times in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any, TypeAlias

from trimtab.models.fingerprint import fingerprint
from trimtab.models.heads import HeadSite, find_heads
from trimtab.protocols import Edit, Positions

EnterAt: TypeAlias = Callable[[Positions], AbstractContextManager[Any]]


class KnownModel:
    """A model whose fingerprint and heads are looked for when they are first wanted, and kept.

    For the time in which nobody changes its weights or modules: one call, not longer.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The model's identity."""
        return fingerprint(self.model)

    @cached_property
    def heads(self) -> tuple[HeadSite, ...]:
        """The model's heads; finding them takes a forward."""
        return find_heads(self.model)


def entered(edit: Edit, known: KnownModel) -> EnterAt:
    """Return what enters the edit at given positions; an edit with an `on` method is checked here, once for all."""
    on = getattr(edit, "on", None)
    return partial(edit.applied, known.model) if on is None else on(known)
