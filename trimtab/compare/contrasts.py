"""Tests between any two rows of a comparison, and which rows can be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from trimtab.compare.rows import ResultRow, values_of
from trimtab.compare.run_records import RunRecords
from trimtab.compare.statistics import RESAMPLES, Means, PairedDifference, holm, moved, paired_each, question_means
from trimtab.errors import BadValue
from trimtab.protocols import Meter

LEVEL = 0.05
"""Chance of any false difference among those that a page speaks of."""


@dataclass(frozen=True)
class Contrast:
    """The difference of two rows in one figure; `p_holm` is corrected over all pairs of rows that were tested."""

    one: str
    other: str
    tested: PairedDifference

    @property
    def apart(self) -> bool:
        """Whether the test tells the two apart, whichever pairs one looks at."""
        return self.tested.p_holm <= LEVEL

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"one": self.one, "other": self.other, **self.tested.as_dict()}


def means_of(run: RunRecords, row: ResultRow, meter: Meter) -> Means:
    """Return a row's measurements of a meter by question, averaged over folds and seeds; none of a control's draws."""
    used = [t for t in run.of(row.method, row.size) if t["status"] == "done" and t[row.variant] is not None]
    if not used or any("follows" in t for t in used):
        return {}
    return question_means(values_of(run, used, row.variant, meter))


def contrasts(run: RunRecords, rows: Sequence[ResultRow], meter: Meter) -> list[Contrast]:
    """Return the tested difference of every pair of rows, in the order of the rows, corrected by Holm over all of them.

    Corrected over all pairs, since whoever looks for the best row has looked at all of them.
    """
    return every_two({row.name: found for row in rows if (found := means_of(run, row, meter))}, meter)


def every_two(means: Mapping[str, Means], meter: Meter) -> list[Contrast]:
    """Return the tested difference of every two rows that share questions, corrected by Holm over all pairs.

    Of many pairs each test swaps more often: its smallest p, corrected, must lie below `LEVEL`, or none could be apart.
    """
    pairs = [(one, other) for one, other in combinations(means, 2) if means[one].keys() & means[other].keys()]
    swaps = max(RESAMPLES, round(2.5 * len(pairs) / LEVEL))
    found = paired_each([(means[one], means[other], meter.summary) for one, other in pairs], resamples=swaps)
    adjusted = holm([p for _, p in found])
    made = []
    for (one, other), (difference, p), p_holm in zip(pairs, found, adjusted, strict=True):
        ways = moved(means[one], means[other], meter.summary, sign=meter.sign)
        made.append(Contrast(one, other, PairedDifference(difference, p, p_holm, difference.n, ways, swaps)))
    return made


def contrast_of(run: RunRecords, rows: Sequence[ResultRow], one: str, other: str, meter: Meter) -> Contrast:
    """Return the tested difference of two rows by name, the only pair that is looked at.

    Raises:
        BadValue: a row without questions of its own; two that share none.
    """
    found = {row.name: means_of(run, row, meter) for row in rows}
    for name in (one, other):
        if not found.get(name):
            known = ", ".join(name for name, means in found.items() if means)
            raise BadValue(f"no row {name!r} with questions of its own to test; the comparison has {known}")
    made = every_two({name: found[name] for name in (one, other)}, meter)
    if not made:
        raise BadValue(f"{one!r} and {other!r} have no question in common to be tested on")
    return made[0]
