"""One method's records as a row: intervals, paired differences, costs, and what the reader must know."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trimtab.cells import number, unit_words
from trimtab.compare.design import BASELINE
from trimtab.compare.run_records import RunRecords, Variant
from trimtab.compare.statistics import (
    Measurement,
    PairedDifference,
    Spread,
    Values,
    holm,
    moved,
    over_draws,
    paired_each,
    question_means,
    spread,
)
from trimtab.evaluate.cost import cost_meters
from trimtab.evaluate.table import columns_of
from trimtab.protocols import Meter


@dataclass(frozen=True)
class ResultRow:
    """One method's result over all folds and seeds, for its best settings or its best ones within the KL budget."""

    method: str
    variant: Variant
    size: int | None
    """Number of training questions; None is all of the fold."""
    metrics: dict[str, Spread | None]
    """By meter; None where it was not measured (CE and KL of prompting)."""
    differences: dict[str, PairedDifference]
    """To the unedited model, by tested meter; empty for the unedited model itself and for controls."""
    costs: dict[str, float | None]
    """Medians over folds and seeds, by meter without rows."""
    settings: tuple[tuple[str, int], ...]
    """The chosen knobs as text, each with how often it was chosen."""
    n_done: int
    n_units: int
    n_kept: int | None
    """In how many of them the best setting kept the KL budget; None where nothing was chosen or nothing drifts."""
    n_at_once: int | None
    """The most processes that shared the device while the row's times were taken; None where it was not recorded."""
    draws: tuple[float, ...]
    """A control's main figure, draw by draw; empty for methods."""
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


def row_of(run: RunRecords, method: str, size: int | None, variant: Variant) -> ResultRow:
    """Return a method's row at one number of training questions."""
    tests = run.of(method, size)
    used = [t for t in tests if t["status"] == "done" and t[variant] is not None]
    drawn = any("follows" in t for t in used)
    each = [(t["seed"], found) for t in used for found in run.measurements(t, variant)]
    figures = {m.name: _of_draws(run, each, m) for m in run.summed} if drawn else {}
    draws = figures[run.main.name][1] if run.main.name in figures else ()
    values = {m.name: values_of(run, () if drawn else used, variant, m) for m in run.summed}
    metrics = {m.name: figures[m.name][0] if drawn else _of_items(values[m.name], m) for m in run.summed}
    settings = Counter(json.dumps(_chosen_knobs(run.trial(t, t[variant])), default=str) for t in used)
    chose = method != BASELINE and not drawn and metrics.get("kl") is not None
    return ResultRow(
        method=method,
        variant=variant,
        size=size,
        metrics=metrics,
        differences={} if method == BASELINE else _differences(run, used, values),
        costs=_costs(run, used, variant),
        settings=tuple(settings.most_common()),
        n_done=len(used),
        n_units=run.n_units,
        n_kept=sum(t["best"] == t["within"] for t in used) if chose else None,
        n_at_once=_at_once(run, used),
        draws=draws,
        notes=(*_notes(tests, variant, run.n_units), *_about_draws(run, used, draws)),
    )


STYLE = "Answers' style alone"


def style_row(run: RunRecords, size: int | None) -> ResultRow | None:
    """Return what the answers' words and length give without question or model; None where no meter has it."""
    units = [t for t in run.of(BASELINE, size) if t["status"] == "done" and t.get("without_model")]
    made = [{**t, "best": 0, "measured": {"0": {"rows": t["without_model"]}}} for t in units]
    metrics = {m.name: s for m in run.summed if (s := _of_items(values_of(run, made, "best", m), m)) is not None}
    if not metrics:
        return None
    shown = {m.name: metrics.get(m.name) for m in run.summed}
    return ResultRow(STYLE, "best", size, shown, {}, {}, (), len(units), run.n_units, None, None, (), ())


def _about_draws(run: RunRecords, used: Sequence[Mapping[str, Any]], draws: Sequence[float]) -> list[str]:
    if not draws:
        return []
    low, high = (number(limit(draws), run.main.unit, brief=True) for limit in (min, max))
    whose = used[0]["follows"]["method"]
    return [
        f"{len(draws)} random draws with {whose}'s heads and norms, {run.main.heading} {low} to {high} "
        f"{unit_words(run.main.unit)}; the intervals are over draws, and no p-value is given, as a control was not "
        "tuned"
    ]


