"""report: a run as one HTML file that opens offline, and as Markdown."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compare.comparison import Comparison
from trimtab.compare.design import BASELINE
from trimtab.compare.rows import ResultRow
from trimtab.report import charts
from trimtab.report.knobs import SETTINGS, knobs_figure, tried
from trimtab.report.markdown import (
    CAVEATS,
    COSTS,
    DIFFERENCES,
    HOW_TO_READ,
    QUALITY,
    cost_cells,
    difference_cells,
    facts,
    notes,
    quality_cells,
    status,
    to_markdown,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_ANSWERS = 12
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1360px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0.2rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #ccc; padding-bottom: 0.2rem; }
.scroll { overflow-x: auto; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 13px; margin: 0.8rem 0; }
th, td { text-align: right; padding: 0.3rem 0.4rem; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
td { white-space: nowrap; } th.words, td.words { text-align: left; white-space: normal; }
th { background: #f3f3f3; }
th:first-child, td:first-child { text-align: left; font-weight: 600; white-space: normal; min-width: 9em; }
th:first-child, td:first-child { position: sticky; left: 0; }
td:first-child { background: white; }
td small { color: #555; display: block; font-size: 11px; white-space: nowrap; }
table.text td, table.text th { text-align: left; font-weight: 400; white-space: normal; min-width: 8rem; }
table.text td:first-child { font-weight: 600; }
.true::before { content: "✓ "; color: #0072B2; font-weight: 700; }
.false::before { content: "✗ "; color: #D55E00; font-weight: 700; }
.status { padding: 0.5rem 0.8rem; border-left: 5px solid #0072B2; background: #eef5fa; }
.status.open { border-color: #D55E00; background: #fdf1ea; font-weight: 600; }
figcaption, .terms { color: #444; font-size: 13px; } figure { margin: 1rem 0; }
figcaption, ul { max-width: 1000px; }
"""


def write_report(comparison: Comparison, folder: str | Path, *, title: str = "Editing against tuning") -> list[Path]:
    """Write `report.html` and `report.md` to a folder and return their paths; a half-finished run is marked as such."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page, text = folder / "report.html", folder / "report.md"
    page.write_text(to_html(comparison, title=title), encoding="utf-8")
    text.write_text(to_markdown(comparison, title=title), encoding="utf-8")
    return [page, text]


def to_html(comparison: Comparison, *, title: str = "Editing against tuning") -> str:
    """Return one page with everything in it: no scripts, no requests, pictures as SVG."""
    rows = comparison.rows(comparison.sizes[-1])
    mark = "" if comparison.finished else " open"
    parts = [
        f"<h1>{_safe(title)}</h1>",
        f'<p class="status{mark}">{_safe(status(comparison))}</p>',
        "<h2>What it does</h2>",
        _table(QUALITY, map(quality_cells, rows)),
        _terms(HOW_TO_READ),
        _picture(
            charts.intervals_figure(rows),
            "Bars: 95 % intervals over questions, a control's over its draws (grey ticks). Dashed: the unedited model. "
            "Filled: best settings. Hollow: best within the KL budget.",
        ),
        "<h2>Against the unedited model</h2>",
        _table(DIFFERENCES, (difference_cells(r) for r in rows if r.differences)),
        "<h2>What it costs</h2>",
        _table(COSTS, map(cost_cells, rows)),
        _picture(
            charts.pareto_figure(rows), "The grey line goes through the rows that no other row beats on both axes."
        ),
        _section("Few training questions", charts.low_data_figure(comparison), "Bands: 95 % intervals over questions."),
        *_low_data(comparison),
        _section(
            "Knobs",
            knobs_figure(comparison),
            "Every trial's validation score (blue circles: mean, dots: folds and seeds) and KL (orange squares, right "
            "axis, the same in all panels). "
            "Lines join settings that differ in this knob alone; 'never alone': no two tried settings do, so that the "
            "panel says nothing about the knob itself.",
        ),
        *_tried(comparison),
        _section(
            "Loss curves",
            charts.losses_figure(comparison),
            "The chosen trials: mean over folds and seeds, and their range.",
        ),
        _section(
            "Heads",
            charts.heads_figure(comparison),
            "Where the probes of ITI's rows read on held-out questions (50 %: chance), averaged over their fits; "
            "numbers: how often each head was shifted.",
        ),
        *_answers(comparison, rows),
        "<h2>Notes</h2>",
        _list(notes(comparison)),
        "<h2>Caveats</h2>",
        _list(CAVEATS),
        "<h2>What was run</h2>",
        _facts(comparison),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_safe(title)}</title>'
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def svg(figure: Figure) -> str:
    """Return the figure as an SVG element with text as text."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "trimtab"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().split("?>", 1)[1].split('dtd">', 1)[-1].strip()


