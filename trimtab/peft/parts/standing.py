"""Standing: parts that stay made beside a model, and are in it only while they act."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from trimtab.devices import free_bytes
from trimtab.models.anatomy import base_of, input_device
from trimtab.peft.parts.attached import Attached


class _Held(NamedTuple):
    kinds: list[type]
    tables: list[dict[Any, Any]]
    """Copies of what modules hold: attributes, children, parameters, hooks."""
    flags: list[tuple[bool, Any]]
    """Whether each parameter is trained, and its gradient."""


class Bare:
    """What a model's modules hold before something is attached to it."""

    def __init__(self, model: Any) -> None:
        self.model, base = model, base_of(model)
        self.modules, self.parameters = list(base.modules()), list(base.parameters())
        owned = [vars(module) for module in self.modules]
        self.tables = [*owned, *(held for own in owned for held in own.values() if isinstance(held, dict))]
        self.held = self.now()

    def now(self) -> _Held:
        """Return what they hold at present."""
        flags = [(p.requires_grad, p.grad) for p in self.parameters]
        return _Held([type(module) for module in self.modules], [dict(table) for table in self.tables], flags)


class Standing:
    """Parts that were attached to a model: taken out of it when this is made, in it within `acting`.

    Only what attaching changed is exchanged, entry by entry: what others have put on the model meanwhile stays.
    """

    def __init__(self, bare: Bare, attached: Attached) -> None:
        self.attached, self.bare, self.whole, self.inside = attached, bare, bare.now(), True
        self.values = [(p, old.to(p.device), p.detach().clone()) for p, old in attached.overwritten()]
        self.turn()

    @contextlib.contextmanager
    def acting(self) -> Iterator[Attached]:
        """Have the parts in the model for the block."""
        self.turn()
        try:
            yield self.attached
        finally:
            self.turn()

    @torch.no_grad()
    def turn(self) -> None:
        """Put the parts in if they are out, and take them out if they are in."""
        old, new = (self.whole, self.bare.held) if self.inside else (self.bare.held, self.whole)
        self.inside = not self.inside
        for module, kind in zip(self.bare.modules, new.kinds, strict=True):
            if type(module) is not kind:
                module.__class__ = kind
        for table, before, after in zip(self.bare.tables, old.tables, new.tables, strict=True):
            if list(before) != list(after) or any(before[key] is not after[key] for key in before):
                _exchange(table, before, after)
        for parameter, (trained, grad) in zip(self.bare.parameters, new.flags, strict=True):
            parameter.requires_grad_(trained)
            parameter.grad = grad
        for parameter, *values in self.values:
            parameter.copy_(values[self.inside])


def _exchange(table: dict[Any, Any], before: dict[Any, Any], after: dict[Any, Any]) -> None:
    """Make of a table what it is after a change, in that order; entries that were not changed stay as they are now."""
    same = {key for key in before.keys() & after.keys() if before[key] is after[key]}
    new = {
        key: table.get(key) if key in same else value for key, value in after.items() if key in table or key not in same
    }
    new |= {key: value for key, value in table.items() if key not in before and key not in after}
    table.clear()
    table.update(new)


def has_room(attached: Attached) -> bool:
    """Return whether the device holds what `Standing` copies of the weights that are written into."""
    size = sum(parameter.nbytes for parameter, _ in attached.overwritten())
    return not size or 4 * size < free_bytes(input_device(attached.model))
