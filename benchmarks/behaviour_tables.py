"""The tables of the behaviours' benchmark, and what of its units they are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.cells import table_lines
from trimtab.datasets.behaviours import BEHAVIOURS
from trimtab.steer.outcome import REPEATS

NAMES = (*BEHAVIOURS, "truthful", "reserved")
SAME = 1.05
"""How much more drift than the fit's still counts as the same."""


def best_of(record: dict[str, Any]) -> float:
    """Return what is counted at the sweep's best of the fit's drift, chosen and counted on different prompts."""
    coherent = record["before"]["repetition"] + REPEATS
    rows = [r for r in record["sweep"] if r["kl"] <= SAME * record["kl"] and r["repetition"] <= coherent]
    if not rows:
        return float(np.mean(record["before"]["counts"]))
    counts = np.array([row["counts"] for row in rows])
    halves = [counts[:, 0::2].mean(1), counts[:, 1::2].mean(1)]
    return float(np.mean([halves[1][halves[0].argmax()], halves[0][halves[1].argmax()]]))


KEPT = ("sweeps", "answers", "rows")
"""What a record holds of each unit: counts, of a sweep those of at most the fit's drift; the answers, too; one row."""


def kept(unit: dict[str, Any], what: str = "sweeps") -> dict[str, Any]:
    """Return what tables are made from; a fit with nothing beside it is one row, unless its answers are wanted."""
    if what == "rows" or ("sweep" not in unit and what == "sweeps"):
        before, after = unit["before"], unit["after"]
        row = {
            "behaviour": unit["behaviour"], "draw": unit["draw"], "budget": unit.get("kl_budget"), "kl": unit["kl"],
            "before": np.mean(before["counts"]).item(), "after": np.mean(after["counts"]).item(),
            "repeated": [before["repetition"], after["repetition"]],
        }  # fmt: skip
        if "sweep" in unit:
            row |= {"best": best_of(unit), "verdict": unit["verdict"], "layer": unit["layers"][0]}
            row |= {"consistent": unit["consistent"], "dealt": unit["dealt"]} if "dealt" in unit else {}
        return short(row)
    without = ("seconds", "fit_seconds", "tried", *(["texts"] if what == "sweeps" else []))
    if "sweep" in unit:
        unit = {**unit, "sweep": [row for row in unit["sweep"] if row["kl"] <= SAME * unit["kl"]]}
    return short(unit, without)


def short(value: Any, without: Sequence[str] = ()) -> Any:
    """Return a value of JSON with its numbers to four decimals, without the values of some names."""
    if isinstance(value, dict):
        return {k: short(v, without) for k, v in value.items() if k not in without}
    if isinstance(value, list):
        return [short(inner, without) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


CONTROLS = ("random_directions", "random_places")
VERDICTS = ("works", "works weakly", "does not work")
COLUMNS = (
    ("behaviour, count", "KL", "before", "after", "sweep's best", "half of it reached", "coherent", "both",
     "word triples repeated"),
    ("behaviour", "random directions", "reach half", "behind `fit`, all five", "random layers", "reach half",
     "behind `fit`, all five"),
    ("behaviour", *(f"{said}: passes, fails" for said in VERDICTS), "right"),
)  # fmt: skip


def tables(units: list[dict[str, Any]]) -> list[str]:
    """Return tables with a line for each behaviour: what of the claim holds, its controls, and what `fit` says."""
    claims, controls, verdicts = [], [], []
    for name in [name for name in NAMES if any(u["behaviour"] == name for u in units)]:
        of = [u for u in units if u["behaviour"] == name]
        before, after = (np.array([np.mean(u[when]["counts"]) for u in of]) for when in ("before", "after"))
        best = np.array([best_of(u) for u in of])
        moved, repeated = after - before, [np.array([u[w]["repetition"] for u in of]) for w in ("before", "after")]
        least = (best - before) / 2 - 1e-9  # of a share half may be met exactly
        half, coherent = (moved > 0) & (moved >= least), repeated[1] <= repeated[0] + REPEATS
        passes = half & coherent
        count = f"{name}, {'share of answers' if of[0]['unit'] == 'share' else of[0]['unit']}"
        claims.append([
            count, *(f"{n.mean():.2f}" for n in (np.array([u["kl"] for u in of]), before, after, best)),
            *(f"{n.sum()} of {len(of)}" for n in (half, coherent, passes)),
            " -> ".join(f"{100 * n.mean():.0f} %" for n in repeated),
        ])  # fmt: skip
        row = [name]
        for kind in CONTROLS:
            means = np.array([[np.mean(one["counts"]) for one in u[kind]] for u in of])
            by = means.mean(1) - before
            row.append(f"{by.mean():+.2f}")
            row += [f"{n.sum()} of {len(of)}" for n in (by >= least, after > means.max(1))]
        controls.append(row)
        said = {verdict: np.array([u["verdict"] == verdict for u in of]) for verdict in VERDICTS}
        right = (said["works"] == passes).sum()
        told = [f"{(s & passes).sum()}, {(s & ~passes).sum()}" for s in said.values()]
        verdicts.append([name, *told, f"{right} of {len(of)}"])
    return [
        line for made in zip(COLUMNS, (claims, controls, verdicts), strict=True) for line in ("", *table_lines(*made))
    ]