def _section(title: str, figure: Figure | None, caption: str) -> str:
    return "" if figure is None else f"<h2>{_safe(title)}</h2>\n{_picture(figure, caption)}"


def _picture(figure: Figure, caption: str) -> str:
    return f"<figure>{svg(figure)}<figcaption>{_safe(caption)}</figcaption></figure>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    kinds = [' class="words"' if h in (COSTS[-1], SETTINGS[1]) else "" for h in heads]
    head = "".join(f"<th{kind}>{_safe(h)}</th>" for h, kind in zip(heads, kinds, strict=True))
    lines = ([f"<td{kind}>{_cell(c)}</td>" for c, kind in zip(row, kinds, strict=True)] for row in rows)
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    # the interval goes below its mean, so that columns stay narrow
    return re.sub(r"^(.*?) (\[.*)$", r"\1<small>\2</small>", _safe(text))


def _tried(comparison: Comparison) -> list[str]:
    lines = tried(comparison)
    return ["<h2>Settings tried</h2>", _table(SETTINGS, lines)] if lines else []


def _low_data(comparison: Comparison) -> list[str]:
    """Return True*Info of every method at every number of training questions as a table."""
    found: dict[str, dict[int | None, str]] = {}
    for size in comparison.sizes:
        for row in (r for r in comparison.rows(size) if r.variant == "best"):
            found.setdefault(row.method, {})[size] = quality_cells(row)[1]
    heads = ("True*Info", *("all" if size is None else str(size) for size in comparison.sizes))
    lines = ([m, *(found[m].get(size, "-") for size in comparison.sizes)] for m in comparison.methods)
    return [_table(heads, lines)] if len(comparison.sizes) > 1 else []


def _answers(comparison: Comparison, rows: Sequence[ResultRow]) -> list[str]:
    """Return the first test questions with every method's answers side by side."""
    base = [t for t in comparison.of(BASELINE, comparison.sizes[-1]) if t["status"] == "done"]
    if not base:
        return []
    columns: dict[str, dict[str, Any]] = {}
    for row in (r for r in rows if r.variant == "best"):
        # the same fold and seed for all: a method that failed in it has no column
        for test in comparison.of(row.method, row.size):
            same = all(test[key] == base[0][key] for key in ("fold", "seed"))
            if same and test["status"] == "done":
                columns[row.method] = {q["question"]: q for q in comparison.measurements(test, "best")[0]["questions"]}
    asked = list(columns[BASELINE])[:N_ANSWERS]
    head = "".join(f"<th>{_safe(name)}</th>" for name in ("", *columns))
    lines = []
    for question in asked:
        said = (c[question] for c in columns.values())
        cells = "".join(
            f'<td class="{"true" if a["true"] >= 0.5 else "false"}">{_safe(a["answer"])}</td>' for a in said
        )
        lines.append(f"<tr><td>{_safe(question)}</td>{cells}</tr>")
    which = f"First {len(asked)} test questions of one fold and seed (of a control: its first draw)"
    body = "\n".join(lines)
    table = f'<div class="scroll"><table class="text"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return ["<h2>Before and after</h2>", f"<p>{which}; ✓ judged true, ✗ not.</p>", table]


def _facts(comparison: Comparison) -> str:
    rows = {**facts(comparison), **comparison.specification["methods"]}
    body = "\n".join(f"<tr><td>{_safe(k)}</td><td>{_safe(v)}</td></tr>" for k, v in rows.items())
    return f'<div class="scroll"><table class="text"><tbody>{body}</tbody></table></div>'


def _terms(meanings: Mapping[str, str]) -> str:
    lines = "".join(f"<li><strong>{_safe(term)}</strong>: {_safe(meaning)}</li>" for term, meaning in meanings.items())
    return f'<ul class="terms">{lines}</ul>'


def _list(items: Iterable[str]) -> str:
    lines = "".join(f"<li>{_safe(item)}</li>" for item in items)
    return f"<ul>{lines or '<li>none</li>'}</ul>"


def _safe(text: str) -> str:
    # models say control characters at times, which no HTML page may hold
    return html.escape("".join(c if c.isprintable() or c in "\n " else "\N{REPLACEMENT CHARACTER}" for c in str(text)))