def _chosen_knobs(trial: Mapping[str, Any]) -> dict[str, Any]:
    # a control's draws are not settings
    return {k: v for k, v in trial["knobs"].items() if k != "draw" or "measured" not in trial}


def _of_items(values: Values, meter: Meter) -> Spread | None:
    return spread(values, meter.summary, unit=meter.unit) if values else None


def _of_draws(
    run: RunRecords, draws: Sequence[tuple[int, Mapping[str, Any]]], meter: Meter
) -> tuple[Spread | None, tuple[float, ...]]:
    """Return a meter's spread over (seed, measurement) of every draw, and each draw's figure."""
    rows = [found["rows"].get(run.instrument(meter)) for _, found in draws]
    if not all(rows):
        return None, ()
    figures = [float(meter.summary(columns_of(meter, one).mean(0))) for one in rows if one]
    return over_draws([seed for seed, _ in draws], figures, unit=meter.unit), tuple(figures)


def _differences(
    run: RunRecords, used: Sequence[Mapping[str, Any]], values: Mapping[str, Values]
) -> dict[str, PairedDifference]:
    """Return a row's differences to the unedited model, measured in the same folds and seeds, by tested meter."""
    same = {(t["fold"], t["seed"]) for t in used}
    base = [t for t in run.of(BASELINE, used[0]["size"]) if t["status"] == "done"] if used else []
    base = [t for t in base if (t["fold"], t["seed"]) in same]
    found = []
    for meter in (m for m in run.summed if m.tested and m.better != "neither" and values[m.name]):
        if theirs := question_means(values_of(run, base, "best", meter)):
            found.append((meter, question_means(values[meter.name]), theirs))
    tests = paired_each([(ours, theirs, meter.summary) for meter, ours, theirs in found])
    return {
        meter.name: PairedDifference(d, p, p, d.n, moved(ours, theirs, meter.summary, sign=meter.sign))
        for (meter, ours, theirs), (d, p) in zip(found, tests, strict=True)
    }


def _costs(run: RunRecords, used: Sequence[Mapping[str, Any]], variant: Variant) -> dict[str, float | None]:
    told = [{**run.trial(t, t[variant])["made"], **run.measurements(t, variant)[0]["values"]} for t in used]
    meters = (*cost_meters(), *run.valued)
    costs: dict[str, list[Any]] = {meter.name: [one.get(meter.name) for one in told] for meter in meters}
    # what a unit's trials share (activations, probes) is computed in the first of them
    costs["peak_bytes"] = [_peak(run, t) for t in used]
    return {k: float(np.median(v)) if v and None not in v else None for k, v in costs.items()}


def _peak(run: RunRecords, test: Mapping[str, Any]) -> float | int | None:
    peaks = [t["made"]["peak_bytes"] for t in run.trials_of(test) if t["status"] == "done"]
    return None if None in peaks else max(peaks)


def _at_once(run: RunRecords, used: Sequence[Mapping[str, Any]]) -> int | None:
    found = [record.get("workers") for t in used for record in (t, *run.trials_of(t))]
    return None if None in found else max(found, default=None)  # pyright: ignore[reportArgumentType]


def corrected(rows: list[ResultRow], meters: Sequence[Meter]) -> list[ResultRow]:
    """Return the rows with p-values corrected by Holm's procedure, meter by meter, over those that have one."""
    for meter in meters:
        places = [i for i, row in enumerate(rows) if meter.name in row.differences]
        adjusted = holm([rows[i].differences[meter.name].p for i in places])
        for i, p in zip(places, adjusted, strict=True):
            differences = {**rows[i].differences, meter.name: replace(rows[i].differences[meter.name], p_holm=p)}
            rows[i] = replace(rows[i], differences=differences)
    return rows


def values_of(run: RunRecords, tests: Sequence[Mapping[str, Any]], variant: Variant, meter: Meter) -> Values:
    """Return every seed's measurements of a meter's columns; empty for what it has nothing to say of."""
    found: dict[int, list[Measurement]] = {}
    for test in tests:
        rows = test["measured"][str(test[variant])]["rows"].get(run.instrument(meter))
        if rows:
            found.setdefault(test["seed"], []).append((list(rows), columns_of(meter, rows)))
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
