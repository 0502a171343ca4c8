"""Comparison: the records of a run, and the rows that they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.compare.design import BASELINE, Unit
from trimtab.compare.record_fields import TEST
from trimtab.compare.records import RunFolder
from trimtab.compare.rows import ResultRow, Variant, corrected, row_of
from trimtab.compare.specification import joined, planned
from trimtab.errors import BadValue, Incompatible


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
        """Numbers of training questions that were planned; the last one, None where it is all, is the main table's."""
        return list(planned(self.specification))

    @property
    def n_units(self) -> int:
        """Folds times seeds: how often every method is measured at one size."""
        design = self.specification["design"]
        return design["folds"] * len(design["seeds"])

    @property
    def n_planned(self) -> int:
        """Last measurements of a finished run."""
        return self.n_units * sum(len(methods) for methods in planned(self.specification).values())

    @property
    def finished(self) -> bool:
        """Whether every method was measured, or recorded as failed, everywhere."""
        return len(self.tests) == self.n_planned

    def of(self, method: str, size: int | None = None) -> list[dict[str, Any]]:
        """Return a method's last measurements at one size."""
        return [t for t in self.tests if t["method"] == method and t["size"] == size]

    def rows(self, size: int | None = None) -> list[ResultRow]:
        """Return the rows at one number of training questions, in the order of the methods.

        A method has two rows where its best settings and its best ones within the KL budget differ anywhere.
        """
        rows = []
        for method in planned(self.specification).get(size, ()):
            done = [t for t in self.of(method, size) if t["status"] == "done"]
            split = any(t["best"] != t["within"] for t in done)
            variants: tuple[Variant, ...] = ("best", "within") if split else ("best",)
            rows += [row_of(self, method, size, variant) for variant in variants]
        return corrected(rows)

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

    def trial(self, test: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Return the record of a trial of the same unit as a last measurement."""
        for trial in self.trials_of(test):
            if trial["step"] == number:
                return trial
        raise Incompatible(
            f"{test['method']}, fold {test['fold']}, seed {test['seed']}: there is a measurement of trial {number} and "
            "no record of it; delete the measurement (its test.json in records/) and run the comparison again"
        )

    def trials_of(self, test: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the trials of the same unit as a last measurement."""
        unit = _unit(test)
        return [trial for trial in self.trials if _unit(trial) == unit]

    def measurements(self, test: Mapping[str, Any], variant: Variant) -> list[dict[str, Any]]:
        """Return the last measurement of a method's chosen setting, or those of a control's draws."""
        if "follows" in test:
            return [t["measured"] for t in self.trials_of(test) if t["status"] == "done"]
        return [test["measured"][str(test[variant])]]

    @property
    def machines(self) -> dict[str, int]:
        """What the measurements and trials were made on, each with how many of them; the most frequent first."""
        unknown = f"not recorded (the run was begun on {self.specification['hardware']})"
        return dict(Counter(r.get("machine", unknown) for r in (*self.trials, *self.tests)).most_common())

    @property
    def peak_kinds(self) -> dict[str, int]:
        """What the peak memory of the trials is a peak of, each with how many of them; the most frequent first."""
        made = [t["made"] for t in self.trials if t["status"] == "done"]
        return dict(Counter(m["peak_kind"] for m in made if m["peak_bytes"] is not None).most_common())

    @property
    def crowds(self) -> dict[str, int]:
        """How many processes shared a device, each with how many records were made so."""
        return dict(Counter(str(r.get("workers", "not recorded")) for r in (*self.trials, *self.tests)).most_common())


def _unit(record: Mapping[str, Any]) -> Unit:
    return Unit(*(record[f] for f in Unit._fields))


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
        extra = [r for r in other.tests if r["method"] != BASELINE]
        one = Comparison(
            joined(one.specification, other.specification), one.trials + other.trials, (*one.tests, *extra)
        )
    return one


def _difference(key: str, ours: Any, theirs: Any) -> str:
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return f"{key} {ours!r:.80} against {theirs!r:.80}"
    parts = [f"{k} {ours[k]!r:.60} against {theirs.get(k)!r:.60}" for k in ours if ours[k] != theirs.get(k)]
    return f"{key} differ in {', '.join(parts)}"
