"""One process's share of a comparison: trials, the choice among them, and the last measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from trimtab.compare.bench import TOGETHER, Bench, Fitter, each
from trimtab.compare.design import BASELINE, Parts, Unit
from trimtab.compare.draws import do_control
from trimtab.compare.record_fields import TEST
from trimtab.compare.search import Tried
from trimtab.evaluate.cost import costs, peak_memory
from trimtab.models.anatomy import input_device
from trimtab.protocols import Edit, Meter


class Worker(Bench):
    """One process's share of a comparison."""

    def done(self, unit: Unit) -> bool:
        """Return whether the unit's last measurement is on disk."""
        return self.folder.read(unit, TEST) is not None

    def do(self, unit: Unit) -> None:
        """Do the unit's missing trials, then its last measurement; of a control, its draws.

        Where other processes have taken the memory it is left undone, and `short` says so; so is a control of it.
        """
        if self.done(unit):
            return
        self.crowd = 1
        control = self.job.controls.get(unit.method)
        if control is None:
            self._do_method(unit)
        elif (followed := unit._replace(method=control.follows)) in self.short:
            self.short[unit] = self.short[followed]
        else:
            do_control(self, unit, control)
        torch.cuda.empty_cache()  # what stands by here, others lack

    def _do_method(self, unit: Unit) -> None:
        parts, search = self.job.parts(unit), self.job.search(unit)
        fit, kept = self.fitter(unit, parts), _Kept(self.job.chooser, self.job.design.kl_budget)
        records = {number: self.folder.read(unit, number) for number in range(search.n)}
        waiting: list[_Fitted] = []
        for number in range(search.n):
            if records[number] is not None:
                continue
            if self.late or unit in self.short:
                break
            if waiting and not search.decided(number):
                self._tried(unit, waiting, parts, records, kept)
                waiting = []
            knobs = search.knobs(number, [self._known(record) for record in records.values() if record is not None])
            waiting.append(self._fitted(unit, fit, number, knobs))
            together = number + 1 < search.n and search.decided(number + 1) and not _alone(waiting[-1].edit)
            if len(waiting) < TOGETHER and together:
                continue
            self._tried(unit, waiting, parts, records, kept)
            waiting = []
        self._tried(unit, waiting, parts, records, kept)
        done = [record for record in records.values() if record is not None]
        if len(done) == search.n and not self.late:
            found = self._test(unit, fit, parts, done, kept)
            if found is not None:
                self.write(unit, TEST, found)
                self.tidy(unit)

    def _known(self, record: Mapping[str, Any]) -> Tried:
        found = record.get("validation", {"score": None, "kl": None})
        score = None if found["score"] is None else self.job.chooser.sign * found["score"]
        return Tried(record["knobs"], score, (found["kl"] or 0.0) <= self.job.design.kl_budget)

    def _fitted(self, unit: Unit, fit: Fitter, number: int, knobs: Mapping[str, Any]) -> _Fitted:
        started = time.perf_counter()
        try:
            with peak_memory(input_device(self.model)) as peak:
                edit = fit(knobs)
        except Exception as mistake:
            return _Fitted(number, knobs, None, self.why(unit, mistake))
        return _Fitted(number, knobs, edit, None, costs(edit, peak), time.perf_counter() - started)

    def _tried(
        self,
        unit: Unit,
        fitted: Sequence[_Fitted],
        parts: Parts,
        records: dict[int, dict[str, Any] | None],
        kept: _Kept,
    ) -> None:
        """Measure what was fitted on the validation questions, and write a record of each trial."""

        def measured(edits: list[Edit]) -> list[dict[str, Any]]:
            started = time.perf_counter()
            scores = self.scores(unit, edits, parts.validation)
            seconds = (time.perf_counter() - started) / len(edits)
            return [{"validation": one, "measure": seconds} for one in scores]

        edits = [one.edit for one in fitted if one.edit is not None]
        found = iter(each(measured, edits, partial(self.why, unit)) if edits else ())
        for one in fitted:
            said = one.failed if one.edit is None else next(found)
            if said is None:
                continue
            record = {"status": "failed", "knobs": dict(one.knobs)}
            if isinstance(said, str):
                record |= {"why": said}
            else:
                seconds = {"fit": one.seconds, "measure": said["measure"]}
                record |= {"status": "done", "validation": said["validation"], "made": one.made, "seconds": seconds}
            self.write(unit, one.number, record)
            records[one.number] = record
            kept.offer(one.number, record, one.edit)

    def _test(
        self, unit: Unit, fit: Fitter, parts: Parts, records: Sequence[dict[str, Any]], kept: _Kept
    ) -> dict[str, Any] | None:
        best, within = (chosen(records, self.job.chooser, budget) for budget in (None, self.job.design.kl_budget))
        if best is None:
            return {"status": "failed", "why": f"every trial failed, the first one with: {records[0]['why']}"}
        numbers = sorted({best, within} - {None})
        results: dict[int, dict[str, Any]] = {}
        try:
            edits = [kept.edits.get(number) or fit(records[number]["knobs"]) for number in numbers]
            if any(control.follows == unit.method for control in self.job.controls.values()):
                self.chosen[unit] = edits[numbers.index(best)]
            for number, found in zip(numbers, self.last_measurements(unit, edits, parts.test), strict=True):
                results[number] = {**found, "refitted": number not in kept.edits}
        except Exception as mistake:
            said = self.why(unit, mistake)
            return None if said is None else {"status": "failed", "why": f"the last measurement failed: {said}"}
        alone = self.of_the_unedited(parts, results) if unit.method == BASELINE else {}
        return {
            "status": "done",
            **self.about(parts),
            **alone,
            "best": best,
            "within": within,
            "failed_trials": [r["why"] for r in records if r["status"] == "failed"],
            "measured": {str(number): result for number, result in results.items()},
        }


