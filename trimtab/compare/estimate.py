"""estimate: what a comparison would do and about how long it would take, without doing it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.compare.design import Job, Unit
from trimtab.compare.markdown import table_lines
from trimtab.compare.records import TEST, RunFolder
from trimtab.edits import NoEdit
from trimtab.errors import Incompatible
from trimtab.evaluate import drift, generate_answers, multiple_choice

N_SAMPLED = 4


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
    """Questions of the first unit: train, validation, test."""

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

    Without records the meters are timed on a few questions and texts, and fitting is reckoned from them: a training
    step as three forwards over a statement, as often as the knobs' `epochs` (3 if they name none) say.
    """
    folder, rates = RunFolder(out), _rates(model, tokenizer, job)
    first = job.parts(job.units[0])
    rows = []
    for name in job.methods:
        units = [u for u in job.units if u.method == name]
        missing = [u for u in units if folder.read(u, TEST) is None]
        seen = [t for u in units for t in _trials(folder, u, len(job.settings(name)))]
        settings = job.settings(name)
        if seen:
            trial, basis = float(np.median([sum(t["seconds"].values()) for t in seen])), f"{len(seen)} trial(s) on disk"
        else:
            trial = _trial(rates, job, first, settings[0], tuned=any("learning_rate" in str(k) for k in settings))
            basis = "a few questions timed now"
        last = len(first.test) * (rates["answer"] + rates["choice"]) + len(job.meters.neutral()[1]) * rates["drift"]
        left = sum(sum(folder.read(u, i) is None for i in range(len(settings))) for u in missing)
        rows.append(PlanRow(name, len(settings), len(units), len(missing), left * trial + len(missing) * last, basis))
    return Plan(tuple(rows), {"train": len(first.train), "choose": len(first.validation), "test": len(first.test)})


def _trials(folder: RunFolder, unit: Unit, n: int) -> list[dict[str, Any]]:
    try:
        records = [folder.read(unit, i) for i in range(n)]
    except Incompatible:
        return []
    return [r for r in records if r is not None and r["status"] == "done"]


def _rates(model: Any, tokenizer: Any, job: Job) -> dict[str, float]:
    questions, meters = job.questions[:N_SAMPLED], job.meters

    def timed(work: Any, n: int) -> float:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) / n

    answer = timed(
        lambda: generate_answers(model, tokenizer, questions, judge=meters.judge, max_new_tokens=meters.max_new_tokens),
        len(questions),
    )
    choice = timed(lambda: multiple_choice(model, tokenizer, questions, convention=meters.convention), len(questions))
    texts = meters.neutral()[0][:N_SAMPLED]
    one_forward = timed(lambda: drift(model, tokenizer, NoEdit(), texts=texts), len(texts))
    return {"answer": answer, "choice": choice, "drift": 2 * one_forward, "statement": one_forward / 4}


def _trial(rates: Mapping[str, float], job: Job, parts: Any, knobs: Mapping[str, Any], *, tuned: bool) -> float:
    statements = len(parts.train.statements())
    epochs = float(knobs.get("epochs", 3))
    fitting = statements * rates["statement"] * (3 * epochs / 2 if tuned else 1)
    score = rates["choice"] if job.meters.metric == "mc1" else rates["answer"]
    return fitting + len(parts.validation) * score + len(job.meters.neutral()[0]) * rates["drift"]
