"""The meters that speak of a data set if nobody says which."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from trimtab.datasets.choices import capability
from trimtab.evaluate.contrast import ScoredTexts, contrast_meters
from trimtab.evaluate.drift import NeutralTexts, divided, drift_meters
from trimtab.evaluate.elsewhere import capability_meters
from trimtab.evaluate.factual import fact_meters
from trimtab.evaluate.generation import judged_meters
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.multiple_choice import choice_meters
from trimtab.evaluate.reference_texts import reference_meters
from trimtab.evaluate.wording_meters import wording_meters
from trimtab.protocols import Meter


def answer_meters(
    *,
    judge: Any = exact_judge,
    convention: Any = None,
    texts: Sequence[str] | None = None,
    max_new_tokens: int = 50,
    divide_texts: bool = False,
    broken: bool = False,
) -> tuple[Meter, ...]:
    """Return True*Info, True, Info and unmatched of generated answers, MC1, MC2, CE and KL.

    Args:
        judge: of the answers: a `Judge`, or a function `(question, answer) -> Verdict`.
        convention: how is asked, as of `multiple_choice`; as the table asks if not given. In `"lm-eval"` and `"iti"`
            answers are asked for in the plain form.
        texts: neutral texts to measure drift on; trimtab's own if not given.
        max_new_tokens: of an answer.
        divide_texts: whether the first fifth of the texts is for choosing settings, and the rest to measure on.
        broken: whether to say how the same answers read too (debris, loops, length), and what is left of a hundred
            easy choices (`trimtab.datasets.capability`).
    """
    answering = {"judge": judge, "convention": answer_form(convention), "max_new_tokens": max_new_tokens}
    return (
        *judged_meters(**answering),
        *choice_meters(convention)[:2],
        *(wording_meters(**answering) if broken else ()),
        *(capability_meters(capability()) if broken else ()),
        *_drift(texts, divide_texts),
    )


def answer_form(convention: str | None) -> str | None:
    """Return how answers are asked for beside a convention of multiple choice: those that are of it alone, plainly."""
    return "plain" if convention in ("lm-eval", "iti") else convention


def pair_meters(
    *,
    judge: Any = None,
    texts: Sequence[str] | None = None,
    max_new_tokens: int = 50,
    divide_texts: bool = False,
    broken: bool = False,
) -> tuple[Meter, ...]:
    """Return the probability of the positive sides and how often they are preferred, CE and KL.

    Args:
        judge: a function of pair and generated text that gives a score, if texts are to be generated and scored.
        texts, divide_texts: as for `answer_meters`.
        max_new_tokens: of a generated text.
        broken: whether to measure a hundred easy choices too.
    """
    scores = () if judge is None else (ScoredTexts(judge, max_new_tokens),)
    easy = capability_meters(capability()) if broken else ()
    return (*scores, *contrast_meters(), *easy, *_drift(texts, divide_texts))


def facts_meters(
    *, texts: Sequence[str] | None = None, divide_texts: bool = False, broken: bool = False
) -> tuple[Meter, ...]:
    """Return what is said of facts, their paraphrases and neighbours, the likelihood measures, CE and KL.

    Args:
        texts, divide_texts: as for `answer_meters`.
        broken: whether to measure a hundred easy choices too.
    """
    return (*fact_meters(), *(capability_meters(capability()) if broken else ()), *_drift(texts, divide_texts))


def _drift(texts: Sequence[str] | None, divide: bool) -> tuple[Meter, ...]:
    own = None if texts is None else tuple(texts)
    return drift_meters(divided(own) if divide else NeutralTexts(own))


DEFAULTS: dict[str, Callable[..., tuple[Meter, ...]]] = {
    "answers": answer_meters,
    "facts": facts_meters,
    "pairs": pair_meters,
    "references": reference_meters,
}
"""What a data set says of itself (`measured_by`) -> its meters."""


def options_of(items: Any) -> Sequence[str]:
    """Return the names of the options that the meters of such items take."""
    return list(inspect.signature(DEFAULTS[items.measured_by]).parameters)


def default_meters(items: Any, **options: Any) -> tuple[Meter, ...]:
    """Return the meters that speak of such items; `options` are those of the function in `DEFAULTS`."""
    return DEFAULTS[items.measured_by](**options)
