"""One method's records as a row: intervals, paired differences, costs, and what the reader must know."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trimtab.compare.design import BASELINE
from trimtab.compare.statistics import (
    PairedDifference,
    Spread,
    first,
    holm,
    over_draws,
    paired,
    product,
    question_means,
    spread,
)

if TYPE_CHECKING:
    from trimtab.compare.comparison import Comparison

Variant = Literal["best", "within"]
COLUMNS = {
    "true_info": ("true", "informative"),
    "true": ("true",),
    "info": ("informative",),
    "mc1": ("mc1",),
    "mc2": ("mc2",),
}
"""Metric -> the columns of a question's record whose means make it."""
NATS = ("ce", "kl")
TESTED = ("true_info", "mc1")
Values = dict[int, dict[str, list[list[float]]]]
"""seed -> question (or neutral text) -> its measurements."""


@dataclass(frozen=True)
class ResultRow:
    """One method's result over all folds and seeds, for its best settings or its best ones within the KL budget."""

    method: str
    variant: Variant
    size: int | None
    """Number of training questions; None is all of the fold."""
    metrics: dict[str, Spread | None]
    """True*Info, True, Info, MC1, MC2, CE, KL; None where it was not measured (CE and KL of prompting)."""
    differences: dict[str, PairedDifference]
    """To the unedited model, for True*Info and MC1; empty for the unedited model itself and for controls."""
    costs: dict[str, float | None]
    """Medians over folds and seeds: trainable_parameters, bytes_on_disk, seconds, peak_bytes, ms_per_token."""
    settings: tuple[tuple[str, int], ...]
    """The chosen knobs as text, each with how often it was chosen."""
    n_done: int
    n_units: int
    n_kept: int | None
    """In how many of them the best setting kept the KL budget; None where nothing was chosen or nothing drifts."""
    n_at_once: int | None
    """The most processes that shared the device while the row's times were taken; None where it was not recorded."""
    draws: tuple[float, ...]
    """A control's True*Info, draw by draw; empty for methods."""
    notes: tuple[str, ...]
    """What the reader must know: failures, folds missing, folds without a setting within the budget."""

    @property
    def name(self) -> str:
        """The method's name, and that the budget was kept where that is another result."""
        return self.method if self.variant == "best" else f"{self.method} (within KL budget)"

    @property
    def complete(self) -> bool:
        """Whether every fold and seed was measured."""
        return self.n_done == self.n_units

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "method": self.method,
            "variant": self.variant,
            "train_size": self.size,
            "metrics": {m: s and s.as_dict() for m, s in self.metrics.items()},
            "differences": {m: d.as_dict() for m, d in self.differences.items()},
            "costs": self.costs,
            "settings": dict(self.settings),
            "n_done": self.n_done,
            "n_units": self.n_units,
            "n_kept": self.n_kept,
            "n_at_once": self.n_at_once,
            "draws": list(self.draws),
            "notes": list(self.notes),
        }


def row_of(comparison: Comparison, method: str, size: int | None, variant: Variant) -> ResultRow:
    """Return a method's row at one number of training questions."""
    tests, base = comparison.of(method, size), comparison.of(BASELINE, size)
    used = [t for t in tests if t["status"] == "done" and t[variant] is not None]
    if any("follows" in t for t in used):
        metrics, draws = _of_draws([(t["seed"], m) for t in used for m in comparison.measurements(t, variant)])
        differences = {}
    else:
        metrics, draws = _of_questions(used, variant), ()
        differences = _differences(used, base, variant) if method != BASELINE else {}
    settings = Counter(json.dumps(_chosen_knobs(comparison.trial(t, t[variant])), default=str) for t in used)
    chose = method != BASELINE and not draws and metrics["kl"] is not None
    return ResultRow(
        method, variant, size, metrics, differences, _costs(comparison, used, variant), tuple(settings.most_common()),
        len(used), comparison.n_units, sum(t["best"] == t["within"] for t in used) if chose else None,
        _at_once(comparison, used), draws, (*_notes(tests, variant, comparison.n_units), *_about_draws(used, draws)),
    )  # fmt: skip


def _about_draws(used: Sequence[Mapping[str, Any]], draws: Sequence[float]) -> list[str]:
    if not draws:
        return []
    low, high = (f"{100 * limit(draws):.0f}" for limit in (min, max))
    whose = used[0]["follows"]["method"]
    return [
        f"{len(draws)} random draws with {whose}'s heads and norms, True*Info {low} to {high} %; the intervals "
        "are over draws, and no p-value is given, as a control was not tuned"
    ]


def _chosen_knobs(trial: Mapping[str, Any]) -> dict[str, Any]:
    # a control's draws are not settings
    return {k: v for k, v in trial["knobs"].items() if k != "draw" or "measured" not in trial}


def _of_questions(used: Sequence[Mapping[str, Any]], variant: Variant) -> dict[str, Spread | None]:
    values = {m: values_of(used, variant, columns) for m, columns in COLUMNS.items()}
    drifts = {m: drift_of(used, variant, i) for i, m in enumerate(NATS)}
    return {
        m: spread(v, product if m == "true_info" else first) if any(v.values()) else None
        for m, v in {**values, **drifts}.items()
    }


