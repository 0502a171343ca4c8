"""What the published records hold, and what their pages print of it."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from tests.repository.source import PACKAGE
from trimtab.cells import figure
from trimtab.compare.comparison import Comparison
from trimtab.intervals import bootstrap

RESULTS = PACKAGE.parent / "docs" / "results"


def program(name):
    """Return a module of benchmarks/."""
    spec = importlib.util.spec_from_file_location(f"trimtab_{name}", PACKAGE.parent / "benchmarks" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def packed_run(name):
    """Return the run of a packed record."""
    with tempfile.TemporaryDirectory() as folder:
        program("packed").unpack(RESULTS / f"{name}.json.xz", Path(folder) / "run")
        return Comparison.load(Path(folder) / "run")


def smollm2(name):
    """Return the run of a record of a GPU's comparison."""
    return packed_run(f"smollm2_{name}")


def tables(text):
    """Return the tables of a text as lists of rows of cells, the headings first."""
    found, last = [], ""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            found += [] if last.startswith("|") else [[]]
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        last = line
    return found


def table_of(page, heading):
    """Return row -> column -> cell of a page's table that has a column of this heading."""
    (table,) = (t for t in tables((RESULTS / page).read_text(encoding="utf-8")) if heading in t[0])
    return {name: dict(zip(table[0][1:], cells, strict=True)) for name, *cells in table[1:]}


def cells_of(text):
    """Return (row, heading) -> cell of the tables about all training questions."""
    whole = text.partition("\n## Settings tried")[0]
    found = {}
    for heads, *rows in tables(re.sub(r"\n## \d+ training questions.*", "", whole, flags=re.DOTALL)):
        found |= {(name, head): cell for name, *cells in rows for head, cell in zip(heads[1:], cells, strict=True)}
    return found


def printed_in(page, heading=""):
    """Return the lines of a page (from a heading to the next of its rank) that a record must have made."""
    text = (RESULTS / page).read_text(encoding="utf-8")
    text = text.partition(heading)[2].partition("\n## ")[0] if heading else text
    return [line for line in text.splitlines() if line.startswith(("|", "- ", "SmolLM2-135M-Instruct.", "smollm2 on"))]


def answers_of(run, method, instrument, columns):
    """Return (question, columns) -> values of a method's best settings, one list for each measurement."""
    found: dict[str, list[list[float]]] = {}
    for unit in (t for t in run.of(method, run.sizes[-1]) if t["status"] == "done"):
        for question, row in unit["measured"][str(unit["best"])]["rows"][instrument].items():
            found.setdefault(question, []).append([float(row[column]) for column in columns])
    return found


def style_of(run):
    """Return question -> how often a classifier of the answers' words and length picks right, over the seeds."""
    style: dict[str, list[float]] = {}
    for unit in run.tests:
        for question, row in (unit.get("without_model") or {}).get("multiple_choice", {}).items():
            style.setdefault(question, []).append(row["mc1"])
    return {question: float(np.mean(values)) for question, values in style.items()}


def by_style(run, style):
    """Return lines: what MC1 gains where the answers' style alone picks right, where not, and the difference."""
    gains, lines = {m: gain(run, m) for m in run.methods if m != "Baseline"}, []
    for method, gained in gains.items():
        right = np.array([float(style[q] > 0.5) for q in gained])
        value = np.array([*gained.values()])
        parts = np.stack([value * right, right, value * (1 - right), 1 - right], axis=1)
        found = [
            bootstrap(value[right == 1][:, None]),
            bootstrap(value[right == 0][:, None]),
            bootstrap(parts, lambda mean: mean[..., 0] / mean[..., 1] - mean[..., 2] / mean[..., 3]),
        ]
        lines.append(f"| {method} | {' | '.join(figure(f, 'share', signed=True) for f in found)} |")
    return lines


def gain(run, method):
    """Return question -> MC1 under a method's best settings less the unedited model's, means of its measurements."""
    own, plain = (answers_of(run, m, "multiple_choice", ["mc1"]) for m in (method, "Baseline"))
    return {q: float(np.mean(own[q]) - np.mean(plain[q])) for q in own}
