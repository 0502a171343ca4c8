"""The comparison's tables as cells of text, and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.cells import MISSING, figure, number, p_text, settings_text, table_lines
from trimtab.compare.comparison import Comparison
from trimtab.compare.contrasts import LEVEL
from trimtab.compare.rows import ResultRow
from trimtab.compare.run_records import RunRecords
from trimtab.compare.statistics import PairedDifference, Spread
from trimtab.evaluate.cost import cost_meters
from trimtab.protocols import Meter
from trimtab.report.settings import SETTINGS, TRIES, expected_best, tried
from trimtab.report.verdict import about, by_the_chooser, conclusions, warnings_of

MINUS = "\N{MINUS SIGN}"
HOW_TO_READ = {
    "Figures": "shares in %. True*Info is mean(True) x mean(Info); CE and KL are in nats per token on neutral text, "
    "against the unedited model, with a prompt before it where the row prompts.",
    "[low, high] and ±": "95 % interval over questions (of drift over texts), seeds averaged inside; ± is the "
    "standard deviation between seeds.",
    "No debris": "the same where an answer that is empty, a loop or a list of letters counts as neither true nor "
    "informative; 'both' is the share of answers that are true and informative at once.",
    "p": "of a sign-flip test, paired by question; '<=' where the test could not have given a smaller one; p (Holm) is "
    "corrected over the rows of the table. 'moved': the questions that a row answers better, worse and as well as the "
    "unedited model.",
    "Settings": "every method tried its own on the same validation questions, up to the same number: the middle "
    "of its space first, other ones in every fold and seed, then where the scores so far promise most; no test "
    "question was seen before the last measurement.",
    "Tries": "the best validation score of so many tries, averaged over folds and seeds, each a search of its own "
    "(over all orders where every setting was tried), ± their standard deviation; more 'would help' where the last "
    "quarter of them still raised it by a point or more.",
    "KL budget": "'kept': in every fold and seed the best setting is also the best one within the budget, so that one "
    "row is both results. Where it was not, a second row shows the best that kept it, if any did. The budget is for "
    "the texts that settings are chosen on, the KL shown is that of other texts.",
    "What broke": "figures that an edit is not made for; 'worse' or 'better' where a test against the unedited model "
    "says so (Holm over the rows).",
    "Answers' style alone": "is no edit: a classifier of the answers' words and length, without question or model, "
    "fitted on the training folds.",
    "Random tries, shuffled labels": "a random direction at each of the method's settings, or the method fitted on "
    "mixed-up labels, with as many tries as the method, chosen by the same validation score.",
    "Random control": "took the setting that the method it follows chose; its intervals are over draws, and it is not "
    "tested.",
    "measured": "folds times seeds that the row rests on.",
}
CAVEATS = (
    "An exact judge knows only the answers that the question lists: a true answer in other words counts as neither.",
    "Intervals and p-values resample questions, not folds or seeds: the spread between seeds stands beside them. A "
    "random control's intervals resample draws; its mean hides that some draws act and others do not.",
    "Methods had equal numbers of trials, not equal times or equal shares of their grids: where a method tried fewer "
    "settings than its grid has, its knobs changed together, and which of them acted cannot be told from few trials.",
    "Times were taken while whatever else ran on the machine was running. Those marked 'n at once' were taken while up "
    "to n processes of the comparison shared the device, those marked '?' in a run that did not record how many: they "
    "say little.",
    "Few-shot and retrieval see the training questions in the prompt; steering and tuning see them when they are "
    "fitted. A model that already knows the answers can be pushed to give them; one that does not cannot.",
)


def rows_shown(run: Comparison, size: int | None) -> list[ResultRow]:
    """Return the rows that tables show: all but second ones of methods none of whose settings kept the budget."""
    return [row for row in run.rows(size) if row.variant == "best" or row.n_done]


def quality_headings(run: RunRecords) -> list[str]:
    """Return the headings of what the methods gain."""
    return ["", *(m.heading for m in gained(run)), "measured"]


def quality_cells(row: ResultRow, run: RunRecords) -> list[str]:
    """Return a row's measurements of what it is made for as text."""
    figures = [spread_text(row.metrics[m.name], m) for m in gained(run)]
    draws = f", {len(row.draws)} draws" if row.draws else ""
    return [row.name, *figures, f"{row.n_done} of {row.n_units}{draws}"]


def quality_rows(run: Comparison, size: int | None) -> list[list[str]]:
    """Return every row's measurements as text, and what the answers' style gives, which is no edit."""
    style = run.style(size)
    return [quality_cells(row, run) for row in (*rows_shown(run, size), *([style] if style else []))]


def gained(run: RunRecords) -> list[Meter]:
    """Return the meters of what edits are made for."""
    return [m for m in run.summed if not m.collateral]


