"""A control's share of a comparison: its draws, each measured as it is made, and their summary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from trimtab.compare.bench import TOGETHER, Bench, each
from trimtab.compare.design import Unit
from trimtab.compare.record_fields import TEST
from trimtab.evaluate.cost import Peak, costs
from trimtab.protocols import Control


def do_control(bench: Bench, unit: Unit, control: Control) -> None:
    """Do a control's missing draws, then its summary; do nothing while the followed method has no last measurement.

    Nothing is chosen among the draws, so each is measured on the test questions at once, in a record of its own.
    """
    followed = unit._replace(method=control.follows)
    theirs = bench.folder.read(followed, TEST)
    if theirs is None:
        return
    if theirs["status"] == "failed":
        reason = f"{control.follows}, whose setting it takes, failed here: {theirs['why']}"
        bench.write(unit, TEST, {"status": "failed", "why": reason})
        return
    trial = bench.folder.read(followed, theirs["best"])
    assert trial is not None, f"{followed} has a measurement but not its trial"
    parts = bench.job.parts(unit)
    # where another process, or a call before this one, chose it, it is made again: the same
    make = cache(lambda: bench.chosen.get(followed) or bench.fitter(followed, parts)(trial["knobs"]))

    def drawn(numbers: list[int]) -> list[dict[str, Any]]:
        started = time.perf_counter()
        every = [*control.edits(make(), numbers[-1] + 1, seed=(unit.seed, unit.fold))]
        edits, made = [every[number] for number in numbers], time.perf_counter()
        # they all cost the same to use
        found, n = bench.last_measurements(unit, edits, parts.test, n_costed=1), len(numbers)
        seconds = {"fit": (made - started) / n, "measure": (time.perf_counter() - made) / n}
        return [
            {"status": "done", "made": costs(edit, Peak()), "seconds": seconds, "measured": one}
            for edit, one in zip(edits, found, strict=True)
        ]

    records = {number: bench.folder.read(unit, number) for number in range(control.draws)}
    missing = [number for number, record in records.items() if record is None]
    for start in range(0, len(missing), TOGETHER):
        if bench.late:
            return
        numbers = missing[start : start + TOGETHER]
        for number, said in zip(numbers, each(drawn, numbers, partial(bench.why, unit)), strict=True):
            if said is None:
                continue
            found = {"status": "failed", "why": said} if isinstance(said, str) else said
            record = records[number] = {"knobs": {**trial["knobs"], "draw": number}, **found}
            bench.write(unit, number, record)
    done = [record for record in records.values() if record is not None]
    if len(done) < len(records):
        return
    bench.write(unit, TEST, _summary(bench.about(parts), done, {"method": control.follows, "trial": theirs["best"]}))
    bench.tidy(unit)


def _summary(about: dict[str, Any], records: Sequence[dict[str, Any]], follows: dict[str, Any]) -> dict[str, Any]:
    failed = [r["why"] for r in records if r["status"] == "failed"]
    if len(failed) == len(records):
        return {"status": "failed", "why": f"every draw failed, the first one with: {failed[0]}"}
    first = next(number for number, r in enumerate(records) if r["status"] == "done")
    return {"status": "done", **about, "follows": follows, "best": first, "within": first, "failed_trials": failed}
