"""What a judge is and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from trimtab.datasets import Question


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