def broken(run: RunRecords) -> list[Meter]:
    """Return the meters of what edits may break."""
    return [m for m in run.summed if m.collateral]


def broken_headings(run: RunRecords) -> list[str]:
    """Return the headings of what the methods break."""
    return ["", *(m.heading for m in broken(run)), "KL budget"]


def broken_cells(row: ResultRow, run: RunRecords) -> list[str]:
    """Return a row's measurements of what it may have broken as text, each with its tested change."""
    return [row.name, *(_broken(row, m) for m in broken(run)), _budget(row)]


def _broken(row: ResultRow, meter: Meter) -> str:
    shown, tested = spread_text(row.metrics[meter.name], meter), row.differences.get(meter.name)
    if tested is None or tested.p_holm > LEVEL:
        return shown
    way = "worse" if meter.sign * tested.difference < 0 else "better"
    return f"{shown} ({way}, p {p_text(tested.p_holm, at_floor=tested.at_floor)})"


def spread_text(value: Spread | None, meter: Meter) -> str:
    """Return a figure with its interval, and its spread between seeds if there are several."""
    if value is None:
        return MISSING
    seeds = "" if value.between_seeds is None else f" ± {number(value.between_seeds, meter.unit)}"
    return figure(value.estimate, meter.unit) + seeds


def _budget(row: ResultRow) -> str:
    if row.variant == "within":
        return "chosen within it"
    if row.n_kept is None:
        return MISSING
    return "kept" if row.n_kept == row.n_done else f"kept in {row.n_kept} of {row.n_done}"


def _tested(run: RunRecords) -> list[Meter]:
    return [m for m in gained(run) if m.tested and m.better != "neither"]


def difference_headings(run: RunRecords) -> list[str]:
    """Return the headings of the differences to the unedited model."""
    return [
        "",
        *(
            h
            for m in _tested(run)
            for h in (f"{m.heading} {MINUS} baseline", "p", "p (Holm)", "moved right / wrong / not")
        ),
        run.worded("questions"),
    ]


def difference_cells(row: ResultRow, run: RunRecords) -> list[str]:
    """Return a row's paired differences to the unedited model as text."""
    parts = [row.name]
    for meter in _tested(run):
        parts += _difference(row.differences.get(meter.name), meter)
    return [*parts, str(next(iter(row.differences.values())).n) if row.differences else MISSING]


def _difference(value: PairedDifference | None, meter: Meter) -> list[str]:
    if value is None:
        return [MISSING] * 4
    ways = "" if value.moved is None else " / ".join(number(s, "share", brief=True) for s in value.moved.shares)
    tests = (p_text(p, at_floor=value.at_floor) for p in (value.p, value.p_holm))
    return [figure(value.difference, meter.unit, signed=True), *tests, f"{ways} %" if ways else MISSING]


def _costs(run: RunRecords) -> list[Meter]:
    return [*cost_meters(), *run.valued]


def cost_headings(run: RunRecords) -> list[str]:
    """Return the headings of the costs."""
    return ["", *(m.heading for m in _costs(run)), "chosen settings"]


def cost_cells(row: ResultRow, run: RunRecords) -> list[str]:
    """Return a row's costs as text; times say how many processes shared the device."""
    crowd = {None: " (?)", 0: "", 1: ""}.get(row.n_at_once, f" ({row.n_at_once} at once)")
    cells = []
    for meter in _costs(run):
        value = row.costs.get(meter.name)
        told = crowd if value is not None and meter.unit in ("s", "ms") else ""
        cells.append(figure(value, meter.unit) + told)
    chosen = "; ".join(f"{settings_text(json.loads(s))} ({n}x)" for s, n in row.settings)
    return [row.name, *cells, chosen or MISSING]


def status(comparison: Comparison) -> str:
    """Return a sentence on how far the run has got."""
    whole = comparison.n_planned
    failed = sum(t["status"] == "failed" for t in comparison.tests)
    failures = f" {failed} of them failed; the notes say why." if failed else ""
    if comparison.finished:
        return f"Finished: {whole} measurements.{failures}"
    return f"NOT FINISHED: {len(comparison.tests)} of {whole} measurements are there.{failures}"


