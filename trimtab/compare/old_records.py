"""Run folders of the version before meters were declared, read as the present one writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.compare.recorded_meters import recorded
from trimtab.evaluate.defaults import answer_meters

JUDGED = ("answer", "true", "informative", "matched")
CHOICES = ("mc1", "mc2")
DRIFT = ("ce", "kl")


def is_old(specification: Mapping[str, Any]) -> bool:
    """Return whether a run was begun by the version before."""
    return isinstance(specification.get("meters"), dict)


def converted_specification(specification: Mapping[str, Any]) -> dict[str, Any]:
    """Return an old run's specification with its meters as they are declared now."""
    old = specification["meters"]
    known = {*JUDGED, *CHOICES, *DRIFT}
    now = recorded(answer_meters(convention=old["convention"], max_new_tokens=old["max_new_tokens"]))
    entries = [entry for entry in now if known >= set(entry["columns"])]
    said = {"judge": old["judge"], "judge_record": {"name": old["judge"], **old.get("judge_record", {})}}
    for entry in entries:
        measured_by = {**entry["measured_by"]}
        if entry["instrument"] == "generated":
            measured_by |= said
        if entry["instrument"] == "drift":
            measured_by["texts"] = old["texts"]
        entry["measured_by"] = measured_by
    return {
        **specification,
        "meters": entries,
        "design": {**specification["design"], "choose_by": old["metric"]},
    }


def converted(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return an old record of a trial, a draw or a last measurement in the present form."""
    measured = record.get("measured")
    if not isinstance(measured, dict):
        return dict(record)
    several = {key: _measurement(one) if _is_old_measurement(one) else one for key, one in measured.items()}
    return {**record, "measured": _measurement(measured) if _is_old_measurement(measured) else several}


def _is_old_measurement(value: Any) -> bool:
    return isinstance(value, dict) and {"questions", "drift", "ms_per_token"} <= set(value)


def _measurement(old: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {
        name: {q["question"]: {column: q[column] for column in columns if column in q} for q in old["questions"]}
        for name, columns in (("generated", JUDGED), ("multiple_choice", CHOICES))
    }
    drift = old["drift"]
    rows["drift"] = drift and {str(i): dict(zip(DRIFT, pair, strict=True)) for i, pair in enumerate(drift)}
    rest = {key: value for key, value in old.items() if key not in ("questions", "drift", "ms_per_token")}
    return {"rows": rows, "values": {"ms_per_token": old["ms_per_token"]}, "records": {}, **rest}
