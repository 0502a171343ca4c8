"""Comparison: the records of a run as rows with intervals, paired differences and costs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trimtab.compare.design import BASELINE, Unit
from trimtab.compare.records import TEST, RunFolder
from trimtab.compare.statistics import PairedDifference, Spread, first, holm, paired, product, question_means, spread
from trimtab.errors import BadValue, Incompatible

Variant = Literal["best", "within"]
COLUMNS = {
    "true_info": ("true", "informative"),
    "true": ("true",),
    "info": ("informative",),
    "mc1": ("mc1",),
    "mc2": ("mc2",),
}
"""Metric -> the columns of a question's record whose means make it."""
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
    """To the unedited model, for True*Info and MC1; empty for the unedited model itself."""
    costs: dict[str, float | None]
    """Medians over folds and seeds: trainable_parameters, bytes_on_disk, seconds, peak_bytes, ms_per_token."""
    settings: tuple[tuple[str, int], ...]
    """The chosen knobs as text, each with how often it was chosen."""
    n_done: int
    n_units: int
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
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Comparison:
    """A run, finished or not: what was compared, and every record."""

    specification: dict[str, Any]
    trials: tuple[dict[str, Any], ...]
    tests: tuple[dict[str, Any], ...]

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Return the comparison in a run folder, as far as it has got.

        Raises:
            Incompatible: there is no run in the folder, or a record is damaged.
        """
        folder = RunFolder(path)
        specification, records = folder.specification(), folder.records()
        tests = tuple(r for r in records if r["step"] == TEST)
        return cls(specification, tuple(r for r in records if r["step"] != TEST), tests)

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in the order in which they were given."""
        return list(self.specification["methods"])

    @property
    def sizes(self) -> list[int | None]:
        """Numbers of training questions that were planned."""
        return list(self.specification["design"]["train_sizes"])

    @property
    def n_units(self) -> int:
        """Folds times seeds: how often every method is measured at one size."""
        design = self.specification["design"]
        return design["folds"] * len(design["seeds"])

    @property
    def finished(self) -> bool:
        """Whether every method was measured, or recorded as failed, everywhere."""
        return len(self.tests) == len(self.methods) * len(self.sizes) * self.n_units

    def of(self, method: str, size: int | None = None) -> list[dict[str, Any]]:
        """Return a method's last measurements at one size."""
        return [t for t in self.tests if t["method"] == method and t["size"] == size]

    def rows(self, size: int | None = None) -> list[ResultRow]:
        """Return the rows at one number of training questions, in the order of the methods.

        A method has two rows where its best settings and its best ones within the KL budget differ anywhere.
        """
        base = self.of(BASELINE, size)
        rows = []
        for method in self.methods:
            tests = self.of(method, size)
            done = [t for t in tests if t["status"] == "done"]
            split = any(t["best"] != t["within"] for t in done)
            variants: tuple[Variant, ...] = ("best", "within") if split else ("best",)
            rows += [self._row(method, size, variant, tests, base) for variant in variants]
        return _corrected(rows)

    def row(self, name: str, size: int | None = None) -> ResultRow:
        """Return the row of this name.

        Raises:
            BadValue: there is none; the message names those that there are.
        """
        rows = {r.name: r for r in self.rows(size)}
        if name not in rows:
            raise BadValue(f"no row {name!r}; the comparison has {', '.join(rows)}")
        return rows[name]

    def as_dict(self) -> dict[str, Any]:
        """Return specification and rows as plain values for JSON."""
        rows = [row.as_dict() for size in self.sizes for row in self.rows(size)]
        return {**self.specification, "finished": self.finished, "rows": rows}

    def _row(
        self, method: str, size: int | None, variant: Variant, tests: list[dict[str, Any]], base: list[dict[str, Any]]
    ) -> ResultRow:
        used = [t for t in tests if t["status"] == "done" and t[variant] is not None]
        values = {m: values_of(used, variant, columns) for m, columns in COLUMNS.items()}
        drifts = {m: drift_of(used, variant, i) for i, m in enumerate(("ce", "kl"))}
        metrics: dict[str, Spread | None] = {
            m: spread(v, product if m == "true_info" else first) if any(v.values()) else None
            for m, v in {**values, **drifts}.items()
        }
        same = {(t["fold"], t["seed"]) for t in used}
        paired_base = [t for t in base if t["status"] == "done" and (t["fold"], t["seed"]) in same]
        differences = {}
        if method != BASELINE and used and paired_base:
            for metric in TESTED:
                reduce = product if metric == "true_info" else first
                theirs = values_of(paired_base, "best", COLUMNS[metric])
                difference, p = paired(question_means(values[metric]), question_means(theirs), reduce)
                differences[metric] = PairedDifference(difference, p, p, difference.n)
        settings = Counter(json.dumps(self.trial(t, t[variant])["knobs"], default=str) for t in used)
        return ResultRow(
            method, variant, size, metrics, differences, self._costs(used, variant),
            tuple(settings.most_common()), len(used), self.n_units, _notes(tests, variant, self.n_units),
        )  # fmt: skip

    def trial(self, test: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Return the record of a trial of the same unit as a last measurement."""
        for trial in self._trials_beside(test):
            if trial["step"] == number:
                return trial
        raise Incompatible(f"trial {number} of {_unit(test)} has a measurement but no record; run the comparison again")

    def _costs(self, used: Sequence[Mapping[str, Any]], variant: Variant) -> dict[str, float | None]:
        made = [self.trial(t, t[variant])["made"] for t in used]
        keys = ("trainable_parameters", "bytes_on_disk", "seconds")
        costs = {key: [m[key] for m in made] for key in keys}
        # what a unit's trials share (activations, probes) is computed in the first of them
        costs["peak_bytes"] = [self._peak(t) for t in used]
        costs["ms_per_token"] = [measured(t, variant)["ms_per_token"] for t in used]
        return {k: float(np.median(v)) if v and None not in v else None for k, v in costs.items()}

    def _peak(self, test: Mapping[str, Any]) -> float | int | None:
        peaks = [t["made"]["peak_bytes"] for t in self._trials_beside(test) if t["status"] == "done"]
        return None if None in peaks else max(peaks)

    def _trials_beside(self, test: Mapping[str, Any]) -> list[dict[str, Any]]:
        unit = _unit(test)
        return [trial for trial in self.trials if _unit(trial) == unit]


def _unit(record: Mapping[str, Any]) -> Unit:
    return Unit(*(record[f] for f in Unit._fields))


def measured(test: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """Return a last measurement's result for one variant."""
    return test["measured"][str(test[variant])]


def values_of(tests: Sequence[Mapping[str, Any]], variant: Variant, columns: Sequence[str]) -> Values:
    """Return seed -> question -> measurements of these columns."""
    found: Values = {}
    for test in tests:
        rows = found.setdefault(test["seed"], {})
        for question in measured(test, variant)["questions"]:
            rows.setdefault(question["question"], []).append([float(question[c]) for c in columns])
    return found


def drift_of(tests: Sequence[Mapping[str, Any]], variant: Variant, column: int) -> Values:
    """Return seed -> neutral text -> its CE (column 0) or KL (1); empty for what only prompts."""
    found: Values = {}
    for test in tests:
        for number, pair in enumerate(measured(test, variant)["drift"] or ()):
            found.setdefault(test["seed"], {}).setdefault(str(number), []).append([pair[column]])
    return found


def merged(comparisons: Sequence[Comparison]) -> Comparison:
    """Return several runs as one, where their rows may be compared.

    Raises:
        Incompatible: naming what differs (questions, test questions, meters, model, folds, seeds, KL budget) or the
            method that two runs both have.
    """
    one, *rest = comparisons
    for other in rest:
        for key in ("questions", "test", "meters", "model", "design"):
            ours, theirs = one.specification[key], other.specification[key]
            if ours != theirs:
                raise Incompatible(f"these runs may not be compared: {_difference(key, ours, theirs)}")
        shared = set(one.methods) & set(other.methods) - {BASELINE}
        if shared:
            raise Incompatible(f"both runs have a row {min(shared)!r}; name one of them differently and run it again")
        methods = {**one.specification["methods"], **other.specification["methods"]}
        extra = [r for r in other.tests if r["method"] != BASELINE]
        one = Comparison({**one.specification, "methods": methods}, one.trials + other.trials, (*one.tests, *extra))
    return one


def _difference(key: str, ours: Any, theirs: Any) -> str:
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return f"{key} {ours!r:.80} against {theirs!r:.80}"
    parts = [f"{k} {ours[k]!r:.60} against {theirs.get(k)!r:.60}" for k in ours if ours[k] != theirs.get(k)]
    return f"{key} differ in {', '.join(parts)}"


def _corrected(rows: list[ResultRow]) -> list[ResultRow]:
    for metric in TESTED:
        places = [i for i, row in enumerate(rows) if metric in row.differences]
        adjusted = holm([rows[i].differences[metric].p for i in places])
        for i, p in zip(places, adjusted, strict=True):
            differences = {**rows[i].differences, metric: replace(rows[i].differences[metric], p_holm=p)}
            rows[i] = replace(rows[i], differences=differences)
    return rows


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
