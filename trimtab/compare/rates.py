"""rates: what fitting and measuring cost on this machine, the fixed part apart from what grows with the work."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.compare.design import Meters
from trimtab.compare.variants import OnQuantized, Widened
from trimtab.datasets.questions import QuestionSet
from trimtab.evaluate.cost import milliseconds_per_token
from trimtab.evaluate.drift import drift
from trimtab.evaluate.generation import generate_answers
from trimtab.evaluate.multiple_choice import multiple_choice
from trimtab.evaluate.table import only_prompts
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.train.running import n_steps
from trimtab.prompting.few_shot import Stack, name_of
from trimtab.protocols import Edit

QUESTIONS = (4, 16)
TEXTS = (4, 32)
STEPS = (1, 4)
FITTED_ON = (8, 24)


@dataclass(frozen=True)
class Line:
    """Seconds as a fixed part and a part for every question, text, step or the like."""

    fixed: float
    each: float

    def at(self, n: float | int) -> float:
        """Return the seconds for n of them."""
        return self.fixed + n * self.each if n else 0.0


def timed_line(work: Callable[[int], Any], sizes: tuple[int, int]) -> Line:
    """Return the line through the seconds that `work` takes at two sizes, after a first call that is not counted."""
    few, many = sizes
    if few >= many:
        return Line(0.0, _seconds(work, max(many, 1)) / max(many, 1))
    work(few)
    short, long = _seconds(work, few), _seconds(work, many)
    each = max(0.0, (long - short) / (many - few))
    return Line(max(0.0, short - few * each), each)


def _seconds(work: Callable[[int], Any], n: int) -> float:
    started = time.perf_counter()
    work(n)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Measuring:
    """What measuring one edit costs."""

    answer: Line
    choice: Line
    drift: Line
    speed: float
    """Seconds for the milliseconds per token."""


def measuring(model: Any, tokenizer: Any, edit: Edit, questions: QuestionSet, meters: Meters) -> Measuring:
    """Return what the meters take with this edit, from a few questions and neutral texts."""
    both = (model, tokenizer)
    texts, sizes = meters.neutral()[1], _within(QUESTIONS, len(questions))
    options = {"judge": meters.judge, "max_new_tokens": meters.max_new_tokens}
    return Measuring(
        timed_line(lambda n: generate_answers(*both, questions[:n], edit, **options), sizes),
        timed_line(lambda n: multiple_choice(*both, questions[:n], edit, convention=meters.convention), sizes),
        Line(0.0, 0.0)
        if only_prompts(edit)
        else timed_line(lambda n: drift(*both, edit, texts=_spread(texts, n)), _within(TEXTS, len(texts))),
        _seconds(lambda n: milliseconds_per_token(*both, [q.question for q in questions[:n]], edit), 3),
    )


@dataclass(frozen=True)
class Fitting:
    """What fitting one method costs; for a stack, what each of its parts does."""

    parts: tuple[tuple[str, Any, Line], ...]
    """(name, the tuning method inside or None, seconds by optimiser steps or by questions)."""
    shared: bool
    """Whether all settings of one fold use one fit."""

    def seconds(self, train: QuestionSet, knobs: Mapping[str, Any]) -> float:
        """Return the seconds of one fit on these questions with these knobs."""
        total = 0.0
        for name, tuned, line in self.parts:
            own = knobs.get(name, {}) if len(self.parts) > 1 else knobs
            total += line.at(_steps(tuned, train, own) if tuned else len(train))
        return total


def fitting(model: Any, tokenizer: Any, method: Any, knobs: Mapping[str, Any], train: QuestionSet) -> Fitting:
    """Return what fitting takes: tuning by optimiser steps, everything else by questions."""
    methods = method.methods if isinstance(method, Stack) else (method,)
    parts = []
    for part in methods:
        own, tuned = (dict(knobs.get(name_of(part), {})) if len(methods) > 1 else dict(knobs)), tuning_inside(part)
        line = _fit_line(model, tokenizer, part, own, train, tuned=tuned is not None)
        parts.append((name_of(part), tuned, line))
    return Fitting(tuple(parts), hasattr(method, "fitter"))


def _fit_line(
    model: Any, tokenizer: Any, method: Any, knobs: dict[str, Any], train: QuestionSet, *, tuned: bool
) -> Line:
    if tuned:
        few = train[: FITTED_ON[1]]
        with warnings.catch_warnings():
            # the steps are few on purpose: the advice to take more would be about the comparison's own runs
            warnings.filterwarnings("ignore", message=".*have had no gradient in")
            return timed_line(lambda n: method.fit(model, tokenizer, few, knobs={**knobs, "max_steps": n}), STEPS)
    sizes = _within(FITTED_ON, len(train))
    return timed_line(lambda n: method.fit(model, tokenizer, train[:n], knobs=knobs), sizes)


def tuning_inside(method: Any) -> TuningMethod | None:
    """Return the tuning method itself, or the one that a method widens or runs on a quantised copy, or None."""
    while isinstance(method, Widened | OnQuantized):
        method = method.method
    return method if isinstance(method, TuningMethod) else None


def _steps(method: TuningMethod, train: QuestionSet, knobs: Mapping[str, Any]) -> int:
    recipe = method.with_knobs({k: v for k, v in knobs.items() if k != "strength"}).recipe
    return math.ceil(n_steps(sum(len(q.correct) for q in train), recipe))


def _within(sizes: tuple[int, int], n: int) -> tuple[int, int]:
    # probes are ranked on other questions than they are fitted on: two are the least
    return min(sizes[0], max(2, n // 2)), min(sizes[1], n)


def _spread(texts: Sequence[str], n: int) -> list[str]:
    """Return n texts from all over the list: neighbours may be of one length."""
    return [texts[i * len(texts) // n] for i in range(n)]
