"""report: a run as one HTML file that opens offline, and as Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cells import MISSING, number
from trimtab.compare.comparison import Comparison
from trimtab.compare.rows import ResultRow
from trimtab.report import charts, verdict
from trimtab.report import markdown as text
from trimtab.report.answers import answered_items
from trimtab.report.knobs import knobs_figure
from trimtab.report.settings import SETTINGS, TRIES, expected_best, tried

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = ("chosen settings", "setting", TRIES[2], TRIES[3])
"""Headings of columns that hold words rather than figures."""


def write_report(comparison: Comparison, folder: str | Path, *, title: str = "Comparison") -> list[Path]:
    """Write `report.html` and `report.md` to a folder and return their paths; a half-finished run is marked as such."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page, lines = folder / "report.html", folder / "report.md"
    page.write_text(to_html(comparison, title=title), encoding="utf-8")
    lines.write_text(text.to_markdown(comparison, title=title), encoding="utf-8")
    return [page, lines]


def to_html(comparison: Comparison, *, title: str = "Comparison") -> str:
    """Return one page with everything in it: no scripts, no requests, pictures as SVG."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    rows, run = text.rows_shown(comparison, comparison.sizes[-1]), comparison
    environment = Environment(
        loader=PackageLoader("trimtab.report"), autoescape=True, finalize=_printable, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    # the interval goes below its mean, so that columns stay narrow
    environment.filters["halves"] = lambda cell: cell.partition(" [") if " [" in cell else (cell, "", "")
    drawn = [row for row in rows if row.metrics[run.main.name] is not None]
    pictures = {
        "effect": drawn and charts.effect_figure(drawn, run.main, run.control_of),
        "intervals": drawn and charts.intervals_figure(rows, run.main),
        "pareto": drawn and charts.pareto_figure(rows, run.main),
        "low_data": charts.low_data_figure(run),
        "knobs": knobs_figure(run),
        "losses": charts.losses_figure(run),
        "heads": charts.heads_figure(run),
    }
    return environment.get_template("page.html").render(
        title=title,
        about=verdict.about(run),
        warnings=verdict.warnings_of(run),
        conclusions=verdict.conclusions(run),
        by_the_chooser=verdict.by_the_chooser(run),
        chooser=run.chooser.heading,
        numbered=[row.name for row in drawn],
        main=run.main.heading,
        status=text.status(run),
        finished=run.finished,
        words=WORDS,
        quality=_table(text.quality_headings(run), text.quality_rows(run, run.sizes[-1])),
        broken=_table(text.broken_headings(run), (text.broken_cells(r, run) for r in rows)),
        moved=_moved(run, rows),
        expected=_table(TRIES, expected_best(run)),
        differences=_table(
            text.difference_headings(run), (text.difference_cells(r, run) for r in rows if r.differences)
        ),
        costs=_table(text.cost_headings(run), (text.cost_cells(r, run) for r in rows)),
        tried=_table(SETTINGS, tried(run)),
        low_data=_low_data(run),
        answers=answered_items(run, rows),
        pictures={name: figure and svg(figure) for name, figure in pictures.items()},
        terms={term: run.worded(meaning) for term, meaning in text.HOW_TO_READ.items()},
        notes=text.notes(run),
        caveats=[run.worded(caveat) for caveat in text.CAVEATS],
        items=run.worded("questions"),
        facts={**text.facts(run), **text.methods_in_words(run)},
    )


def svg(figure: Figure) -> str:
    """Return the figure as an SVG element with text as text."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "trimtab"}):
        # laid out here: `savefig` would draw the whole figure once more for that
        FigureCanvasSVG(figure)
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
            figure.set_layout_engine(None)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().split("?>", 1)[1].split('dtd">', 1)[-1].strip()


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> dict[str, Any]:
    return {"heads": list(heads), "rows": [list(row) for row in rows]}


def _low_data(run: Comparison) -> dict[str, Any] | None:
    """Return the main figure of every method at every number of training questions as a table."""
    if len(run.sizes) < 2:
        return None
    found: dict[str, dict[int | None, str]] = {}
    for size in run.sizes:
        for row in (r for r in run.rows(size) if r.variant == "best"):
            found.setdefault(row.method, {})[size] = text.spread_text(row.metrics[run.main.name], run.main)
    heads = (run.main.heading, *("all" if size is None else str(size) for size in run.sizes))
    return _table(heads, ([m, *(found[m].get(size, MISSING) for size in run.sizes)] for m in run.methods))


def _moved(run: Comparison, rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Return of every tested row the questions that it answers better, and worse, than the unedited model."""
    found = []
    for row in rows:
        moved = (d := row.differences.get(run.main.name)) and d.moved
        if moved:
            right, wrong, still = (number(share, "share", brief=True) for share in moved.shares)
            shares = f"{right} % the right way, {wrong} % the wrong way, {still} % not at all"
            found.append({"name": row.name, "shares": shares, "right": moved.right, "wrong": moved.wrong})
    return found


def _printable(value: Any) -> Any:
    # models say control characters at times, which no HTML page may hold
    return value if not isinstance(value, str) or hasattr(value, "__html__") else "".join(
        c if c.isprintable() or c in "\n " else "\N{REPLACEMENT CHARACTER}" for c in value
    )  # fmt: skip
