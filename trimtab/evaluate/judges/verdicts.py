"""What a judge said, checked, and what must stand beside its figures."""

from __future__ import annotations

from collections.abc import Mapping
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


def judge_line(record: Mapping[str, Any]) -> str:
    """Return what must stand beside a judge's figures: its name, how far it agrees with people, what nonsense it takes.

    Of a judge that was not checked it is the name alone.
    """
    head, said = f"judge: {record['name']}{', INDICATIVE' if record.get('indicative') else ''}", []
    agreed = []
    for kind, of in record.get("people", {}).items():
        rates = [f"{_share(of[key])} of {word}" for key, word in (("on_yes", "yes"), ("on_no", "no")) if of.get(key)]
        common = f"always the commoner answer: {100 * record['majority'][kind]:.1f} %; " if "majority" in record else ""
        kappa = of["kappa"]
        agreed.append(
            f"{_share(of['agreement'])} for {kind} ({common}kappa {kappa['mean']:.2f} [{kappa['low']:.2f}, "
            f"{kappa['high']:.2f}]; {', '.join(rates)})"
        )
    if agreed:
        said.append(f"on held-out questions it agrees with people on {', '.join(agreed)}")
    if accepted := record.get("false_accepts", {}):
        taken = (f"{kind} {100 * of['both']['mean']:.0f} %" for kind, of in accepted.items())
        said.append(f"it calls nonsense true and informative: {', '.join(taken)}")
    return f"{head}: {'; '.join(said)}" if said else head


def _share(of: Mapping[str, Any]) -> str:
    return f"{100 * of['mean']:.1f} % [{100 * of['low']:.1f}, {100 * of['high']:.1f}]"
