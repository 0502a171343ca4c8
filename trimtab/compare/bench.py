"""Bench: fits a unit's method, measures its edits and writes the records of one process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from trimtab.compare.design import Job, Parts, Unit
from trimtab.compare.machine import hardware, place
from trimtab.compare.record_fields import TEST
from trimtab.compare.records import RunFolder
from trimtab.datasets.item_set import ItemSet
from trimtab.evaluate.cost import SPEED
from trimtab.evaluate.table import instruments, measurements_of, summed_up
from trimtab.plain_values import hash_of
from trimtab.protocols import Edit, Measured, Meter

Fitter: TypeAlias = Callable[[Mapping[str, Any]], Edit]


@dataclass
class Bench:
    """A model, a job and the folder that its records go to."""

    model: Any
    tokenizer: Any
    job: Job
    folder: RunFolder
    ends: float | None = None

    def __post_init__(self) -> None:
        self.machine, self.place = hardware(self.model), place(self.model)
        self.crowd = 1

    @property
    def late(self) -> bool:
        """Whether no new trial should be started."""
        return self.ends is not None and time.monotonic() > self.ends

    def write(self, unit: Unit, step: int | str, record: Mapping[str, Any]) -> None:
        """Write a record with the machine and the most processes that shared it since the unit was begun."""
        self.crowd = max(self.crowd, self.folder.n_working(self.place))
        self.folder.write(unit, step, {**record, "machine": self.machine, "workers": self.crowd})

    def tidy(self, unit: Unit) -> None:
        """Delete a unit's kept answers once its records hold them; after a failure they wait for the next try."""
        test = self.folder.read(unit, TEST)
        if test is not None and test["status"] == "done" and not test["failed_trials"]:
            shutil.rmtree(self.folder.answers(unit), ignore_errors=True)

    def fitter(self, unit: Unit, parts: Parts) -> Fitter:
        """Return what fits a unit's method with given knobs, sharing between settings what the method can share."""
        method, shared = self.job.fitted[unit.method], []

        def fit(knobs: Mapping[str, Any]) -> Edit:
            # not before the first trial: what fails here is that trial's failure
            if not shared:
                shared.append(method.fitter(self.model, self.tokenizer, parts.train, seed=unit.seed))
            return shared[0](knobs)

        return fit

    def scores(self, unit: Unit, edit: Edit, validation: ItemSet[Any]) -> dict[str, Any]:
        """Return what settings are chosen by on the questions for it: the score, the drift, and what came with them."""
        chooser, budgeted = self.job.chooser, self.job.budgeted
        by = [meter for meter in (m.choosing for m in self.job.meters) if meter.instrument == chooser.instrument]
        drift = [m for m in (m.choosing for m in self.job.meters) if m.instrument == budgeted.instrument] or [budgeted]
        meters = [*by, *(meter for meter in drift if meter not in by)]
        found = {
            name: None if f is None else float(f) for name, f in self._figures(unit, edit, validation, meters).items()
        }
        return {"score": found[chooser.name], **found, "n": len(validation)}

    def _figures(self, unit: Unit, edit: Edit, items: Any, meters: Sequence[Meter]) -> dict[str, Any]:
        found = self._measured(unit, edit, items, meters)
        return {m.name: summed_up(m, found[i.name]) for i in instruments(meters) for m in i.sums}

    def _measured(self, unit: Unit, edit: Edit, items: Any, meters: Sequence[Meter]) -> dict[str, Measured | None]:
        kept: Path = self.folder.answers(unit)
        own = [meter.kept_in(kept) for meter in meters]
        (found,) = measurements_of(self.model, self.tokenizer, items, [edit], own, seed=unit.seed)
        return found

    def last_measurement(self, unit: Unit, edit: Edit, test: ItemSet[Any]) -> dict[str, Any]:
        """Return an edit's record on the test questions: of rows, the columns that meters sum up or show."""
        found = self._measured(unit, edit, test, self.job.meters)
        rows, values, records = {}, {}, {}
        for name, instrument, sums in instruments(self.job.meters):
            one, columns = found[name], {*instrument.shown, *(c for meter in sums for c in meter.columns)}
            if one is not None and one.record:
                records[name] = dict(one.record)
            if one is None or one.rows:
                kept = one and {item: {c: row[c] for c in row if c in columns} for item, row in one.rows.items()}
                rows[name] = kept
            else:
                values |= {meter.name: one.value for meter in sums}
        values[SPEED.name] = SPEED.of(self.model, self.tokenizer, test, edit)
        return {"rows": rows, "values": values, "records": records, "edit": edit.describe()}

    def about(self, parts: Parts) -> dict[str, Any]:
        """Return which questions a last measurement rests on."""
        n = {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)}
        return {"n": n, "questions": hash_of([q.asked for q in parts.test])[:16]}
