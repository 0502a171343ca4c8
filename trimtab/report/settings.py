"""Every setting that was tried, as a table."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from trimtab.cells import MISSING, number, settings_text
from trimtab.compare.run_records import RunRecords

SETTINGS = ("", "setting", "validation score", "KL", "chosen")


def tried(run: RunRecords) -> list[list[str]]:
    """Return one line per method and setting: its mean score and KL on validation, and how often it was chosen."""
    size, lines = run.sizes[-1], []
    for method in run.methods:
        found: dict[str, list[dict[str, Any]]] = {}
        for trial in trials_of(run, method):
            found.setdefault(json.dumps(trial["knobs"], default=str), []).append(trial)
        if len(found) < 2:
            continue
        tests = [t for t in run.of(method, size) if t["status"] == "done"]
        chosen = [json.dumps(run.trial(t, t["best"])["knobs"], default=str) for t in tests]
        known = run.specification.get("grids", {}).get(method)
        of = f"{len(found)} of {known}" if known else str(len(found))
        for place, (knobs, trials) in enumerate(sorted(found.items(), key=lambda item: item[1][0]["step"])):
            lines.append(
                [
                    f"{method} ({of} settings)" if place == 0 else "",
                    settings_text(json.loads(knobs)),
                    _mean([t["validation"]["score"] for t in trials], run.chooser.unit),
                    _mean([t["validation"]["kl"] for t in trials], "nats"),
                    f"{chosen.count(knobs)} of {len(chosen)}",
                ]
            )
    return lines


def _mean(values: list[float | None], unit: str) -> str:
    told = [value for value in values if value is not None]
    return number(float(np.mean(told)), unit) if told else MISSING


def trials_of(run: RunRecords, method: str) -> list[dict[str, Any]]:
    """Return a method's finished trials on all training questions; a control has none, as it chooses nothing."""
    size = run.sizes[-1]
    return [
        t for t in run.trials if (t["method"], t["size"], t["status"]) == (method, size, "done") and "validation" in t
    ]
