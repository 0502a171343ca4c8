"""Every figure of the published table follows from the per-question rows that lie beside it."""

from __future__ import annotations

import json
import lzma
import re

import numpy as np
import pytest

from tests.repository.source import PACKAGE
from trimtab.compare.statistics import over_draws, spread

RESULTS = PACKAGE.parent / "docs" / "results"
RECORDS = json.loads(lzma.decompress((RESULTS / "comparison.json.xz").read_bytes()))
LINES = re.findall(r"^\| ([^|]+?) \| (.+) \|$", (RESULTS / "README.md").read_text(encoding="utf-8"), re.M)
PRINTED = {name.split(" (60 draws)")[0]: cells.split(" | ") for name, cells in LINES if not name.startswith("---")}
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def true_info(means):
    return means[..., 0] * means[..., 1]


def columns_of(unit, figure):
    """Return (item, column) of one unit's rows, those of digits from 0 to 1."""
    named = {"true_info": ("true", "informative"), "mc1": ("mc1",), "mc2": ("mc2",), "kl": ("kl",)}[figure]
    if any(unit[name] is None for name in named):
        return None
    return np.array([[float(value) for value in unit[name]] for name in named]).T


def interval(row, figure):
    """Return what the row's figure is, with its interval: over questions, or over draws for a control."""
    reduce = true_info if figure == "true_info" else lambda means: means[..., 0]
    units = [(unit["seed"], columns_of(unit, figure)) for unit in row["units"]]
    if not units or units[0][1] is None:
        return None
    if row["control"]:
        return over_draws([seed for seed, _ in units], [float(reduce(c.mean(0))) for _, c in units]).estimate
    values: dict[int, dict[str, list[list[float]]]] = {}
    for seed, columns in units:
        of_seed = values.setdefault(seed, {})
        for i, measured in enumerate(columns):
            of_seed.setdefault(str(i), []).append(list(measured))
    return spread(values, reduce).estimate


def test_the_table_has_the_rows_of_the_record():
    assert [row["name"] for row in RECORDS["rows"]] == [name for name in PRINTED if name]


@pytest.mark.parametrize("row", RECORDS["rows"], ids=lambda row: row["name"])
def test_every_printed_figure_is_that_of_the_rows(row):
    *shares, kl, fitted, _ = PRINTED[row["name"]]
    for figure, cell in zip(("true_info", "mc1", "mc2"), shares, strict=True):
        found, printed = interval(row, figure), [float(n) for n in NUMBER.findall(cell) if n != "-"]
        assert printed == (
            [] if found is None else [round(100 * found, 1), round(100 * found.low), round(100 * found.high)]
        )
    found = interval(row, "kl")
    assert kl == ("-" if found is None else f"{found:.3f}")
    assert fitted == ("-" if row["fitted_numbers"] is None else f"{row['fitted_numbers']:,.0f}")
