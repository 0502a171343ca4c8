"""Inference-Time Intervention from start to table: fit, choose, measure, with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.activations.captured import HeadActivations
from trimtab.compare.design import Parts
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.edits.vectors import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadValue
from trimtab.evaluate.table import Table, pooled, table
from trimtab.probes.head_probes import HeadProbes
from trimtab.probes.logistic import fit_logistic, shuffled
from trimtab.probes.plots import heat_map
from trimtab.protocols import Edit
from trimtab.steer.fitting import fit_shift
from trimtab.steer.random import RandomDirection
from trimtab.steer.sites import read_sites
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


@dataclass(frozen=True)
class ItiSettings:
    """What `iti_run` is made with."""

    top_k: int = 16
    """Heads to choose among."""
    kl_budget: float | int = 0.1
    """Nats per token that the chosen shift may cost."""
    shots: int = 5
    """Training questions that the few-shot prompt shows."""
    draws: int = 10
    """Random directions of the control."""
    seed: int = 0


def iti_run(
    model: Any, tokenizer: Any, parts: Parts, settings: ItiSettings | None = None, *, others: Sequence[Edit] = ()
) -> ItiRun:
    """Fit ITI on the training part, rank heads and choose K and strength on the validation part, measure on the test.

    Rows: Baseline; Few-shot (training questions with their best answers); ITI; both; the `others`, such as an edit
    tuned on the training part; and random directions on ITI's heads with each head's shift of the same norm.

    Raises:
        BadValue: the parts share a question, or there are fewer training questions than shots.
    """
    settings = settings or ItiSettings()
    train, validation, test = (part.asked_as("auto", tokenizer) for part in parts)
    require_budget(settings.kl_budget)
    keys = [{q.key for q in part} for part in parts]
    if len(set().union(*keys)) < sum(map(len, keys)):
        raise BadValue("train, validation and test must not share questions")
    if not 1 <= settings.shots <= len(train):
        raise BadValue(
            f"{settings.shots} shots asked for; there are {len(train)} training questions, choose 1 to that many"
        )
    seed = settings.seed
    acts, held, probes = read_sites(model, tokenizer, train, validation)
    tested = capture_heads(model, tokenizer, test.statements())
    control = fit_logistic(shuffled(acts, seed=seed), validation=shuffled(held, seed=seed))
    fitted = fit_shift(acts, probes, top_k=settings.top_k)
    shift = choose_strength(model, tokenizer, validation, fitted, kl_budget=settings.kl_budget)
    chosen = np.random.default_rng(seed).permutation(len(train))[: settings.shots]
    few_shot = Prompted(tuple((q.question, q.best_answer) for q in train.select(chosen)))
    edits: list[Edit] = [NoEdit(), few_shot, shift, Stacked((few_shot, shift)), *others]
    rows = table(model, tokenizer, test, edits)
    # every draw is a row of its own before they are pooled, so it needs a name of its own
    before = seed * settings.draws  # other draws for every seed
    drawn = islice(RandomDirection().edits(shift, before + settings.draws, seed=()), before, None)
    controls: Any = tuple(draw.renamed(f"{RANDOM} {number}") for number, draw in enumerate(drawn, before))
    pooled_rows = (pooled(table(model, tokenizer, test, controls).rows, RANDOM),) if controls else ()
    reading = {**_reading(probes, tested), **{f"shuffled_{k}": v for k, v in _reading(control, tested).items()}}
    setting = {
        **rows.setting,
        "model": shift.record["model"],
        "train": {"n": len(train), "fingerprint": train.fingerprint},
        "validation": {"n": len(validation), "fingerprint": validation.fingerprint},
        "options": asdict(settings),
    }
    return ItiRun(replace(rows, rows=rows.rows + pooled_rows, setting=setting), probes, shift, reading, controls)


def _reading(probes: HeadProbes, statements: HeadActivations) -> dict[str, float]:
    accuracy, best = probes.accuracy_on(statements), probes.top(1)[0]
    return {
        "best_head": float(accuracy[probes.layers.index(best.layer), best.head]),
        "mean_head": float(accuracy.mean()),
    }
