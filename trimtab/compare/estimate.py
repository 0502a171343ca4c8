"""estimate: what a comparison would do and about how long it would take, without doing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from trimtab.compare.design import Job, Parts, Unit
from trimtab.compare.rates import FITTED_ON, Fitting, Line, Measuring, fitting, measuring
from trimtab.compare.record_fields import TEST
from trimtab.compare.records import RunFolder
from trimtab.compare.specification import specification
from trimtab.edits.combined import NoEdit
from trimtab.errors import Incompatible, TrimtabError
from trimtab.evaluate.table import only_prompts
from trimtab.models.seeds import random_state_kept
from trimtab.progress import tracked
from trimtab.protocols import Control
from trimtab.report.markdown import table_lines

Read: TypeAlias = Callable[[Unit, int | str], dict[str, Any] | None]
"""Returns the record of a unit's step, as `RunFolder.read` does."""
LAST_MEASUREMENTS = 1.5
"""Of the best setting, and of the best one within the KL budget where that is another: in between."""


@dataclass(frozen=True)
class PlanRow:
    """One method's share of the work."""

    method: str
    settings: int
    """Settings tried in every unit."""
    units: int
    """Folds times seeds times numbers of training questions."""
    missing: int
    """Units whose last measurement is not on disk yet."""
    seconds: float
    """Estimate for what is missing, one process."""
    basis: str
    """What the estimate rests on."""


@dataclass(frozen=True)
class Plan:
    """What a comparison would do."""

    rows: tuple[PlanRow, ...]
    parts: dict[str, int]
    """Questions of one unit of the main table: train, validation, test."""

    @property
    def seconds(self) -> float:
        """The estimate for everything that is missing, one process."""
        return sum(row.seconds for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"rows": [asdict(r) for r in self.rows], "parts": self.parts, "seconds": self.seconds}

    def to_text(self) -> str:
        """Return the plan as a table with its total."""
        heads = ("method", "settings", "units", "missing", "minutes", "estimated from")
        cells = (
            [r.method, *map(str, (r.settings, r.units, r.missing)), f"{r.seconds / 60:.1f}", r.basis] for r in self.rows
        )
        parts = ", ".join(f"{n} to {what} on" for what, n in self.parts.items())
        total = f"About {self.seconds / 60:.0f} minutes of one process; {parts}."
        return "\n".join([*table_lines(heads, cells), "", total])


def estimate(model: Any, tokenizer: Any, job: Job, out: str | Path) -> Plan:
    """Return the plan of a comparison, with times from its own records where there are any.

    Without records every method is fitted on a few training questions and its meters run on a few validation questions,
    each at two sizes, so that what a call costs anyway is told from what grows with questions, texts or optimiser
    steps. Test questions are counted, never shown. A method that stands in the folder with other settings counts as
    missing, since its records would be replaced (`redo_changed`).

    Raises:
        Incompatible: the folder holds something else, or another comparison.
    """
    there = RunFolder(out)
    changed, first, unedited = there.changed(specification(job, model)), _parts(job), None
    rows = []
    for name in tracked(list(job.methods), "timing"):
        read = _nothing if name in changed else there.read
        units = [u for u in job.units if u.method == name]
        missing = [u for u in units if read(u, TEST) is None]
        settings, seconds, basis = job.settings(name), 0.0, "finished"
        if missing:
            with random_state_kept(model):
                unedited = unedited or measuring(model, tokenizer, NoEdit(), first.validation, job.meters)
                try:
                    cost = _Cost.of(model, tokenizer, job, name, unedited)
                except TrimtabError as why:  # the run goes on without a method that fails, and so does its plan
                    rows.append(PlanRow(name, len(settings), len(units), len(missing), 0.0, f"cannot be timed: {why}"))
                    continue
            seen = [t for u in units for t in _trials(read, u, len(settings))]
            seconds = sum(cost.unit(job, u, read, seen) for u in missing)
            basis = f"{len(seen)} trial(s) on disk" if seen else "a few questions timed now"
            basis += "; on disk with other settings: needs --redo-changed" if name in changed else ""
        rows.append(PlanRow(name, len(settings), len(units), len(missing), seconds, basis))
    return Plan(tuple(rows), {"train": len(first.train), "choose": len(first.validation), "test": len(first.test)})


def _parts(job: Job) -> Parts:
    # those of the main table: a low-data curve begins with too few questions to time anything on
    return job.parts(Unit("", 0, job.design.seeds[0], job.design.train_sizes[-1]))


def _nothing(unit: Unit, step: int | str) -> None:
    """Read no record: those of a method that changed would be replaced."""


def _trials(read: Read, unit: Unit, n: int) -> list[dict[str, Any]]:
    try:
        records = [read(unit, i) for i in range(n)]
    except Incompatible:
        return []
    return [r for r in records if r is not None and r["status"] == "done"]


@dataclass(frozen=True)
class _Cost:
    """What one method costs to fit and to measure."""

    fitting: Fitting
    measuring: Measuring
    prompts: bool

    @classmethod
    def of(cls, model: Any, tokenizer: Any, job: Job, name: str, unedited: Measuring) -> _Cost:
        """Time the method; prompts change what answers cost, so that they are timed with the method's own edit."""
        given = job.methods[name]
        # a control costs what fitting the method that it follows costs, and then only its measurements
        fitted = given.follows if isinstance(given, Control) else name
        method: Any = job.methods[fitted]
        knobs, (train, validation, _) = job.settings(fitted)[0], _parts(job)
        fits = fitting(model, tokenizer, method, knobs, train)
        if any(tuned for _, tuned, _ in fits.parts):
            # a tuned model answers about as fast as the model itself; fitting another one would take longer
            return cls(fits, unedited, prompts=False)
        edit = method.fit(model, tokenizer, train[: FITTED_ON[1]], knobs=knobs)
        return cls(fits, measuring(model, tokenizer, edit, validation, job.meters), only_prompts(edit))

    def unit(self, job: Job, unit: Unit, read: Read, seen: list[dict[str, Any]]) -> float:
        """Return the seconds of what is missing of a unit."""
        parts, settings, meters = job.parts(unit), job.settings(unit.method), job.meters
        left = [knobs for number, knobs in enumerate(settings) if read(unit, number) is None]
        choosing, last = meters.neutral()
        both = self.measuring.answer.at(len(parts.test)) + self.measuring.choice.at(len(parts.test))
        once = both + self._drift.at(len(last)) + self.measuring.speed
        control = isinstance(job.methods[unit.method], Control)
        if seen:
            trials = len(left) * sum(sum(t["seconds"].values()) for t in seen) / len(seen)
        elif control:
            trials = self.fitting.seconds(parts.train, {}) + len(left) * once
        else:
            fits = [self.fitting.seconds(parts.train, knobs) for knobs in left]
            score = self.measuring.choice if meters.metric == "mc1" else self.measuring.answer
            each = score.at(len(parts.validation)) + self._drift.at(len(choosing))
            trials = (max(fits, default=0.0) if self.fitting.shared else sum(fits)) + len(left) * each
        if control:
            return trials
        return trials + once * (1 if self.prompts or len(settings) == 1 else LAST_MEASUREMENTS)

    @property
    def _drift(self) -> Line:
        return Line(0.0, 0.0) if self.prompts else self.measuring.drift
