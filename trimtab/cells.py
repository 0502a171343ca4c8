"""Cells: every figure that is printed, by its unit. The only formatter; Markdown, HTML and the terminal use it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.intervals import Estimate

MISSING = "-"


def number(value: float | int, unit: str, *, signed: bool = False, brief: bool = False) -> str:
    """Return a figure for reading: shares in percent (whole ones if brief), nats with three digits, bytes in kB."""
    sign = "+" if signed else ""
    if unit == "share":
        return f"{100 * value:{sign}.{0 if brief else 1}f}"
    if unit == "nats":
        return f"{value:{sign}.3f}"
    if unit == "bytes":
        return n_bytes(value)
    if unit == "numbers":
        return f"{value:{sign},.0f}"
    # 1,234 rather than 1.23e+03
    return f"{value:{sign}.3g}" if abs(value) < 100 else f"{value:{sign},.0f}"


def n_bytes(value: float | int) -> str:
    """Return a number of bytes for reading."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{number(value / scale, '')} {unit}"
    return f"{value:.0f} B"


def figure(value: Estimate | float | None, unit: str, *, signed: bool = False) -> str:
    """Return a figure with its interval if it has one; a dash where there is none, or a share of nothing."""
    if value is None or math.isnan(value):
        return MISSING
    interval = getattr(value, "low", None), getattr(value, "high", None)
    shown = number(value, unit, signed=signed)
    if None in interval:
        return shown
    low, high = (number(limit, unit, signed=signed) for limit in interval if limit is not None)
    return f"{shown} [{low}, {high}]"


def p_text(p: float, *, at_floor: bool = False) -> str:
    """Return a p-value for reading; one that is as small as its test can say is an upper limit."""
    return f"{'<= ' if at_floor else ''}{p:.4f}"


def unit_words(unit: str) -> str:
    """Return a unit as it stands after a heading."""
    return {"share": "%", "nats": "nats per token"}.get(unit, unit)


def settings_text(knobs: Mapping[str, Any]) -> str:
    """Return a setting for reading."""
    parts = (
        f"{k}: {settings_text(v)}" if isinstance(v, Mapping) else f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in knobs.items()
    )
    return ", ".join(parts) or "no knobs"


def table_lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table's lines."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return lines + ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