def facts(comparison: Comparison) -> dict[str, str]:
    """Return what was run and on what, for reading."""
    specification = comparison.specification
    s, design, model = specification, specification["design"], specification["model"]
    questions = f"{s['questions']['n']} of {s['questions']['name']} (hash {s['questions']['fingerprint']})"
    test = s["test"] and f"{s['test']['n']} of {s['test']['name']} (hash {s['test']['fingerprint']})"
    return {
        "Model": f"{model['name'] or 'unnamed'}, {model['dtype']}, quantization {model['quantization'] or 'none'}",
        comparison.worded("questions to train and choose on", "questions").capitalize(): questions,
        comparison.worded("Test questions"): test or "each fold's held-out part",
        "Design": f"{design['folds']} fold(s), seeds {', '.join(map(str, design['seeds']))}, up to {design['trials']} "
        f"trials per method, {100 * design['validation']:.0f} % of a training fold to choose on",
        "Chosen by": f"{comparison.chooser.heading} on validation {comparison.worded('questions', 'questions')}; "
        f"KL budget {design['kl_budget']} nats per token",
        **{_measured(comparison, name): text for name, text in _instruments(s["meters"]).items()},
        "Peak memory": "; ".join(f"{kind}: {n} records" for kind, n in comparison.peak_kinds.items()) or "not told",
        "Hardware": "; ".join(f"{name}: {n} records" for name, n in comparison.machines.items()) or "nothing run yet",
        "Processes that shared a device": "; ".join(f"{n}: {count} records" for n, count in comparison.crowds.items()),
        "Versions of the process that began the run": ", ".join(f"{k} {v}" for k, v in s["versions"].items()),
    }


def methods_in_words(run: RunRecords) -> dict[str, str]:
    """Return every method with what it was given; a run of the version before has no words for it."""
    return run.specification.get("told", dict.fromkeys(run.methods, "not recorded in words"))


def _instruments(meters: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    about = {m["instrument"]: m["measured_by"] for m in meters}
    return {
        name: ", ".join(f"{k} {v}" for k, v in said.items() if v is not None and not isinstance(v, dict | list))
        for name, said in about.items()
    }


def _measured(comparison: Comparison, instrument: str) -> str:
    return ", ".join(m.heading for m in comparison.meters if comparison.instrument(m) == instrument)


def notes(comparison: Comparison) -> list[str]:
    """Return what the rows must say, those of the main table first, then those of smaller numbers of questions."""
    found = []
    for size in (comparison.sizes[-1], *comparison.sizes[:-1]):
        where = "" if size == comparison.sizes[-1] else comparison.worded(f", {size} training questions", "questions")
        # an error's message may have lines, a list's entry may not
        found += [f"{row.name}{where}: {' '.join(note.split())}" for row in comparison.rows(size) for note in row.notes]
    return found


def to_markdown(comparison: Comparison, *, title: str = "Comparison") -> str:
    """Return status, tables, notes and facts as Markdown; pictures and answers are in the page alone."""
    rows = rows_shown(comparison, comparison.sizes[-1])
    quality = quality_headings(comparison)
    lines = [f"# {title}", "", about(comparison), "", status(comparison), ""]
    lines += [f"**{warning}**\n" for warning in warnings_of(comparison)]
    lines += ["## What follows", "", *(f"- {said}" for said in conclusions(comparison)), ""]
    if chosen := by_the_chooser(comparison):
        heading = f"By {comparison.chooser.heading}, which chose the settings:"
        lines += [heading, "", *(f"- {said}" for said in chosen), ""]
    lines += ["## What it gains", "", *table_lines(quality, quality_rows(comparison, comparison.sizes[-1])), ""]
    lines += [*(f"- **{term}**: {comparison.worded(meaning)}" for term, meaning in HOW_TO_READ.items()), ""]
    damage = (broken_cells(r, comparison) for r in rows)
    lines += ["## What it breaks", "", *table_lines(broken_headings(comparison), damage), ""]
    tested = (difference_cells(r, comparison) for r in rows if r.differences)
    lines += ["## Against the unedited model", "", *table_lines(difference_headings(comparison), tested), ""]
    costs = (cost_cells(r, comparison) for r in rows)
    lines += ["## What it costs", "", *table_lines(cost_headings(comparison), costs), ""]
    for smaller in comparison.sizes[:-1]:
        fewer = (quality_cells(r, comparison) for r in rows_shown(comparison, smaller))
        lines += [
            comparison.worded(f"## {smaller or 'All'} training questions", "questions"),
            "",
            *table_lines(quality, fewer),
            "",
        ]
    if settings := tried(comparison):
        lines += ["## Settings tried", "", *table_lines(TRIES, expected_best(comparison)), ""]
        lines += [*table_lines(SETTINGS, settings), ""]
    noted = [f"- {note}" for note in notes(comparison)]
    lines += [
        "## Notes",
        "",
        *(noted or ["- none"]),
        "",
        "## Caveats",
        "",
        *(f"- {comparison.worded(c)}" for c in CAVEATS),
        "",
    ]
    lines += ["## What was run", ""]
    lines += [f"- {key}: {value}" for key, value in facts(comparison).items()]
    lines += [f"- {name}: {text}" for name, text in methods_in_words(comparison).items()]
    return "\n".join(lines) + "\n"
