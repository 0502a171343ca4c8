"""Comparison: the records of a run, and the rows that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from trimtab.compare.contrasts import Contrast, contrast_of, contrasts
from trimtab.compare.design import BASELINE
from trimtab.compare.record_fields import TEST
from trimtab.compare.recorded_meters import meters_of
from trimtab.compare.records import RunFolder
from trimtab.compare.rows import ResultRow, corrected, row_of, style_row
from trimtab.compare.run_records import RunRecords, Variant
from trimtab.compare.specification import joint_specification, planned
from trimtab.errors import BadValue, Incompatible
from trimtab.protocols import Meter


class Comparison(RunRecords):
    """A run, finished or not: what was compared, every record, and the rows that they make."""

    @classmethod
    def load(cls, path: str | Path, *, meters: Sequence[Meter] = ()) -> Comparison:
        """Return the comparison in a run folder, as far as it has got.

        Args:
            meters: your own ones that sum up rows in another way than by their mean.

        Raises:
            Incompatible: there is no run in the folder, or a record is damaged; such a meter is not given.
        """
        folder = RunFolder(path)
        specification, records = folder.specification(), folder.records()
        tests = tuple(r for r in records if r["step"] == TEST)
        trials = tuple(r for r in records if r["step"] != TEST)
        return cls(specification, trials, tests, meters_of(specification["meters"], meters))

    def rows(self, size: int | None = None) -> list[ResultRow]:
        """Return the rows at one number of training questions, in the order of the methods.

        A method has two rows where its best settings and its best ones within the KL budget differ anywhere.
        """
        return list(self._rows_at(size))

    @cached_property
    def _rows_at(self) -> Callable[[int | None], list[ResultRow]]:
        # tables, charts and notes ask for the same rows
        return cache(self._made)

    def _made(self, size: int | None) -> list[ResultRow]:
        rows = []
        for method in planned(self.specification).get(size, ()):
            done = [t for t in self.of(method, size) if t["status"] == "done"]
            split = any(t["best"] != t["within"] for t in done)
            variants: tuple[Variant, ...] = ("best", "within") if split else ("best",)
            rows += [row_of(self, method, size, variant) for variant in variants]
        return corrected(rows, self.meters)

    def style(self, size: int | None = None) -> ResultRow | None:
        """Return what the answers' style alone gives on the same questions, learned from the training folds."""
        return style_row(self, size)

    def contrasts(self, meter: str = "", size: int | None = None) -> list[Contrast]:
        """Return the tested difference of every two rows in a meter (the main one if not given), Holm over all."""
        return list(self._contrasts_at(meter or self.main.name, size))

    def contrast(self, one: str, other: str, meter: str = "", size: int | None = None) -> Contrast:
        """Return the tested difference of two rows, named in advance and so uncorrected; raises `BadValue`."""
        return contrast_of(self, self.rows(size), one, other, self.meter(meter or self.main.name))

    @cached_property
    def _contrasts_at(self) -> Callable[[str, int | None], list[Contrast]]:
        return cache(lambda meter, size: contrasts(self, self.rows(size), self.meter(meter)))

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
        """Return specification, rows, what style alone gives and tests between rows as plain values for JSON."""
        rows = [row.as_dict() for size in self.sizes for row in self.rows(size)]
        style, pairs = self.style(self.sizes[-1]), self.contrasts(size=self.sizes[-1])
        found = {"rows": rows, "style": style and style.as_dict(), "mute": self.mute}
        between = {"meter": self.main.name, "pairs": [pair.as_dict() for pair in pairs]}
        return {**self.specification, "finished": self.finished, **found, "contrasts": between}


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
        both = joint_specification(one.specification, other.specification)
        one = Comparison(both, one.trials + other.trials, (*one.tests, *extra), one.meters)
    return one


def _difference(key: str, ours: Any, theirs: Any) -> str:
    if isinstance(ours, list) and isinstance(theirs, list):
        ours, theirs = ({entry["name"]: entry["measured_by"] for entry in side} for side in (ours, theirs))
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return f"{key} {ours!r:.80} against {theirs!r:.80}"
    parts = [f"{k} {ours[k]!r:.60} against {theirs.get(k)!r:.60}" for k in ours if ours[k] != theirs.get(k)]
    return f"{key} differ in {', '.join(parts)}"
