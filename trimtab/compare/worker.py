"""One process's share of a comparison: trials, the choice among them, and the last measurement."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from trimtab.compare.design import Job, Parts, Unit, digest
from trimtab.compare.draws import do_control
from trimtab.compare.machine import hardware, place
from trimtab.compare.record_fields import TEST
from trimtab.compare.records import RunFolder, why
from trimtab.datasets.questions import QuestionSet
from trimtab.evaluate.cost import costs, milliseconds_per_token, peak_memory
from trimtab.evaluate.drift import drift
from trimtab.evaluate.generation import generate_answers
from trimtab.evaluate.judges import exact_judge
from trimtab.evaluate.multiple_choice import multiple_choice
from trimtab.evaluate.table import only_prompts, table
from trimtab.models.anatomy import input_device
from trimtab.protocols import Control, Edit

Fitter: TypeAlias = Callable[[Mapping[str, Any]], Edit]


@dataclass
class Worker:
    """One process's share of a comparison."""

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

    def done(self, unit: Unit) -> bool:
        """Return whether the unit's last measurement is on disk."""
        return self.folder.read(unit, TEST) is not None

    def do(self, unit: Unit) -> None:
        """Do the unit's missing trials, then its last measurement; of a control, its draws."""
        if self.done(unit):
            return
        self.crowd = 1
        method = self.job.methods[unit.method]
        if isinstance(method, Control):
            do_control(self, unit, method)
        else:
            self._do_method(unit)

    def _do_method(self, unit: Unit) -> None:
        parts, settings = self.job.parts(unit), self.job.settings(unit.method)
        fit, kept = self.fitter(unit, parts), _Kept(self.job.design.kl_budget)
        records = []
        for number, knobs in enumerate(settings):
            record = self.folder.read(unit, number)
            if record is None:
                if self.late:
                    return
                record, edit = self._trial(unit, fit, parts, knobs)
                self.write(unit, number, record)
                kept.offer(number, record, edit)
            records.append(record)
        if not self.late:
            self.write(unit, TEST, self._measured(unit, fit, parts, records, settings, kept))
            self.tidy(unit)

    def write(self, unit: Unit, step: int | str, record: Mapping[str, Any]) -> None:
        """Write a record with the machine and the most processes that shared it since the unit was begun."""
        self.crowd = max(self.crowd, self.folder.n_working(self.place))
        self.folder.write(unit, step, {**record, "machine": self.machine, "workers": self.crowd})

    def keep(self, unit: Unit) -> Path | None:
        """Return where a unit's answers are kept until they are judged; an exact judge cannot fail on them."""
        return None if self.job.meters.judge is exact_judge else self.folder.answers(unit)

    def tidy(self, unit: Unit) -> None:
        """Delete a unit's kept answers once its records hold them; after a failure they wait for the next try."""
        test = self.folder.read(unit, TEST)
        if test is not None and test["status"] == "done" and not test["failed_trials"]:
            shutil.rmtree(self.folder.answers(unit), ignore_errors=True)

    def fitter(self, unit: Unit, parts: Parts) -> Fitter:
        """Return what fits a unit's method with given knobs, sharing between settings what the method can share."""
        method: Any = self.job.methods[unit.method]
        shared: list[Fitter] = []

        def fit(knobs: Mapping[str, Any]) -> Edit:
            if not hasattr(method, "fitter"):
                return method.fit(self.model, self.tokenizer, parts.train, knobs=knobs, seed=unit.seed)
            if not shared:
                shared.append(method.fitter(self.model, self.tokenizer, parts.train, seed=unit.seed))
            return shared[0](knobs)

        return fit

    def _trial(
        self, unit: Unit, fit: Fitter, parts: Parts, knobs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Edit | None]:
        started = time.perf_counter()
        try:
            with peak_memory(input_device(self.model)) as peak:
                edit = fit(knobs)
            fitted = time.perf_counter()
            scores = self._scores(edit, parts.validation, self.keep(unit))
        except Exception as mistake:
            return {"status": "failed", "knobs": dict(knobs), "why": why(mistake)}, None
        record = {
            "status": "done",
            "knobs": dict(knobs),
            "validation": {**scores, "n": len(parts.validation)},
            "made": costs(edit, peak),
            "seconds": {"fit": fitted - started, "measure": time.perf_counter() - fitted},
        }
        return record, edit

    def _scores(self, edit: Edit, validation: QuestionSet, keep: Path | None) -> dict[str, float | None]:
        meters, arguments = self.job.meters, (self.model, self.tokenizer)
        if meters.metric == "mc1":
            picked = multiple_choice(*arguments, validation, edit, convention=meters.convention)
            scores = {"score": float(picked.mc1), "mc1": float(picked.mc1), "mc2": float(picked.mc2)}
        else:
            said = generate_answers(
                *arguments, validation, edit, judge=meters.judge, max_new_tokens=meters.max_new_tokens, keep=keep
            )
            scores = {"score": float(said.true_info), "true": float(said.true), "info": float(said.informative)}
        if only_prompts(edit):
            return {**scores, "kl": None, "ce": None}
        moved = drift(*arguments, edit, texts=meters.neutral()[0])
        return {**scores, "kl": float(moved.kl), "ce": float(moved.ce)}

    def _measured(
        self,
        unit: Unit,
        fit: Fitter,
        parts: Parts,
        records: Sequence[dict[str, Any]],
        settings: Sequence[Mapping[str, Any]],
        kept: _Kept,
    ) -> dict[str, Any]:
        best, within = chosen(records, None), chosen(records, self.job.design.kl_budget)
        if best is None:
            return {"status": "failed", "why": f"every trial failed, the first one with: {records[0]['why']}"}
        results: dict[int, dict[str, Any]] = {}
        try:
            for number in {best, within} - {None}:
                assert number is not None
                edit = kept.edits.get(number) or fit(settings[number])
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

    def about(self, parts: Parts) -> dict[str, Any]:
        """Return which questions a last measurement rests on."""
        n = {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)}
        return {"n": n, "questions": digest([q.question for q in parts.test])}

    def last_measurement(self, unit: Unit, edit: Edit, test: QuestionSet) -> dict[str, Any]:
        """Return an edit's record on the test questions and the neutral texts of the last measurement."""
        meters, texts = self.job.meters, self.job.meters.neutral()[1]
        row = table(
            self.model,
            self.tokenizer,
            test,
            [edit],
            judge=meters.judge,
            convention=meters.convention,
            texts=texts,
            max_new_tokens=meters.max_new_tokens,
            keep=self.keep(unit),
        ).rows[0]
        choices = {r["question"]: r for r in row.details["multiple_choice"]}
        asked = [q.question for q in test[:3]]
        return {
            "questions": [
                {
                    **{k: said[k] for k in ("question", "answer", "true", "informative", "matched")},
                    "mc1": choices[said["question"]]["mc1"],
                    "mc2": choices[said["question"]]["mc2"],
                }
                for said in row.details["generated"]
            ],
            "drift": row.details["drift"],
            "ms_per_token": milliseconds_per_token(self.model, self.tokenizer, asked, edit),
            "edit": row.edit,
        }


@dataclass
class _Kept:
    """The edits of the best trials so far, so that the last measurement need not make them again."""

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
        wanted = {numbers[i] for b in (None, self.kl_budget) if (i := chosen(held, b)) is not None}
        self.edits = {n: e for n, e in self.edits.items() if n in wanted}
        self.records = {n: r for n, r in self.records.items() if n in wanted}


def chosen(records: Sequence[Mapping[str, Any]], kl_budget: float | int | None) -> int | None:
    """Return the trial with the highest score (within the budget, if given), or None if there is none.

    Equal scores go to the smaller drift, then to the earlier trial. Prompting has no drift and is within any budget.
    """
    within = [
        (r["validation"]["score"], -(r["validation"]["kl"] or 0.0), -i)
        for i, r in enumerate(records)
        if r["status"] == "done" and (kl_budget is None or (r["validation"]["kl"] or 0.0) <= kl_budget)
    ]
    return -max(within)[2] if within else None
