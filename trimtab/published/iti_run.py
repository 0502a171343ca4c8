"""Inference-Time Intervention from start to table: fit, choose, measure, with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.activations.captured import HeadActivations
from trimtab.datasets.questions import QuestionSet
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.edits.shifts import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadValue
from trimtab.evaluate.table import Table, pooled, table
from trimtab.probes.head_probes import HeadProbes
from trimtab.probes.logistic import fit_logistic, shuffled
from trimtab.probes.plots import heat_map
from trimtab.protocols import Edit
from trimtab.steer.head_shifts import fit_shift
from trimtab.steer.strength import choose_strength, require_budget, sweep_figure
from trimtab.storage import versions, write_json, written_folder

RUN_KIND = "demo run"
RANDOM = "Random direction"


@dataclass(frozen=True)
class ItiRun:
    """One run: the table on the test questions, and what it was made with."""

    table: Table
    probes: HeadProbes
    shift: HeadShift
    reading: dict[str, float]
    """Accuracies on the test statements: of the head that was best on validation and of all heads' mean, and both
    again for probes whose training and validation labels were shuffled."""
    controls: tuple[HeadShift, ...]
    """The random shifts behind the last row, in the order of its draws."""

    def save(self, path: str | Path) -> None:
        """Write record, shift, probes and pictures to a folder, atomically."""
        with written_folder(path, RUN_KIND) as folder:
            self.shift.save(folder / "shift")
            self.probes.save(folder / "probes")
            heat_map(self.probes, marked=self.shift.heads).savefig(folder / "heads.png", dpi=150)
            sweep_figure(self.shift).savefig(folder / "sweep.png", dpi=150)
            (folder / "table.md").write_text(self.table.to_markdown() + "\n", encoding="utf-8")
            sweep = self.shift.record["sweep"]
            record = {
                "kind": RUN_KIND,
                "versions": versions(),
                **self.table.as_dict(details=True),
                "reading": self.reading,
                "sweep": sweep,
            }
            write_json(folder / "record.json", record)


def iti_run(
    model: Any,
    tokenizer: Any,
    train: QuestionSet,
    validation: QuestionSet,
    test: QuestionSet,
    *,
    top_k: int = 16,
    kl_budget: float | int = 0.1,
    shots: int = 5,
    draws: int = 10,
    seed: int = 0,
    others: Sequence[Edit] = (),
) -> ItiRun:
    """Fit ITI on `train`, choose K and strength on `validation`, and measure on `test` with few-shot and controls.

    Rows: Baseline; Few-shot (`shots` training questions with their best answers); ITI; both; the `others`, such as an
    edit tuned on `train`; and `draws` random directions on ITI's heads with each head's shift of the same norm.

    Raises:
        BadValue: the parts share a question, or there are fewer training questions than shots.
    """
    require_budget(kl_budget)
    parts = {q.key for q in train}, {q.key for q in validation}, {q.key for q in test}
    if len(set().union(*parts)) < sum(map(len, parts)):
        raise BadValue("train, validation and test must not share questions")
    if not 1 <= shots <= len(train):
        raise BadValue(f"{shots} shots asked for; there are {len(train)} training questions, choose 1 to that many")
    acts, held, tested = (capture_heads(model, tokenizer, part.statements()) for part in (train, validation, test))
    probes = fit_logistic(acts, validation=held)
    control = fit_logistic(shuffled(acts, seed=seed), validation=shuffled(held, seed=seed))
    fitted = fit_shift(acts, probes, top_k=top_k)
    shift = choose_strength(model, tokenizer, validation, fitted, kl_budget=kl_budget)
    chosen = np.random.default_rng(seed).permutation(len(train))[:shots]
    few_shot = Prompted(tuple((q.question, q.best_answer) for q in train.select(chosen)))
    edits: list[Edit] = [NoEdit(), few_shot, shift, Stacked((few_shot, shift)), *others]
    rows = table(model, tokenizer, test, edits)
    controls = random_controls(acts, probes, shift, draws, seed=seed)
    drawn = table(model, tokenizer, test, controls).rows if controls else ()
    reading = {**_reading(probes, tested), **{f"shuffled_{k}": v for k, v in _reading(control, tested).items()}}
    setting = {
        **rows.setting,
        "model": shift.record["model"],
        "train": {"n": len(train), "fingerprint": train.fingerprint},
        "validation": {"n": len(validation), "fingerprint": validation.fingerprint},
        "options": {"top_k": top_k, "kl_budget": kl_budget, "shots": shots, "draws": draws, "seed": seed},
    }
    final = Table((*rows.rows, *([pooled(drawn, RANDOM)] if drawn else [])), setting, rows.meters)
    return ItiRun(final, probes, shift, reading, tuple(controls))


def _reading(probes: HeadProbes, statements: HeadActivations) -> dict[str, float]:
    accuracy, best = probes.accuracy_on(statements), probes.top(1)[0]
    return {
        "best_head": float(accuracy[probes.layers.index(best.layer), best.head]),
        "mean_head": float(accuracy.mean()),
    }


def random_controls(
    acts: HeadActivations, probes: HeadProbes, shift: HeadShift, draws: int, *, seed: int = 0
) -> Sequence[HeadShift]:
    """Return shifts on the same heads with the same norm per head in random directions, other ones for every seed."""
    k, first = len(shift.heads), seed * draws
    controls = (fit_shift(acts, probes, top_k=k, direction="random", seed=first + i) for i in range(draws))
    return [c.scaled(shift.strength).renamed(f"{c.name} {first + i}") for i, c in enumerate(controls)]
