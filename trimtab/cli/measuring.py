"""The meters that options ask for: those that speak of the data, and the user's own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trimtab.protocols import Meter

OwnMeters = Annotated[
    list[str],
    typer.Option("--meter", metavar="FILE.py:NAME", help="A meter of your own, measured too; may be repeated."),
]


def own_meters(specs: Sequence[str]) -> "tuple[Meter, ...]":
    """Return the meters that FILE.py:NAME name: instances, or classes that need nothing.

    Raises:
        BadValue: no such file or name, or what stands there is no meter.
    """
    from trimtab.cli.user_code import open_meter
    from trimtab.protocols import as_meter

    return tuple(as_meter(open_meter(spec)) for spec in specs)


FEW_TEXTS = 32
"""Neutral texts that drift is measured on beside contrast pairs, of which there are few: as exact as those figures."""


def meters_for(
    items: Any,
    judge: Any = None,
    *,
    convention: Any = None,
    batch_size: int | None = None,
    choices_only: bool = False,
    n_texts: int | None = None,
) -> "tuple[Meter, ...]":
    """Return what `trimtab evaluate` measures of questions, contrast pairs or facts; no drift on 0 neutral texts."""
    from trimtab.datasets.prose import neutral_texts
    from trimtab.evaluate.contrast import ScoredTexts, contrast_meters
    from trimtab.evaluate.drift import NeutralTexts, drift_meters
    from trimtab.evaluate.factual import fact_meters
    from trimtab.evaluate.generation import judged_meters
    from trimtab.evaluate.multiple_choice import choice_meters

    n_texts = FEW_TEXTS if n_texts is None and items.measured_by == "pairs" else n_texts
    texts = None if n_texts is None else neutral_texts()[:n_texts]
    few = NeutralTexts(texts, batch_size=batch_size or NeutralTexts.batch_size)
    drift = () if n_texts == 0 else drift_meters(few)
    if items.measured_by == "facts":
        return (*fact_meters(), *drift)
    if items.measured_by == "pairs":
        scores = () if judge is None else (ScoredTexts(judge, batch_size=batch_size),)
        return (*scores, *contrast_meters(batch_size), *drift)
    form = "plain" if convention == "lm-eval" else convention
    said = () if choices_only else judged_meters(judge=judge, convention=form, batch_size=batch_size)
    return (*said, *choice_meters(convention, batch_size), *drift)
