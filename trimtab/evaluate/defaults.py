"""The meters that speak of a data set if nobody says which."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from trimtab.datasets.behaviours import Behaviour
from trimtab.datasets.choices import capability
from trimtab.evaluate.contrast import ScoredTexts, contrast_meters
from trimtab.evaluate.counted import counted_meters
from trimtab.evaluate.drift import NeutralTexts, divided, drift_meters
from trimtab.evaluate.elsewhere import capability_meters
from trimtab.evaluate.factual import fact_meters
from trimtab.evaluate.generation import JudgedAnswers, judged_meters, strict_meters
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.multiple_choice import choice_meters
from trimtab.evaluate.reference_texts import reference_meters
from trimtab.evaluate.two_way import TwoWayChoices
from trimtab.evaluate.wording import wording_meters
from trimtab.protocols import Meter


def answer_meters(
    *,
    judge: Any = exact_judge,
    convention: Any = None,
    texts: Sequence[str] | None = None,
    max_new_tokens: int = 50,
    divide_texts: bool = False,
    broken: bool = False,
    two_way: bool = False,
) -> tuple[Meter, ...]:
    """Return True*Info, True, Info and unmatched of generated answers, MC1, MC2, CE and KL.

    Args:
        judge: of the answers: a `Judge`, or a function `(question, answer) -> Verdict`; None where none is to be
            asked: then MC1 stands first.
        convention: how is asked, as of `multiple_choice`; as the table asks if not given. In `"lm-eval"` and `"iti"`
            answers are asked for in the plain form.
        texts: neutral texts to measure drift on; trimtab's own if not given.
        max_new_tokens: of an answer.
        divide_texts: whether the first fifth of the texts is for choosing settings, and the rest to measure on.
        broken: whether to say how the same answers read too (debris, loops, length), and what is left of a hundred
            easy choices (`trimtab.datasets.capability`).
        two_way: whether to ask for a letter too, of the best answer and the first false one (`TwoWayChoices`).
    """
    choices = (*choice_meters(convention)[:2], *((TwoWayChoices(),) if two_way else ()))
    if judge is None:
        read = counted_meters(None, max_new_tokens=max_new_tokens) if broken else ()
        return (*choices, *read, *_damage(texts, divide_texts, broken))
    answering = {"judge": judge, "convention": answer_form(convention), "max_new_tokens": max_new_tokens}
    source = JudgedAnswers(**answering)
    return (
        *judged_meters(**answering),
        *choices,
        *((*strict_meters(source), *wording_meters(source)) if broken else ()),
        *_damage(texts, divide_texts, broken),
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
        texts: as for `answer_meters`.
        divide_texts: as for `answer_meters`.
        max_new_tokens: of a generated text.
        broken: whether to measure a hundred easy choices too.
    """
    scores = () if judge is None else (ScoredTexts(judge, max_new_tokens),)
    return (*scores, *contrast_meters(), *_damage(texts, divide_texts, broken))


def prompt_meters(
    *,
    behaviour: Behaviour | None = None,
    texts: Sequence[str] | None = None,
    max_new_tokens: int = 50,
    divide_texts: bool = False,
    broken: bool = False,
) -> tuple[Meter, ...]:
    """Return what is counted in answers to prompts, how these answers read, CE and KL.

    Args:
        behaviour: whose property is counted.
        texts: as for `pair_meters`.
        divide_texts: as for `pair_meters`.
        broken: as for `pair_meters`.
        max_new_tokens: of an answer.
    """
    return (*counted_meters(behaviour, max_new_tokens=max_new_tokens), *_damage(texts, divide_texts, broken))


def facts_meters(
    *, texts: Sequence[str] | None = None, divide_texts: bool = False, broken: bool = False
) -> tuple[Meter, ...]:
    """Return what is said of facts, their paraphrases and neighbours, the likelihood measures, CE and KL.

    Args:
        texts: as for `answer_meters`.
        divide_texts: as for `answer_meters`.
        broken: whether to say how texts go on that begin as the facts do (debris, loops, length), and to measure a
            hundred easy choices too.
    """
    fluency = counted_meters(None) if broken else ()
    return (*fact_meters(), *fluency, *_damage(texts, divide_texts, broken))


def _damage(texts: Sequence[str] | None, divide: bool, broken: bool) -> tuple[Meter, ...]:
    own = None if texts is None else tuple(texts)
    easy = capability_meters(capability()) if broken else ()
    return (*easy, *drift_meters(divided(own) if divide else NeutralTexts(own)))


DEFAULTS: dict[str, Callable[..., tuple[Meter, ...]]] = {
    "answers": answer_meters,
    "facts": facts_meters,
    "pairs": pair_meters,
    "prompts": prompt_meters,
    "references": reference_meters,
}
"""What a data set says of itself (`measured_by`) -> its meters."""


def options_of(items: Any) -> Sequence[str]:
    """Return the names of the options that the meters of such items take."""
    return list(inspect.signature(DEFAULTS[items.measured_by]).parameters)


def default_meters(items: Any, **options: Any) -> tuple[Meter, ...]:
    """Return the meters that speak of such items; `options` are those of the function in `DEFAULTS`."""
    return DEFAULTS[items.measured_by](**options)
