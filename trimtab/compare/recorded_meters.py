"""Meters on disk: what a run was measured by, and how its figures are summed up again from records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import Incompatible
from trimtab.evaluate.figure import SUMMARIES, Figure
from trimtab.evaluate.table import instruments
from trimtab.protocols import Meter

FIELDS = ("name", "heading", "columns", "unit", "better", "tested", "sums_up", "collateral")


def recorded(meters: Sequence[Meter]) -> list[dict[str, Any]]:
    """Return meters as plain values, each with its instrument's name and description."""
    found = {}
    for name, instrument, sums in instruments(meters):
        for meter in sums:
            found[meter.name] = {
                "name": meter.name,
                "heading": meter.heading,
                "unit": meter.unit,
                "better": meter.better,
                "columns": list(meter.columns),
                "tested": meter.tested and meter.better != "neither",
                "sums_up": meter.sums_up,
                "collateral": meter.collateral,
                "shown": list(instrument.shown),
                "instrument": name,
                "measured_by": instrument.describe(),
            }
    return [found[meter.name] for meter in meters]


def meters_of(records: Sequence[Mapping[str, Any]], given: Sequence[Meter] = ()) -> tuple[Meter, ...]:
    """Return the meters that records describe; one of another class's own summary must be given.

    Raises:
        Incompatible: it is not.
    """
    own = {meter.name: meter for meter in given}
    for record in records:
        if record["name"] not in own and record["sums_up"] not in SUMMARIES:
            raise Incompatible(
                f"meter {record['name']} sums up its rows by code of its own; give it: Comparison.load(folder, "
                "meters=[...]), or --meter FILE.py:NAME"
            )
    return tuple(
        own.get(record["name"]) or Figure(None, **{field: record[field] for field in FIELDS if field in record})
        for record in records
    )
