"""What a judge said, checked, and what must stand beside its figures."""

from __future__ import annotations

from typing import Any

from trimtab.errors import BadValue
from trimtab.protocols import Judge, Verdict, as_judge


def judge_record(judge: Any) -> dict[str, Any]:
    """Return a judge's (or a scoring function's) name and what it says of itself."""
    judge = as_judge(judge)
    return {"name": judge.name, **judge.record}


def checked_verdict(verdict: Any, judge: Judge) -> Verdict:
    """Return what a judge said as a `Verdict`; raises `BadValue` naming the judge if it is none."""
    name = judge.name
    try:
        if isinstance(verdict, str):
            raise TypeError("a text is not a pair of numbers")
        true, informative = float(verdict[0]), float(verdict[1])
        matched = bool(verdict[2]) if len(verdict) > 2 else True
    except (TypeError, ValueError, LookupError, RuntimeError) as cause:
        raise BadValue(f"judge {name} returned {verdict!r:.80}; expected Verdict(true, informative)") from cause
    if not (0 <= true <= 1 and 0 <= informative <= 1):
        raise BadValue(f"judge {name} returned {verdict!r:.80}; true and informative must lie between 0 and 1")
    return Verdict(true, informative, matched)


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
