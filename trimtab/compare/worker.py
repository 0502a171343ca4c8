"""One process's share of a comparison: trials, the choice among them, and the last measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.compare.bench import Bench, Fitter
from trimtab.compare.design import Parts, Unit
from trimtab.compare.draws import do_control
from trimtab.compare.record_fields import TEST
from trimtab.compare.records import why
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
        """Do the unit's missing trials, then its last measurement; of a control, its draws."""
        if self.done(unit):
            return
        self.crowd = 1
        control = self.job.controls.get(unit.method)
        if control is not None:
            do_control(self, unit, control)
        else:
            self._do_method(unit)

    def _do_method(self, unit: Unit) -> None:
        parts, search = self.job.parts(unit), self.job.search(unit)
        fit, kept = self.fitter(unit, parts), _Kept(self.job.chooser, self.job.design.kl_budget)
        records = []
        for number in range(search.n):
            record = self.folder.read(unit, number)
            if record is None:
                if self.late:
                    return
                knobs = search.knobs([self._tried(record) for record in records])
                record, edit = self._trial(unit, fit, parts, knobs)
                self.write(unit, number, record)
                kept.offer(number, record, edit)
            records.append(record)
        if not self.late:
            self.write(unit, TEST, self._test(unit, fit, parts, records, kept))
            self.tidy(unit)

    def _tried(self, record: Mapping[str, Any]) -> Tried:
        found = record.get("validation", {"score": None, "kl": None})
        better = -1 if self.job.chooser.better == "down" else 1
        score = None if found["score"] is None else better * found["score"]
        return Tried(score, (found["kl"] or 0.0) <= self.job.design.kl_budget)

    def _trial(
        self, unit: Unit, fit: Fitter, parts: Parts, knobs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Edit | None]:
        started = time.perf_counter()
        try:
            with peak_memory(input_device(self.model)) as peak:
                edit = fit(knobs)
            fitted = time.perf_counter()
            scores = self.scores(unit, edit, parts.validation)
        except Exception as mistake:
            return {"status": "failed", "knobs": dict(knobs), "why": why(mistake)}, None
        record = {
            "status": "done",
            "knobs": dict(knobs),
            "validation": scores,
            "made": costs(edit, peak),
            "seconds": {"fit": fitted - started, "measure": time.perf_counter() - fitted},
        }
        return record, edit

    def _test(
        self, unit: Unit, fit: Fitter, parts: Parts, records: Sequence[dict[str, Any]], kept: _Kept
    ) -> dict[str, Any]:
        best, within = (chosen(records, self.job.chooser, budget) for budget in (None, self.job.design.kl_budget))
        if best is None:
            return {"status": "failed", "why": f"every trial failed, the first one with: {records[0]['why']}"}
        results: dict[int, dict[str, Any]] = {}
        try:
            for number in {best, within} - {None}:
                assert number is not None
                edit = kept.edits.get(number) or fit(records[number]["knobs"])
                results[number] = self.last_measurement(unit, edit, parts.test)
                results[number]["refitted"] = number not in kept.edits
        except Exception as mistake:
            return {"status": "failed", "why": f"the last measurement failed: {why(mistake)}"}
        return {
            "status": "done",
            **self.about(parts),
            "best": best,
            "within": within,
            "failed_trials": [r["why"] for r in records if r["status"] == "failed"],
            "measured": {str(number): result for number, result in results.items()},
        }


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
        if edit is None:
            return
        self.edits[number], self.records[number] = edit, record
        numbers, held = list(self.records), list(self.records.values())
        best = (chosen(held, self.chooser, budget) for budget in (None, self.kl_budget))
        wanted = {numbers[i] for i in best if i is not None}
        self.edits = {n: e for n, e in self.edits.items() if n in wanted}
        self.records = {n: r for n, r in self.records.items() if n in wanted}


def chosen(records: Sequence[Mapping[str, Any]], chooser: Meter, kl_budget: float | int | None) -> int | None:
    """Return the trial with the best score (within the budget, if given), or None if there is none.

    Equal scores go to the smaller drift, then to the earlier trial. Prompting has no drift and is within any budget;
    a trial of which the chooser says nothing is not chosen.
    """
    sign = -1 if chooser.better == "down" else 1
    done = [(i, r["validation"]) for i, r in enumerate(records) if r["status"] == "done"]
    within = [
        (sign * found["score"], -(found["kl"] or 0.0), -i)
        for i, found in done
        if found["score"] is not None and (kl_budget is None or (found["kl"] or 0.0) <= kl_budget)
    ]
    return -max(within)[2] if within else None
