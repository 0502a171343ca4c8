"""Widened: a method with more knobs to try."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.compare.wrapped import WrappedMethod
from trimtab.errors import BadValue
from trimtab.protocols import Edit, Findings, Knobs, settings_of

STRENGTH = "strength"


@dataclass(frozen=True)
class Widened(WrappedMethod):
    """A method with more knobs: its own space and these values, `strength` among them.

    `strength` multiplies the finished edit (`edit.scaled`), so that a tuned edit has the knob that a shift has.
    """

    knobs: tuple[tuple[str, tuple[Any, ...]], ...]
    """(knob, values) pairs; a knob of the method's own has these values instead of its own."""
    name: str = ""

    def __post_init__(self) -> None:
        if not all(values for _, values in self.knobs):
            raise BadValue(f"{self.method.name}: every knob needs one value or more to try, got {self.knobs}")
        if not self.name:
            object.__setattr__(self, "name", self.method.name)

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """The method's own knobs, then the added ones."""
        added = dict(self.knobs)
        return {**{knob: values for knob, values in self.method.space.items() if knob not in added}, **added}

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Edit:
        """Return the edit fitted with these knobs, at their strength.

        Raises:
            BadValue: the edit has no strength to set.
        """
        return self.fitter(model, tokenizer, train, seed=seed)(dict(knobs or settings_of(self)[0]))

    def fitter_with(
        self, findings: Findings, model: Any, tokenizer: Any, train: Any, *, seed: int = 0
    ) -> Callable[[Knobs], Edit]:
        """Return a function from knobs to edits; settings that differ in their strength alone are fitted once."""
        fitted, made = self.method.fitter_with(findings, model, tokenizer, train, seed=seed), {}

        def at(knobs: Knobs) -> Edit:
            own = {knob: value for knob, value in knobs.items() if knob != STRENGTH}
            key = tuple(own.items())
            if key not in made:
                made.clear()  # an edit may be as large as the model: one is kept
                made[key] = fitted(own)
            return made[key].scaled(knobs[STRENGTH]) if knobs.get(STRENGTH, 1) != 1 else made[key]

        return at
