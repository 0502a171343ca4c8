"""The meters that speak of a data set if nobody says which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.evaluate.contrast import ScoredTexts, contrast_meters
from trimtab.evaluate.drift import NeutralTexts, divided, drift_meters
from trimtab.evaluate.factual import fact_meters
from trimtab.evaluate.generation import judged_meters
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.multiple_choice import choice_meters
from trimtab.evaluate.reference_texts import reference_meters
from trimtab.protocols import Meter


def answer_meters(
    *,
    judge: Any = exact_judge,
    convention: Any = None,
    texts: Sequence[str] | None = None,
    max_new_tokens: int = 50,
    divide_texts: bool = False,
) -> tuple[Meter, ...]:
    """Return True*Info, True, Info and unmatched of generated answers, MC1, MC2, CE and KL.

    Args:
        judge: of the answers: a `Judge`, or a function `(question, answer) -> Verdict`.
        convention: how is asked, as of `multiple_choice`; as the table asks if not given. In `"lm-eval"` and `"iti"`
            answers are asked for in the plain form.
        texts: neutral texts to measure drift on; trimtab's own if not given.
        max_new_tokens: of an answer.
        divide_texts: whether the first fifth of the texts is for choosing settings, and the rest to measure on.
    """
    return (
        *judged_meters(judge=judge, convention=answer_form(convention), max_new_tokens=max_new_tokens),
        *choice_meters(convention)[:2],
        *_drift(texts, divide_texts),
    )


def answer_form(convention: str | None) -> str | None:
    """Return how answers are asked for beside a convention of multiple choice: those that are of it alone, plainly."""
    return "plain" if convention in ("lm-eval", "iti") else convention


def pair_meters(
    *, judge: Any = None, texts: Sequence[str] | None = None, max_new_tokens: int = 50, divide_texts: bool = False
) -> tuple[Meter, ...]:
    """Return the probability of the positive sides and how often they are preferred, CE and KL.

    Args:
        judge: a function of pair and generated text that gives a score, if texts are to be generated and scored.
        texts, divide_texts: as for `answer_meters`.
        max_new_tokens: of a generated text.
    """
    scores = () if judge is None else (ScoredTexts(judge, max_new_tokens),)
    return (*scores, *contrast_meters(), *_drift(texts, divide_texts))


def facts_meters(*, texts: Sequence[str] | None = None, divide_texts: bool = False) -> tuple[Meter, ...]:
    """Return what is said of facts, their paraphrases and neighbours, the likelihood measures, CE and KL.

    Args:
        texts, divide_texts: as for `answer_meters`.
    """
    return (*fact_meters(), *_drift(texts, divide_texts))


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


def default_meters(items: Any, **options: Any) -> tuple[Meter, ...]:
    """Return the meters that speak of such items; `options` are those of the function in `DEFAULTS`."""
    return DEFAULTS[items.measured_by](**options)
