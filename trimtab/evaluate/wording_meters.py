"""How generated answers read, as meters over the very answers that are judged or counted."""

from __future__ import annotations

from trimtab.evaluate.figure import Figure
from trimtab.protocols import Meter


def wording_meters(source: Meter) -> tuple[Figure, ...]:
    """Return how the answers of a meter that generates them read: whether they are answers at all, loop, end by
    themselves.
    """
    return (
        Figure(source, "debris", "debris", ("debris",), better="down", collateral=True),
        Figure(source, "loops", "loops", ("loops",), better="down", collateral=True),
        Figure(source, "distinct", "distinct pairs", ("distinct",), collateral=True),
        Figure(source, "ended", "ends itself", ("ended",), collateral=True),
        Figure(source, "words", "words", ("words",), unit="words", better="neither", collateral=True),
    )


def strict_meters(source: Meter) -> tuple[Figure, ...]:
    """Return the share of a judge's answers that are both, and where debris counts as neither, that and True*Info.

    Judges call debris true at times.
    """
    return (
        Figure(source, "both", "both", ("both",), tested=False),
        Figure(source, "strict_true_info", "True*Info, no debris", ("strict_true", "strict_info"), sums_up="product"),
        Figure(source, "strict_both", "both, no debris", ("strict_both",), tested=False),
    )
