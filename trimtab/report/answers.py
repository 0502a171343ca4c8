"""Test items with what the unedited model says of them and what edited ones say, out of a run's records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from trimtab.cells import number, unit_words
from trimtab.compare.comparison import Comparison
from trimtab.compare.design import BASELINE
from trimtab.compare.rows import ResultRow
from trimtab.protocols import Meter
from trimtab.report import verdict

N_ANSWERS = 6


class Answer(NamedTuple):
    """What one row's model says of an item."""

    name: str
    text: str
    mark: str
    """`"true"` or `"false"` as its share of what is to be gained counts; empty where answers have none."""
    figure: str
    """What is counted in it, where that is no share."""


class AnsweredItem(NamedTuple):
    """A test item with answers."""

    item: str
    first: list[Answer]
    """Of the unedited model and of the leading row."""
    others: list[Answer]


def answered_items(run: Comparison, rows: Sequence[ResultRow], n: int = N_ANSWERS) -> list[AnsweredItem]:
    """Return n test items of one fold and seed, first those on which the leading row moved, either way.

    What is said is the first column that a meter shows. A run without such a meter, or published without what was said,
    has none.
    """
    shown = {m["name"]: m["shown"][0] for m in run.specification["meters"] if m["shown"]}
    meter = next((m for m in run.summed if m.name in shown), None)
    base = [t for t in run.of(BASELINE, run.sizes[-1]) if t["status"] == "done"]
    if not base or meter is None:
        return []
    column = shown[meter.name]
    columns: dict[str, Any] = {}
    for row in (r for r in rows if r.variant == "best"):
        # the same fold and seed for all: a method that failed in it has no column
        for test in run.of(row.method, row.size):
            if test["status"] == "done" and all(test[key] == base[0][key] for key in ("fold", "seed")):
                cells = run.measurements(test, "best")[0]["rows"].get(run.instrument(meter)) or {}
                columns[row.method] = {item: cell for item, cell in cells.items() if column in cell}
    first = verdict.leading(run, rows)
    moved = first and (d := first.differences.get(run.main.name)) and d.moved
    ahead = [BASELINE, *([first.method] if first and first.method in columns else [])]

    def said(names: Sequence[str], item: str) -> list[Answer]:
        cells = ((name, columns[name][item]) for name in names if item in columns[name])
        return [Answer(name, cell[column], *_mark(meter, cell)) for name, cell in cells]

    # what moved over all seeds may not have in this one
    here = {item for item in columns[BASELINE] if len({answer.mark or answer.text for answer in said(ahead, item)}) > 1}
    right, wrong = ([i for i in way if i in here] for way in (moved.right, moved.wrong)) if moved else ([], [])
    items = [*dict.fromkeys([*right[: (n + 1) // 2], *wrong[: n // 3], *columns[BASELINE]])][:n]

    others = [name for name in columns if name not in ahead]
    return [AnsweredItem(item, said(ahead, item), said(others, item)) for item in items]


def _mark(meter: Meter, cell: dict[str, Any]) -> tuple[str, str]:
    value = cell[meter.columns[0]]
    if meter.collateral:
        return "", ""
    if meter.unit == "share":
        return ("true" if value >= 0.5 else "false"), ""
    return "", f"{meter.heading} {number(value, meter.unit)} {unit_words(meter.unit)}"