class _Fitted(NamedTuple):
    """A trial that waits to be measured, or why its edit could not be made."""

    number: int
    knobs: Mapping[str, Any]
    edit: Edit | None
    failed: str | None
    """None with no edit: memory was lacking, and the trial is left undone."""
    made: Mapping[str, Any] = {}
    seconds: float = 0.0


def _alone(edit: Edit | None) -> bool:
    """Return whether an edit is measured at once: one that was trained took long to make, or holds a model."""
    return edit is not None and (edit.replaces_model or bool(edit.losses))


@dataclass
class _Kept:
    """The edits of the best trials so far, so that the last measurement need not make them again."""

    chooser: Meter
    kl_budget: float | int

    def __post_init__(self) -> None:
        self.edits: dict[int, Edit] = {}
        self.records: dict[int, dict[str, Any]] = {}

    def offer(self, number: int, record: dict[str, Any], edit: Edit | None) -> None:
        """Keep the edit if it is the best so far, or the best so far within the budget."""
        if edit is None or record["status"] == "failed":
            return
        self.edits[number], self.records[number] = edit, record
        numbers, held = list(self.records), list(self.records.values())
        best = (chosen(held, self.chooser, budget) for budget in (None, self.kl_budget))
        wanted = {numbers[i] for i in best if i is not None}
        self.edits = {n: e for n, e in self.edits.items() if n in wanted}
        self.records = {n: r for n, r in self.records.items() if n in wanted}


def chosen(records: Sequence[Mapping[str, Any]], chooser: Meter, kl_budget: float | int | None) -> int | None:
    """Return the trial with the best score (within the budget, if given), or None if there is none.

    Equal scores go to the smaller drift, then to the earlier trial. A trial of which the chooser says nothing is not
    chosen.
    """
    done = [(i, r["validation"]) for i, r in enumerate(records) if r["status"] == "done"]
    within = [
        (chooser.sign * found["score"], -(found["kl"] or 0.0), -i)
        for i, found in done
        if found["score"] is not None and (kl_budget is None or (found["kl"] or 0.0) <= kl_budget)
    ]
    return -max(within)[2] if within else None
