"""How generated answers read, as meters over the very answers that are judged."""

from __future__ import annotations

from typing import Any

from trimtab.evaluate.figure import Figure
from trimtab.evaluate.generation import JudgedAnswers


def wording_meters(**options: Any) -> tuple[Figure, ...]:
    """Return how the same answers read: whether they are answers at all, loop, end by themselves; `options` are
    the fields of `JudgedAnswers`.

    Beside them True*Info and the share that is both, where debris counts as neither: judges call debris true at times.
    """
    source = JudgedAnswers(**options)
    return (
        Figure(source, "both", "both", ("both",), tested=False),
        Figure(source, "strict_true_info", "True*Info, no debris", ("strict_true", "strict_info"), sums_up="product"),
        Figure(source, "strict_both", "both, no debris", ("strict_both",), tested=False),
        Figure(source, "debris", "debris", ("debris",), better="down", collateral=True),
        Figure(source, "loops", "loops", ("loops",), better="down", collateral=True),
        Figure(source, "distinct", "distinct pairs", ("distinct",), collateral=True),
        Figure(source, "ended", "ends itself", ("ended",), collateral=True),
        Figure(source, "words", "words", ("words",), unit="words", better="neither", collateral=True),
    )
