"""What a setting is chosen by, where it is named or is a function of the user's own: each as a Meter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeAlias

import numpy as np

from trimtab.errors import BadValue
from trimtab.evaluate.contrast import Scorer, contrast, score_texts
from trimtab.evaluate.generation import generate_answers_many
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.judges.verdicts import judge_record
from trimtab.evaluate.multiple_choice import multiple_choice_many
from trimtab.progress import tracked
from trimtab.protocols import Edit, Measured, Meter

Metric: TypeAlias = Callable[[Any, Any, Any, Edit], float | int]
"""Scores an edit on questions: (model, tokenizer, questions, edit) -> a number, more is better."""


def meter_for(metric: str | Metric | Meter) -> Meter:
    """Return the meter of a name, of a function, or itself; raises `BadValue` for an unknown name."""
    if isinstance(metric, str):
        if metric not in NAMED:
            raise BadValue(f"unknown metric {metric!r}; choose {' or '.join(NAMED)}, or pass a callable")
        return NAMED[metric]()
    return function_meter(metric) if callable(metric) else metric


def figures(
    meter: Meter, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit]
) -> tuple[list[float], Mapping[str, Any]]:
    """Return the meter's figure of every edit, and what must stand beside them.

    Raises:
        BadValue: it has nothing to say of one of them.
    """
    found = meter.instrument.measure(model, tokenizer, items, edits)
    values = []
    for edit, measured in zip(edits, found, strict=True):
        if measured is None:
            raise BadValue(f"{meter.name} says nothing of {edit.name}; choose its setting by another meter")
        rows = [[float(row[c]) for c in meter.columns] for row in measured.rows.values()]
        value = float(meter.summary(np.mean(rows, axis=0))) if rows else measured.value
        values.append(_number(value, meter.name))
    return values, next((m.record for m in found if m is not None), {})


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float | np.number) or not isfinite(value):
        raise BadValue(f"the metric {name} returned {value!r:.60}, expected a finite number")
    return float(value)


@dataclass(frozen=True)
class ScoreMeter(Meter):
    """A meter made of a function from model, tokenizer, items and edits to one figure for every edit."""

    name: str
    scores: Callable[[Any, Any, Any, Sequence[Edit]], Sequence[float]]
    judge: Mapping[str, Any] | None = None
    """What must stand beside the figures of a judge."""

    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> list[Measured]:
        """Return every edit's figure; nothing is drawn, and questions are asked plainly (`asking`, `seed`)."""
        del asking, seed
        record = {"judge": self.judge}
        return [Measured(value=value, record=record) for value in self.scores(model, tokenizer, items, edits)]


def generated_true_info(judge: Any = exact_judge) -> Meter:
    """Return True*Info of generated answers, as a meter."""

    def scores(model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit]) -> list[float]:
        said = generate_answers_many(model, tokenizer, items, edits, judge=judge)
        return [float(answers.true_info) for answers in said]

    return ScoreMeter("true_info", scores, judge_record(judge))


def first_choice() -> Meter:
    """Return MC1 of the listed answers, as a meter."""
    return ScoreMeter("mc1", lambda *given: [float(m.mc1) for m in multiple_choice_many(*given)])


def text_score(scorer: Scorer) -> Meter:
    """Return the mean score of generated continuations of pairs' prompts, as a meter."""
    return function_meter(lambda *given: float(score_texts(*given, scorer=scorer).score), judge_record(scorer))


def function_meter(score: Metric, record: Mapping[str, Any] | None = None) -> Meter:
    """Return a function's number of one edit, as a meter of the function's name (or the record's)."""
    name = (record or judge_record(score))["name"]

    def scores(model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit]) -> list[float]:
        return [_number(score(model, tokenizer, items, e), name) for e in tracked(edits, "choosing strength")]

    return ScoreMeter(name, scores, record or getattr(score, "record", None))


def pair_probability(model: Any, tokenizer: Any, pairs: Any, edit: Edit) -> float:
    """Return the mean probability of the pairs' positive sides, as a metric for `choose_strength`."""
    return float(contrast(model, tokenizer, pairs, edit).probability)


NAMED: Mapping[str, Callable[[], Meter]] = {"true_info": generated_true_info, "mc1": first_choice}
