"""What a judge is and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from trimtab.datasets.questions import Question


class Verdict(NamedTuple):
    """What a judge says of one answer; probabilities are as good as truth values."""

    true: float
    informative: float
    matched: bool = True
    """False if an exact judge does not know the answer (it then counts as neither true nor informative)."""


Judge: TypeAlias = Callable[[Question, str], Verdict]
"""Judges an answer to a question. Any callable of this kind will do; a `record` attribute goes into results."""


def judge_record(judge: Callable[..., Any]) -> dict[str, Any]:
    """Return the judge's name and what it says of itself in its `record` attribute."""
    return {"name": getattr(judge, "__name__", type(judge).__name__), **getattr(judge, "record", {})}


def judge_line(record: dict[str, Any]) -> str:
    """Return what must stand beside a judge's figures: its name, and how far an indicative one agrees with people."""
    if not record.get("indicative"):
        return f"judge: {record['name']}"
    parts = [
        f"{100 * agreed['mean']:.1f} % [{100 * agreed['low']:.1f}, {100 * agreed['high']:.1f}] for {kind} "
        f"(always the commoner answer: {100 * record['majority'][kind]:.1f} %)"
        for kind, agreed in record["agreement"].items()
    ]
    return f"judge: {record['name']}, INDICATIVE: on held-out questions it agrees with people on {', '.join(parts)}"
