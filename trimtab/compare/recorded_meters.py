"""Meters on disk: what a run was measured by, and how its figures are summed up again from records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from trimtab.errors import BadValue, Incompatible
from trimtab.evaluate.table import instruments
from trimtab.protocols import Measured, Meter

MEAN = "mean"
SUMMARIES = {
    "TrueInfo": "trimtab.evaluate.generation",
    "Unmatched": "trimtab.evaluate.generation",
    "BLEU": "trimtab.evaluate.reference_texts",
    "NIST": "trimtab.evaluate.reference_texts",
}
"""Meters of trimtab's own that are not the mean of a column -> where their summary stands. A folder names no code."""


@dataclass(frozen=True)
class RecordedMeter(Meter):
    """A meter as a record describes it: it sums up rows, and measures no more."""

    name: str
    heading: str
    unit: str
    better: Literal["up", "down", "neither"]
    columns: Sequence[str]
    shown: Sequence[str]
    tested: bool
    sums_up: str = MEAN
    """`"mean"`, or the name of the meter of trimtab's own whose summary it has."""

    def measure(self, *_: Any, **__: Any) -> list[Measured | None]:
        """Raise `BadValue`: a record cannot measure."""
        raise BadValue(f"meter {self.name} is a record of one; give the meter itself to measure with")

    def summary(self, means: Float[np.ndarray, "... column"]) -> Float[np.ndarray, "..."]:
        """Return the figure from the means of its columns."""
        if self.sums_up == MEAN:
            return means[..., 0]
        return getattr(import_module(SUMMARIES[self.sums_up]), self.sums_up).summary(self, means)


def recorded(meters: Sequence[Meter]) -> list[dict[str, Any]]:
    """Return meters as plain values, each with its instrument's name and description."""
    found = {}
    for name, instrument, sums in instruments(meters):
        for meter in sums:
            kind = type(meter)
            own = SUMMARIES.get(kind.__name__) == kind.__module__
            found[meter.name] = {
                "name": meter.name,
                "heading": meter.heading,
                "unit": meter.unit,
                "better": meter.better,
                "columns": list(meter.columns),
                "shown": list(meter.shown),
                "tested": meter.tested and meter.better != "neither",
                "sums_up": MEAN if meter.takes_mean else kind.__name__ if own else "its own code",
                "instrument": name,
                "measured_by": instrument.describe(),
            }
    return [found[meter.name] for meter in meters]


def meters_of(records: Sequence[Mapping[str, Any]], given: Sequence[Meter] = ()) -> tuple[Meter, ...]:
    """Return the meters that records describe; one of another class's own summary must be given.

    Raises:
        Incompatible: it is not.
    """
    own, found = {meter.name: meter for meter in given}, []
    for record in records:
        known = record["sums_up"] == MEAN or record["sums_up"] in SUMMARIES
        if record["name"] not in own and not known:
            raise Incompatible(
                f"meter {record['name']} sums up its rows by code of its own; give it: Comparison.load(folder, "
                "meters=[...]), or --meter FILE.py:NAME"
            )
        plain = {field: record[field] for field in RecordedMeter.__dataclass_fields__}
        found.append(own.get(record["name"]) or RecordedMeter(**plain))
    return tuple(found)