def _of_draws(draws: Sequence[tuple[int, Mapping[str, Any]]]) -> tuple[dict[str, Spread | None], tuple[float, ...]]:
    """Return the metrics over (seed, measurement) of every draw, and each draw's True*Info."""
    found: dict[str, Spread | None] = {}
    scores: dict[str, list[float]] = {}
    seeds = [seed for seed, _ in draws]
    for metric, columns in COLUMNS.items():
        means = [[float(np.mean([float(q[c]) for q in m["questions"]])) for c in columns] for _, m in draws]
        scores[metric] = [float(np.prod(each)) for each in means]
        found[metric] = over_draws(seeds, scores[metric])
    for place, metric in enumerate(NATS):
        drifts = [[pair[place] for pair in m["drift"] or ()] for _, m in draws]
        found[metric] = over_draws(seeds, [float(np.mean(d)) for d in drifts]) if all(drifts) else None
    return found, tuple(scores["true_info"])


def _differences(
    used: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], variant: Variant
) -> dict[str, PairedDifference]:
    same = {(t["fold"], t["seed"]) for t in used}
    theirs = [t for t in base if t["status"] == "done" and (t["fold"], t["seed"]) in same]
    differences = {}
    for metric in TESTED if used and theirs else ():
        reduce = product if metric == "true_info" else first
        ours = question_means(values_of(used, variant, COLUMNS[metric]))
        difference, p = paired(ours, question_means(values_of(theirs, "best", COLUMNS[metric])), reduce)
        differences[metric] = PairedDifference(difference, p, p, difference.n)
    return differences


def _costs(comparison: Comparison, used: Sequence[Mapping[str, Any]], variant: Variant) -> dict[str, float | None]:
    made = [comparison.trial(t, t[variant])["made"] for t in used]
    costs = {key: [m[key] for m in made] for key in ("trainable_parameters", "bytes_on_disk", "seconds")}
    # what a unit's trials share (activations, probes) is computed in the first of them
    costs["peak_bytes"] = [_peak(comparison, t) for t in used]
    costs["ms_per_token"] = [comparison.measurements(t, variant)[0]["ms_per_token"] for t in used]
    return {k: float(np.median(v)) if v and None not in v else None for k, v in costs.items()}


def _peak(comparison: Comparison, test: Mapping[str, Any]) -> float | int | None:
    peaks = [t["made"]["peak_bytes"] for t in comparison.trials_of(test) if t["status"] == "done"]
    return None if None in peaks else max(peaks)


def _at_once(comparison: Comparison, used: Sequence[Mapping[str, Any]]) -> int | None:
    found = [record.get("workers") for t in used for record in (t, *comparison.trials_of(t))]
    return None if None in found else max(found, default=None)  # pyright: ignore[reportArgumentType]


def corrected(rows: list[ResultRow]) -> list[ResultRow]:
    """Return the rows with p-values corrected by Holm's procedure over those that have one."""
    for metric in TESTED:
        places = [i for i, row in enumerate(rows) if metric in row.differences]
        adjusted = holm([rows[i].differences[metric].p for i in places])
        for i, p in zip(places, adjusted, strict=True):
            differences = {**rows[i].differences, metric: replace(rows[i].differences[metric], p_holm=p)}
            rows[i] = replace(rows[i], differences=differences)
    return rows


def values_of(tests: Sequence[Mapping[str, Any]], variant: Variant, columns: Sequence[str]) -> Values:
    """Return seed -> question -> measurements of these columns."""
    found: Values = {}
    for test in tests:
        rows = found.setdefault(test["seed"], {})
        for question in test["measured"][str(test[variant])]["questions"]:
            rows.setdefault(question["question"], []).append([float(question[c]) for c in columns])
    return found


def drift_of(tests: Sequence[Mapping[str, Any]], variant: Variant, column: int) -> Values:
    """Return seed -> neutral text -> its CE (column 0) or KL (1); empty for what only prompts."""
    found: Values = {}
    for test in tests:
        for number, pair in enumerate(test["measured"][str(test[variant])]["drift"] or ()):
            found.setdefault(test["seed"], {}).setdefault(str(number), []).append([pair[column]])
    return found


def _notes(tests: Sequence[Mapping[str, Any]], variant: Variant, n_units: int) -> tuple[str, ...]:
    notes = []
    missing = n_units - len(tests)
    if missing:
        notes.append(f"not finished: {missing} of {n_units} folds and seeds are still missing")
    for test in tests:
        where = f"fold {test['fold']}, seed {test['seed']}"
        if test["status"] == "failed":
            notes.append(f"failed in {where}: {test['why']}")
        elif test["failed_trials"]:
            notes.append(f"{len(test['failed_trials'])} trial(s) failed in {where}: {test['failed_trials'][0]}")
    if variant == "within":
        none = sum(t["status"] == "done" and t["within"] is None for t in tests)
        if none:
            notes.append(f"none within the KL budget in {none} of {n_units} folds and seeds")
    return tuple(notes)
