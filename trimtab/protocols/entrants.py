"""What takes part in a comparison: methods, controls, and edits that are already made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import BadValue
from trimtab.protocols.control import Control
from trimtab.protocols.edit import Edit
from trimtab.protocols.method import Knobs, Method


def require_order(parts: Sequence[Edit] | Sequence[Method]) -> None:
    """Raise `BadValue` where one that answers with a model of its own comes after one that would then not act."""
    for i, part in enumerate(parts):
        lost = [p.name for p in parts[:i] if not p.changes_prompt_only]
        if lost and part.replaces_model:
            raise BadValue(
                f"{part.name} answers with a model of its own, on which {lost[0]} would not act; put it first"
            )


@dataclass(frozen=True)
class Ready(Method):
    """An edit that is already made, as a method: the same in every fold, and without knobs."""

    edit: Edit

    @property
    def name(self) -> str:
        """The edit's name."""
        return self.edit.name

    @property
    def replaces_model(self) -> bool:
        """As of the edit."""
        return self.edit.replaces_model

    @property
    def changes_prompt_only(self) -> bool:
        """As of the edit."""
        return self.edit.changes_prompt_only

    @property
    def fitted_on(self) -> Sequence[str]:
        """As of the edit."""
        return self.edit.fitted_on

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Edit:  # noqa: ARG002
        """Return the edit; raises `BadValue` for any knob."""
        self.setting(knobs)
        return self.edit


def as_entrant(value: Any) -> Method | Control:
    """Return what a comparison compares: a method or a control as it is, an edit as a method that gives it.

    Raises:
        BadValue: anything else, such as a class in place of an instance.
    """
    if isinstance(value, Edit):
        return Ready(value)
    if isinstance(value, Method | Control):
        return value
    raise BadValue(
        f"{value!r:.60} is neither a Method, an Edit nor a Control; derive its class from one of these, and give an "
        "instance, as ITI()"
    )


def as_edit_class(value: Any) -> type[Edit]:
    """Return a class of edits as it is; raises `BadValue` for anything else, such as an instance."""
    if isinstance(value, type) and issubclass(value, Edit):
        return value
    raise BadValue(f"{value!r:.60} is no class of edits; derive one from tt.Edit, and give the class itself")


def methods_and_controls(
    entrants: Mapping[str, Method | Control],
) -> tuple[dict[str, Method], dict[str, Control]]:
    """Return the methods and the controls among what a comparison compares, by name."""
    methods = {name: entrant for name, entrant in entrants.items() if isinstance(entrant, Method)}
    return methods, {name: entrant for name, entrant in entrants.items() if isinstance(entrant, Control)}
