"""Standing: parts that stay made beside a model, and are in it only while they act."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch

from trimtab.devices import free_bytes
from trimtab.models.anatomy import base_of, input_device
from trimtab.peft.parts.attached import Attached

Table: TypeAlias = dict[Any, Any]
"""What a module holds: its attributes, children, parameters or hooks."""


class Bare:
    """A model before something is attached to it."""

    def __init__(self, model: Any) -> None:
        self.model, base = model, base_of(model)
        self.modules, self.parameters = list(base.modules()), list(base.parameters())
        owned = [vars(module) for module in self.modules]
        self.tables: list[Table] = [*owned, *(held for own in owned for held in own.values() if isinstance(held, dict))]
        self.before = self.now()

    def now(self) -> tuple[list[type], list[Table], list[tuple[bool, Any]]]:
        """Return its modules' classes and tables, and of each parameter whether it is trained, and its gradient."""
        flags = [(p.requires_grad, p.grad) for p in self.parameters]
        return [type(module) for module in self.modules], [dict(table) for table in self.tables], flags


class Standing:
    """Parts that were attached to a model: taken out of it when this is made, in it within `acting`.

    Only what attaching changed is exchanged, entry by entry: what others have put on the model meanwhile stays.
    """

    def __init__(self, bare: Bare, attached: Attached) -> None:
        self.attached, self.model, self.inside = attached, bare.model, True
        (kinds, tables, flags), (new_kinds, new_tables, new_flags) = bare.before, bare.now()
        self.kinds = [both for both in zip(bare.modules, kinds, new_kinds, strict=True) if both[1] is not both[2]]
        self.tables = [both for both in zip(bare.tables, tables, new_tables, strict=True) if not _same(*both[1:])]
        self.flags = list(zip(bare.parameters, flags, new_flags, strict=True))
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
        self.inside = not self.inside
        for module, *kinds in self.kinds:
            module.__class__ = kinds[self.inside]
        for table, *held in self.tables:
            _exchange(table, held[not self.inside], held[self.inside])
        for parameter, *flags in self.flags:
            trained, parameter.grad = flags[self.inside]
            parameter.requires_grad_(trained)
        for parameter, *values in self.values:
            parameter.copy_(values[self.inside])


def _same(one: Table, other: Table) -> bool:
    return list(one) == list(other) and all(one[key] is other[key] for key in one)


def _exchange(table: Table, before: Table, after: Table) -> None:
    """Make of a table what it is after a change, in that order; entries that the change leaves are as they are now."""
    left = {key for key in before.keys() & after.keys() if before[key] is after[key]}
    new = {key: table[key] if key in left else after[key] for key in after if key in table or key not in left}
    new |= {key: value for key, value in table.items() if key not in before and key not in after}
    table.clear()
    table.update(new)


def has_room(attached: Attached) -> bool:
    """Return whether the device holds what `Standing` copies of the weights that are written into."""
    size = sum(parameter.nbytes for parameter, _ in attached.overwritten())
    return not size or 4 * size < free_bytes(input_device(attached.model))
