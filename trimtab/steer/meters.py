"""What a setting is chosen by, where it is named or a function of the user's own: as a Meter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeAlias

import numpy as np

from trimtab.datasets.item_set import ItemSet
from trimtab.errors import BadValue
from trimtab.evaluate.contrast import ScoredTexts, contrast_meters, pair_margin, require_prompts
from trimtab.evaluate.generation import judged_meters
from trimtab.evaluate.multiple_choice import choice_meters
from trimtab.progress import tracked
from trimtab.protocols import Edit, Judge, Measured, Meter

Metric: TypeAlias = Callable[[Any, Any, Any, Edit], float | int]
"""Scores an edit on questions: (model, tokenizer, questions, edit) -> a number, more is better."""

NAMED: Mapping[str, Callable[[], Meter]] = {
    "true_info": lambda: judged_meters()[0],
    "mc1": lambda: choice_meters()[0],
    "pair_probability": lambda: contrast_meters()[0],
    "pair_margin": pair_margin,
}


def meter_for(metric: str | Metric | Meter) -> Meter:
    """Return the meter of a name, of a function, or itself; raises `BadValue` for an unknown name."""
    if isinstance(metric, str):
        if metric not in NAMED:
            raise BadValue(f"unknown metric {metric!r}; choose {' or '.join(NAMED)}, or pass a meter or a callable")
        return NAMED[metric]()
    return FunctionMeter(metric) if callable(metric) else metric


@dataclass(frozen=True)
class FunctionMeter(Meter):
    """A function of the user's own, as a meter of the function's name."""

    score: Metric

    @property
    def name(self) -> str:
        """The function's name, or its class's."""
        return getattr(self.score, "__name__", type(self.score).__name__)

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        items: Any,
        edits: Sequence[Edit],
        *,
        asking: str = "plain",  # noqa: ARG002
        seed: int = 0,  # noqa: ARG002
    ) -> list[Measured]:
        """Return every edit's number; raises `BadValue` if it is none that is finite."""
        values = [self.score(model, tokenizer, items, edit) for edit in tracked(edits, "choosing strength")]
        for value in values:
            if not isinstance(value, int | float | np.number) or not isfinite(value):
                raise BadValue(f"the metric {self.name} returned {value!r:.60}, expected a finite number")
        return [Measured(value=float(value)) for value in values]


def judged_metric(items: ItemSet[Any], metric: str, judge: Judge | Callable[[Any, str], Any] | None) -> Meter:
    """Return what a strength is chosen by: a metric by its name, or by a judge of answers or scorer of pairs' texts.

    Raises:
        BadValue: a judge of listed answers; pairs without prompts to continue.
    """
    pairs = items.measured_by == "pairs"
    if judge is None:
        return meter_for("pair_margin" if pairs else metric)
    require_something_to_judge(items, metric)
    if not pairs:
        return judged_meters(judge=judge)[0]
    require_prompts(items)  # pyright: ignore[reportArgumentType]
    return ScoredTexts(judge)


def require_something_to_judge(items: ItemSet[Any], metric: str, strength: float | int | None = None) -> None:
    """Raise `BadValue` if the strength is chosen without generated answers, or is given."""
    if strength is not None:
        raise BadValue(f"the strength is given as {strength}, so there is nothing to judge; leave one of the two out")
    if metric == "mc1" and items.measured_by != "pairs":
        raise BadValue("mc1 scores the listed answers, so there is nothing to judge; leave the judge or mc1 out")
