"""estimate: what a comparison would do and about how long it would take, without doing it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trimtab.cells import table_lines
from trimtab.compare.bench import Bench
from trimtab.compare.design import Job, Unit
from trimtab.compare.record_fields import TEST
from trimtab.compare.records import RunFolder
from trimtab.compare.running import able_to_choose
from trimtab.compare.specification import specification
from trimtab.errors import TrimtabError
from trimtab.evaluate.table import instruments, measurements_of
from trimtab.models.seeds import random_state_kept
from trimtab.progress import tracked
from trimtab.protocols import Edit, Meter

FEW = 12
"""Questions that are fitted on, and measured on, to see what that takes, where no record says so."""
LAST_MEASUREMENTS = 1.5
"""Of the best setting, and of the best one within the KL budget where that is another: in between."""


@dataclass(frozen=True)
class PlanRow:
    """One method's share of the work."""

    method: str
    settings: int
    """Settings tried in a unit, the most that any has."""
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

    Without records a method's first setting is fitted on a few training questions of the first unit and measured on a
    few of its validation questions; what grows with questions is taken to grow in proportion, and what has items of its
    own, such as drift, is timed on the first method alone. Test questions are counted, never shown. A method that
    stands in the folder with other settings counts as missing, since its records would be replaced (`redo_changed`).

    Raises:
        Incompatible: the folder holds something else, or another comparison.
    """
    folder, job = RunFolder(out), able_to_choose(model, tokenizer, job.asked(tokenizer))
    changed, bench = folder.changed(specification(job, model)), _Timing(model, tokenizer, job, folder)
    rows = []
    for name in tracked(list(job.methods), "timing"):
        there = {} if name in changed else _there(folder, job, name)
        units = [unit for unit in job.units if unit.method == name]
        missing = [unit for unit in units if (unit, TEST) not in there]
        share = PlanRow(name, max(map(job.n_tries, units)), len(units), len(missing), 0.0, "finished")
        try:
            rows.append(_timed(bench, share, missing, there) if missing else share)
        except TrimtabError as why:  # the run goes on without a method that fails, and so does its plan
            rows.append(replace(share, basis=f"cannot be timed: {why}"))
            continue
        if name in changed:
            again = "; on disk with other settings: needs --redo-changed"
            rows[-1] = replace(rows[-1], basis=rows[-1].basis + again)
    first = job.parts(_first(job))
    return Plan(tuple(rows), {"train": len(first.train), "choose": len(first.validation), "test": len(first.test)})


def _first(job: Job, method: str = "") -> Unit:
    # that of the main table: a low-data curve begins with too few questions to time anything on
    return Unit(method, 0, job.design.seeds[0], job.design.train_sizes[-1])


def _there(folder: RunFolder, job: Job, name: str) -> dict[tuple[Unit, int | str], dict[str, Any]]:
    units = (unit for unit in job.units if unit.method == name)
    found = {(u, step): folder.read(u, step) for u in units for step in (TEST, *range(job.n_tries(u)))}
    return {place: record for place, record in found.items() if record is not None}


@dataclass
class _Timing(Bench):
    """A bench that times."""

    own: list[tuple[Meter, float]] = field(default_factory=list)
    """Instruments that have items of their own, and what they take."""

    def fit_and_measure(self, name: str) -> tuple[float, float, float, float]:
        """Return about how long it takes what settings share, a fit, a last measurement, and one to choose by."""
        job, parts = self.job, self.job.parts(_first(self.job, name))
        # a prompt may hold more questions, and takes no time to make
        few = parts.train if job.fitted[name].changes_prompt_only else parts.train[:FEW]
        knobs, took = job.search(_first(job, name)).knobs(0, ()), [0.0]
        started = time.perf_counter()
        fit = job.fitted[name].fitter(self.model, self.tokenizer, few)
        # what was not trained is made twice: in the second time nothing is that settings share
        while edit := fit(knobs):
            took.append(time.perf_counter() - started)
            if edit.losses or len(took) > 2:
                break
        each = took[-1] - took[-2]
        shared, each = (seconds * len(parts.train) / len(few) for seconds in (took[1] - each, each))
        last = self.measuring(edit, job.meters, parts.validation, len(parts.test))
        by = [job.chooser] if job.chooser.instrument == job.budgeted.instrument else [job.chooser, job.budgeted]
        return shared, each, last, self.measuring(edit, by, parts.validation, len(parts.validation))

    def measuring(self, edit: Edit, meters: Sequence[Meter], items: Any, n: int) -> float:
        """Return the seconds of measuring n items."""
        seconds, few = 0.0, items[:FEW]
        for _, instrument, _ in instruments(meters):
            known = [took for meter, took in self.own if meter == instrument]
            if known:
                seconds += known[0]
                continue
            started = time.perf_counter()
            (found,) = measurements_of(self.model, self.tokenizer, few, [edit], [instrument], asking=items.asking)
            took = time.perf_counter() - started
            (one,) = found.values()
            if one is not None and list(one.rows) == [item.key for item in few]:
                seconds += took * n / len(few)
            else:
                self.own.append((instrument, took))
                seconds += took
        return seconds


def _timed(bench: _Timing, share: PlanRow, missing: Sequence[Unit], there: Mapping[Any, dict[str, Any]]) -> PlanRow:
    """Return a method's share with the seconds of what is missing."""
    control = bench.job.controls.get(share.method)
    seen = [sum(r["seconds"].values()) for r in there.values() if "seconds" in r]
    with random_state_kept(bench.model), warnings.catch_warnings():
        # few questions on purpose: advice to take more would be about the comparison's own runs
        warnings.simplefilter("ignore")
        shared, fit, last, choosing = bench.fit_and_measure(control.follows if control else share.method)
    left = sum((unit, i) not in there for unit in missing for i in range(bench.job.n_tries(unit)))
    each = sum(seen) / len(seen) if seen else last if control else fit + choosing
    once = shared + fit if control else shared + last * (1 if share.settings == 1 else LAST_MEASUREMENTS)
    basis = f"{len(seen)} trial(s) on disk" if seen else "a few questions timed now"
    return replace(share, seconds=left * each + len(missing) * once, basis=basis)
