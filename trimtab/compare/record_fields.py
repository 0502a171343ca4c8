"""What the records of a run folder must hold."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict

from trimtab.fields import fault

TEST = "test"


class _Record(TypedDict):
    method: str
    fold: int
    seed: int
    size: int | None
    step: int | str
    status: str


class _Failed(_Record):
    why: str


class _Trial(_Record):
    knobs: dict[str, Any]
    made: dict[str, Any]
    validation: dict[str, Any]


class _Draw(_Record):
    knobs: dict[str, Any]
    made: dict[str, Any]
    measured: _Found


class _Measurement(_Record):
    best: int
    within: int | None
    n: dict[str, int]
    failed_trials: list[str]
    measured: NotRequired[dict[str, _Found]]


class _Meter(TypedDict):
    name: str
    heading: str
    unit: str
    better: str
    columns: list[str]
    shown: list[str]
    tested: bool
    sums_up: str
    instrument: str
    measured_by: dict[str, Any]


class _Found(TypedDict):
    rows: dict[str, Any]
    values: dict[str, Any]
    edit: dict[str, Any]


class _Design(TypedDict):
    folds: int
    seeds: list[int]
    trials: int
    train_sizes: list[int | None]
    choose_by: str


class _Specification(TypedDict):
    design: _Design
    meters: list[_Meter]
    model: dict[str, Any]
    questions: dict[str, Any]
    test: dict[str, Any] | None
    methods: dict[str, str]
    planned: NotRequired[dict[str, list[str]]]
    versions: dict[str, str]
    hardware: str


def record_fault(record: Any) -> str | None:
    """Return what is missing or of another type in a record of a trial, a draw or a last measurement, or None."""
    if not isinstance(record, dict) or record.get("status") == "failed":
        return fault(record, _Failed)
    if record.get("step") != TEST:
        return fault(record, _Draw if "measured" in record else _Trial)
    wrong = fault(record, _Measurement)
    if wrong or "follows" in record:
        return wrong
    numbers = {str(record[chosen]) for chosen in ("best", "within") if record[chosen] is not None}
    missing = numbers - set(record.get("measured", ()))
    return f"field 'measured.{min(missing)}' is missing" if missing else None


def specification_fault(record: Any) -> str | None:
    """Return what is missing or of another type in the record that a run folder opens with, or None."""
    return fault(record, _Specification)
