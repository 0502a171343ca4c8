"""Every setting that was tried, as a table."""

from __future__ import annotations

import json
from math import comb
from typing import Any

import numpy as np
from jaxtyping import Float

from trimtab.cells import MISSING, number, settings_text
from trimtab.compare.run_records import RunRecords

TRIES = ("", "tries", "best validation score expected of 1, 2, 4, ... tries ± between searches", "more tries")
SETTINGS = ("", "setting", "validation score", "KL", "chosen")


def tried(run: RunRecords) -> list[list[str]]:
    """Return one line per method and setting: its mean score and KL on validation, and how often it was chosen."""
    size, lines = run.sizes[-1], []
    for method in run.methods:
        found: dict[str, list[dict[str, Any]]] = {}
        for trial in trials_of(run, method):
            found.setdefault(json.dumps(trial["knobs"], default=str), []).append(trial)
        if len(found) < 2:
            continue
        tests = [t for t in run.of(method, size) if t["status"] == "done"]
        chosen = [json.dumps(run.trial(t, t["best"])["knobs"], default=str) for t in tests]
        known = run.specification.get("grids", {}).get(method)
        of = f"{len(found)} of {known}" if known else str(len(found))
        for place, (knobs, trials) in enumerate(sorted(found.items(), key=lambda item: item[1][0]["step"])):
            lines.append(
                [
                    f"{method} ({of} settings)" if place == 0 else "",
                    settings_text(json.loads(knobs)),
                    _mean([t["validation"]["score"] for t in trials], run.chooser.unit),
                    _mean([t["validation"]["kl"] for t in trials], "nats"),
                    f"{chosen.count(knobs)} of {len(chosen)}",
                ]
            )
    return lines


HELPS = 0.01
"""A rise of the best score over the last quarter of the tries from which on more of them are said to help."""


def expected_best(run: RunRecords) -> list[list[str]]:
    """Return one line per method: the best validation score that so many of its tries found, over all its searches.

    Every fold and seed is a search of its own; where it tried every setting, the best of so many is that of all orders
    (Dodge et al. 2019, equation 5, without replacement). Where the last quarter of the tries still raised the best
    score by a point or more, more tries would help.
    """
    lines, meter = [], run.chooser
    for method in run.methods:
        curves = []
        for test in (t for t in run.of(method, run.sizes[-1]) if t["status"] == "done" and "follows" not in t):
            trials = sorted(run.trials_of(test), key=lambda t: t["step"])
            scores = [t["validation"]["score"] for t in trials if t["status"] == "done"]
            if scores and None not in scores:
                curves.append(meter.sign * np.array(scores, dtype=np.float64))
        shortest = min(map(len, curves), default=0)
        if shortest < 2:
            continue
        all_tried = shortest >= run.specification.get("grids", {}).get(method, np.inf)
        best = meter.sign * np.array([best_of(curve[:shortest], any_order=all_tried) for curve in curves])
        places = sorted({*(2**i for i in range(10) if 2**i < shortest), shortest})
        spread = best.std(0, ddof=1) if len(best) > 1 else np.zeros(shortest)
        said = (
            f"{n}: {number(best[:, n - 1].mean(), meter.unit)} ± {number(spread[n - 1], meter.unit)}" for n in places
        )
        rise = meter.sign * float(best[:, -1].mean() - best[:, 3 * shortest // 4 - 1].mean())
        more = "has no more settings" if all_tried else "would help" if rise >= HELPS else "would help little"
        lines.append([method, str(shortest), ", ".join(said), more])
    return lines


def best_of(scores: Float[np.ndarray, " try"], *, any_order: bool = False) -> Float[np.ndarray, " try"]:
    """Return the highest of the first 1, 2, 3, ... scores, or its mean over all orders."""
    if not any_order:
        return np.maximum.accumulate(scores)
    n = len(scores)
    # the i-th lowest is the highest of k where the others are among those below it
    weights = [[comb(i, k - 1) / comb(n, k) for i in range(n)] for k in range(1, n + 1)]
    return np.array(weights) @ np.sort(scores)


def _mean(values: list[float | None], unit: str) -> str:
    told = [value for value in values if value is not None]
    return number(float(np.mean(told)), unit) if told else MISSING


def trials_of(run: RunRecords, method: str) -> list[dict[str, Any]]:
    """Return a method's finished trials on all training questions; a control has none, as it chooses nothing."""
    size = run.sizes[-1]
    return [
        t for t in run.trials if (t["method"], t["size"], t["status"]) == (method, size, "done") and "validation" in t
    ]
