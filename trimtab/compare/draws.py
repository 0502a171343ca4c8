"""A control's share of a comparison: its draws, each measured as it is made, and their summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from trimtab.compare.bench import Bench
from trimtab.compare.design import Parts, Unit
from trimtab.compare.record_fields import TEST
from trimtab.compare.records import why
from trimtab.evaluate.cost import Peak, costs
from trimtab.protocols import Control, Edit


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
    parts, records = bench.job.parts(unit), []
    make = cache(partial(bench.fitter(followed, parts), trial["knobs"]))
    for number in range(control.draws):
        record = bench.folder.read(unit, number)
        if record is None:
            if bench.late:
                return
            record = {"knobs": {**trial["knobs"], "draw": number}}
            record |= _drawn(
                bench, unit, parts, lambda n=number: [*control.edits(make(), n + 1, seed=(unit.seed, unit.fold))][n]
            )
            bench.write(unit, number, record)
        records.append(record)
    bench.write(unit, TEST, _summary(bench.about(parts), records, {"method": control.follows, "trial": theirs["best"]}))
    bench.tidy(unit)


def _drawn(bench: Bench, unit: Unit, parts: Parts, make: Callable[[], Edit]) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        edit = make()
        made = time.perf_counter()
        found = bench.last_measurement(unit, edit, parts.test)
    except Exception as mistake:
        return {"status": "failed", "why": why(mistake)}
    seconds = {"fit": made - started, "measure": time.perf_counter() - made}
    return {"status": "done", "made": costs(edit, Peak()), "seconds": seconds, "measured": found}


def _summary(about: dict[str, Any], records: Sequence[dict[str, Any]], follows: dict[str, Any]) -> dict[str, Any]:
    failed = [r["why"] for r in records if r["status"] == "failed"]
    if len(failed) == len(records):
        return {"status": "failed", "why": f"every draw failed, the first one with: {failed[0]}"}
    first = next(number for number, r in enumerate(records) if r["status"] == "done")
    return {"status": "done", **about, "follows": follows, "best": first, "within": first, "failed_trials": failed}
