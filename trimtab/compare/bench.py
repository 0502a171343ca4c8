"""Bench: fits a unit's method, measures its edits and writes the records of one process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from trimtab.compare.design import Job, Parts, Unit
from trimtab.compare.machine import hardware, place
from trimtab.compare.record_fields import TEST
from trimtab.compare.records import RunFolder, why
from trimtab.datasets.item_set import ItemSet
from trimtab.devices import is_crowded, ran_out_of_memory
from trimtab.errors import first_line
from trimtab.evaluate.cost import USING
from trimtab.evaluate.table import instruments, measurements_of, mute_among, summed_up
from trimtab.models.anatomy import input_device
from trimtab.plain_values import hash_of
from trimtab.protocols import Edit, Findings, Measured, Meter

Fitter: TypeAlias = Callable[[Mapping[str, Any]], Edit]
T = TypeVar("T")
R = TypeVar("R")
TOGETHER = 6
"""Edits that are measured at once: what the unedited model computes, and prompts, are computed once for all of them.
More would save little more, and a process that dies loses what it has not written."""


def each(
    work: Callable[[list[T]], list[R]], things: list[T], said: Callable[[Exception], str | None] = why
) -> list[R | str | None]:
    """Return what the work gives of each of the things, or what is said of its failure; if all fail, one by one."""
    try:
        return list(work(things))
    except Exception as mistake:
        if len(things) == 1:
            return [said(mistake)]
    # not while the exception is held, whose frames hold what filled the memory
    return [found for thing in things for found in each(work, [thing], said)]


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
        self.findings, self.found_for = Findings(), ()
        """What a fold's methods share."""
        self.unedited = Findings()
        """What measuring finds of the unedited model, whatever the fold."""
        self.chosen: dict[Unit, Edit] = {}
        """The edits that were chosen in units whose methods a control follows: it need not make them again."""

        self.short: dict[Unit, str] = {}
        """Units that were left undone because other processes had taken the memory, and what was said of it."""

    @property
    def late(self) -> bool:
        """Whether no new trial should be started."""
        return self.ends is not None and time.monotonic() > self.ends

    def write(self, unit: Unit, step: int | str, record: Mapping[str, Any]) -> None:
        """Write a record with the machine and the most processes that shared it since the unit was begun."""
        self.crowd = max(self.crowd, self.folder.n_working(self.place))
        self.folder.write(unit, step, {**record, "machine": self.machine, "workers": self.crowd})

    def why(self, unit: Unit, mistake: Exception) -> str | None:
        """Return what a record says of a failure; None where there is to be none, and `short` says so.

        For want of memory that other processes hold, which is no property of what was tried.
        """
        self.crowd = max(self.crowd, self.folder.n_working(self.place))
        if ran_out_of_memory(mistake) and (self.crowd > 1 or is_crowded(input_device(self.model))):
            self.short[unit] = first_line(mistake)
            return None
        return why(mistake)

    def tidy(self, unit: Unit) -> None:
        """Delete a unit's kept answers once its records hold them; after a failure they wait for the next try."""
        test = self.folder.read(unit, TEST)
        if test is not None and test["status"] == "done" and not test["failed_trials"]:
            shutil.rmtree(self.folder.answers(unit), ignore_errors=True)

    def fitter(self, unit: Unit, parts: Parts) -> Fitter:
        """Return what fits a unit's method with given knobs, sharing what its settings and a fold's methods can."""
        method, shared = self.job.fitted[unit.method], []
        if self.found_for != unit[1:]:  # of one fold at a time
            self.found_for, self.findings = unit[1:], Findings()

        def fit(knobs: Mapping[str, Any]) -> Edit:
            # not before the first trial: what fails here is that trial's failure
            if not shared:
                given = (self.findings, self.model, self.tokenizer, parts.train)
                shared.append(method.fitter_with(*given, seed=unit.seed))
            return shared[0](knobs)

        return fit

    def scores(self, unit: Unit, edits: Sequence[Edit], validation: ItemSet[Any]) -> list[dict[str, Any]]:
        """Return what settings are chosen by on the questions for it: the score, the drift, and what came with them."""
        chooser, budgeted = self.job.chooser, self.job.budgeted
        by = [meter for meter in (m.choosing for m in self.job.meters) if meter.instrument == chooser.instrument]
        drift = [m for m in (m.choosing for m in self.job.meters) if m.instrument == budgeted.instrument] or [budgeted]
        meters = [*by, *(meter for meter in drift if meter not in by)]
        scores = []
        for found in self._measured(unit, edits, validation, meters):
            figures = {m.name: summed_up(m, found[i.name]) for i in instruments(meters) for m in i.sums}
            plain = {name: None if f is None else float(f) for name, f in figures.items()}
            scores.append({"score": plain[chooser.name], **plain, "n": len(validation)})
        return scores

    def _measured(
        self, unit: Unit, edits: Sequence[Edit], items: Any, meters: Sequence[Meter]
    ) -> list[dict[str, Measured | None]]:
        kept: Path = self.folder.answers(unit)
        own = [meter.kept_in(kept).with_findings(self.unedited) for meter in meters]
        return measurements_of(self.model, self.tokenizer, items, edits, own, asking=items.asking, seed=unit.seed)

    def last_measurements(
        self, unit: Unit, edits: Sequence[Edit], test: ItemSet[Any], *, n_costed: int | None = None
    ) -> list[dict[str, Any]]:
        """Return edits' records on the test questions: of rows, the columns that meters sum up or show.

        What an edit takes to use is in those of the first `n_costed`; in all if not given.
        """
        found = self._measured(unit, edits, test, self.job.meters)
        records = [self._recorded(edit, one) for edit, one in zip(edits, found, strict=True)]
        for edit, record in zip(edits[:n_costed], records, strict=False):
            record["values"] |= {m.name: m.of(self.model, self.tokenizer, test, edit) for m in USING}
        return records

    def _recorded(self, edit: Edit, found: Mapping[str, Measured | None]) -> dict[str, Any]:
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
        return {"rows": rows, "values": values, "records": records, "edit": edit.describe()}

    def of_the_unedited(self, parts: Parts, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Return what the unedited model's measurement says of the others.

        By instrument the rows that the texts' style gives, learned from all of the training fold; by meter why it can
        tell nothing here.
        """
        ((_, found),) = results.items()
        return {"without_model": self._without_model(parts), "mute": mute_among(self.job.meters, found["rows"])}

    def _without_model(self, parts: Parts) -> dict[str, Any]:
        # facts are chosen on as they are written: both parts are the same
        held = {item.key: item for part in (parts.train, parts.validation) for item in part}
        fold = parts.train.with_items(tuple(held.values()))
        found = {i.name: i.meter.without_model(fold, parts.test) for i in instruments(self.job.meters)}
        return {name: {k: dict(row) for k, row in rows.items()} for name, rows in found.items() if rows is not None}

    def about(self, parts: Parts) -> dict[str, Any]:
        """Return which questions a last measurement rests on."""
        n = {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)}
        return {"n": n, "questions": hash_of([q.asked for q in parts.test])[:16]}
