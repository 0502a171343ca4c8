"""A run folder as `trimtab compare` leaves it, of made-up figures: to time reports without hours of comparing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.cli.comparison_methods import rows_of
from trimtab.compare.design import Design, Job, Unit, named
from trimtab.compare.record_fields import TEST
from trimtab.compare.records import RunFolder
from trimtab.compare.specification import specification
from trimtab.datasets import Question, QuestionSet, folklore
from trimtab.evaluate.table import instruments
from trimtab.protocols import settings_of

METHODS = (
    "few-shot",
    "retrieved few-shot",
    "iti",
    "iti probe",
    "caa",
    "lora",
    "ia3",
    "heads",
    "full",
    "random direction",
)
TEXTS = 200
"""Neutral texts that drift was measured on."""


def made_run(folder: Path, model: Any, *, questions: int = 817, methods: Sequence[str] = METHODS) -> Path:
    """Write a finished run of two folds, each measured on so many questions, and return its folder."""
    made = (Question(f"What is {i}?", ("a number",), ("a word",)) for i in range(questions))
    asked = QuestionSet(tuple(made), "made up")
    job = Job(named(rows_of(methods)), folklore(), asked, Design(folds=2, seeds=(0,), trials=6))
    run = RunFolder(folder)
    run.open_for(specification(job, model))
    rng = np.random.default_rng(0)
    for unit in job.units:
        control = unit.method in job.controls
        for step in range(job.n_tries(unit)):
            knobs = {"draw": step} if control else settings_of(job.fitted[unit.method])[step]
            what = {"measured": _measured(job, unit, asked, rng)} if control else {"validation": _validation(job, rng)}
            run.write(unit, step, {"status": "done", "knobs": dict(knobs), "made": _made(unit, rng), **what, **WHERE})
        test = {"status": "done", "n": {"train": 100, "validation": 30, "test": questions}, "failed_trials": []}
        measured = {"measured": {"0": _measured(job, unit, asked, rng)}}
        rest = {"follows": {"method": job.controls[unit.method].follows, "trial": 0}} if control else measured
        run.write(unit, TEST, {**test, "best": 0, "within": 0, **rest, **WHERE})
    return folder


WHERE = {"machine": "made up", "workers": 1}


def _made(unit: Unit, rng: np.random.Generator) -> dict[str, Any]:
    losses = {"losses": rng.random(200).tolist()} if unit.method in ("LoRA", "Full fine-tuning") else {}
    costs = {"trainable_parameters": 64, "bytes_on_disk": 1000, "seconds": 1.0, "peak_bytes": 1000}
    return {**costs, "peak_kind": "process resident", **losses}


def _validation(job: Job, rng: np.random.Generator) -> dict[str, Any]:
    found = {meter.name: float(rng.random()) for meter in job.meters}
    return {"score": found[job.chooser.name], **found, "n": 30}


def _measured(job: Job, unit: Unit, asked: QuestionSet, rng: np.random.Generator) -> dict[str, Any]:
    """Return a last measurement: yes or no for the judged columns, numbers for the others."""
    rows: dict[str, Any] = {}
    for name, instrument, of in instruments(job.meters):
        texts = name == "drift"
        silent = texts and unit.method in job.fitted and job.fitted[unit.method].changes_prompt_only
        items = [str(i) for i in range(TEXTS)] if texts else [q.key for q in asked]
        shown = dict.fromkeys(instrument.shown, "An answer of some ten words, as models of this size say.")
        judged = name == "generated"
        drawn = {c: rng.random(len(items)) for meter in of for c in meter.columns}
        values = {c: [float(x > 0.5) if judged else float(x) for x in column] for c, column in drawn.items()}
        one = {item: {**shown, **{c: values[c][i] for c in values}} for i, item in enumerate(items)}
        rows[name] = None if silent else one
    return {"rows": rows, "values": {"ms_per_token": 10.0}, "records": {}, "edit": {"kind": "made up"}}
