"""run: every method fitted, its knobs chosen and its result measured on the same questions by the same meters."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.compare.comparison import Comparison
from trimtab.compare.design import Design, Job, named
from trimtab.compare.records import RunFolder
from trimtab.compare.specification import specification
from trimtab.compare.worker import Worker
from trimtab.datasets.given import Rows, as_items
from trimtab.errors import BadValue
from trimtab.evaluate.table import instruments
from trimtab.models.processes import rank_and_count
from trimtab.progress import tracked
from trimtab.protocols import Control, Edit, Meter, Method

POLL_SECONDS = 2.0


def run(
    model: Any,
    tokenizer: Any,
    questions: Rows,
    methods: Sequence[Method | Edit | Control] | Mapping[str, Method | Edit | Control],
    *,
    test: Rows | None = None,
    meters: Sequence[Meter] | None = None,
    out: str | Path | None = None,
    **design: Any,
) -> Comparison:
    """Return the comparison of methods, each fitted, chosen and measured on the same questions (docs/comparing.md).

    In every fold and under every seed each method tries `trials` of its settings, fitted on the training part and
    scored on the validation part; the best one, and the best one within the KL budget, are measured on the test
    questions, which nothing has seen before. The unedited model is always the first row.

    Args:
        questions: a set, or a list of mappings, or a `datasets.Dataset`; split by question into folds, another split
            for every seed.
        methods: methods, or ready edits, or a mapping that names them.
        test: questions to measure on instead of each fold's held-out part.
        meters: what is measured: those that speak of such questions if not given
            (`trimtab.evaluate.defaults.default_meters`), or a list of them with your own.
        out: run folder; running again does only what is missing. A temporary one if not given.
        design: fields of `Design`: `folds`, `seeds`, `trials` (settings each method may try: the middle of its
            space first, then where the scores so far promise most), `kl_budget`, `choose_by`, `validation`,
            `train_sizes`, `asking`.

    Raises:
        BadValue, BadDataset: the design is impossible on these questions, or the judge does not judge.
        Incompatible: the folder holds something else.
    """
    held = None if test is None else as_items(test)
    job = Job(named(methods), as_items(questions), held, Design(**design), tuple(meters or ()))
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return run_job(model, tokenizer, job, Path(folder) / "run")
    return run_job(model, tokenizer, job, out)


def run_job(
    model: Any,
    tokenizer: Any,
    job: Job,
    out: str | Path,
    *,
    stop_after: float | int | None = None,
    retry_failed: bool = False,
    redo_changed: bool = False,
) -> Comparison:
    """Do what is missing in the run folder and return the comparison as it then stands.

    Several processes may call this on one folder: each claims units that no other has.

    Args:
        stop_after: start no new trial after so many seconds; the rest is left to the next call.
        retry_failed: try again the job's trials that are recorded as failed, and measure their units again.
        redo_changed: do anew the methods whose settings differ from those in the folder.

    Raises:
        BadValue: the judge does not judge, or no meter can choose; the process is one of a launch's.
        Incompatible: the folder holds something else.
    """
    if rank_and_count()[1] > 1:
        # each would claim units of its own, and mix its results with what the others compute at that time
        raise BadValue(
            "a comparison runs in processes that share its folder, not in those of a launch (torchrun, accelerate "
            "launch): start the same command once for each device (CUDA_VISIBLE_DEVICES=0 trimtab compare ...)"
        )
    job = job.asked(tokenizer)
    # a judge that cannot judge would fail every method alike; better to say so before hours of work
    for instrument in instruments(job.meters):
        instrument.meter.try_out(job.questions)
    job = able_to_choose(model, tokenizer, job)
    folder = RunFolder(out)
    folder.open_for(specification(job, model), redo_changed=redo_changed)
    ends = None if stop_after is None else time.monotonic() + stop_after
    worker = Worker(model, tokenizer, job, folder, ends)
    with folder.working(worker.place):
        if retry_failed:
            forget_failures(folder, job)
        _work(worker, job)
    return Comparison.load(out, meters=job.meters)


def able_to_choose(model: Any, tokenizer: Any, job: Job) -> Job:
    """Return the job, its settings chosen by another meter where the one that was to can tell nothing on this model.

    Raises:
        BadValue: no other meter can choose.
    """
    why = job.chooser.mute_on(model, tokenizer, job.questions)
    if why is None:
        return job
    others = [m for m in job.meters if not m.collateral and m.better != "neither"]
    other = next((m.name for m in others if m.instrument != job.chooser.instrument), None)
    if other is None:
        raise BadValue(f"settings cannot be chosen by {job.chooser.heading}: {why}")
    warnings.warn(
        f"{job.chooser.heading} says nothing here: {why}; settings are chosen by {other} instead", stacklevel=3
    )
    return job.chosen_by(other)


def _work(worker: Worker, job: Job) -> None:
    """Do what is missing, and what lacked memory once more when nothing else is left: others may be done by then."""
    for _ in range(2):
        worker.short.clear()
        waiting = [u for u in job.units if not worker.done(u)]
        while waiting and not worker.late:
            for unit in tracked(waiting, "comparing"):
                with worker.folder.claim(unit) as mine:
                    if mine and not worker.late:
                        worker.do(unit)
            waiting = [u for u in waiting if u not in worker.short and not worker.done(u)]
            if waiting and not worker.late:
                time.sleep(POLL_SECONDS)  # another process has them; should it die, its claims come free
        if not worker.short or worker.late:
            break
    if worker.short:
        unit, said = next(iter(worker.short.items()))
        warnings.warn(
            f"{len(worker.short)} measurements were left undone, since other processes had taken the memory "
            f"({unit.method}, fold {unit.fold}, seed {unit.seed}: {said}); run the same command again when there is "
            "more",
            stacklevel=4,
        )


def forget_failures(folder: RunFolder, job: Job) -> int:
    """Delete what failed in the job's units that nobody works on, so that it is done again; return how many records.

    A unit's last measurement goes with its failed trials, and a control's draws with those of the method it follows.
    """
    forgotten = 0
    for unit in job.units:
        with folder.claim(unit) as mine:
            gone = folder.forget(unit, only_failed=True) if mine else 0
        if gone:
            followers = [name for name, control in job.controls.items() if control.follows == unit.method]
            gone += sum(folder.forget(unit._replace(method=name)) for name in followers)
        forgotten += gone
    return forgotten
