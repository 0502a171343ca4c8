"""The comparison's tables as cells of text, and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.compare.comparison import Comparison
from trimtab.compare.rows import ResultRow
from trimtab.compare.statistics import PairedDifference, Spread
from trimtab.evaluate.judges.verdicts import judge_line

PERCENT = {"true_info": "True*Info", "true": "True", "info": "Info", "mc1": "MC1", "mc2": "MC2"}
NATS = {"ce": "CE", "kl": "KL"}
QUALITY = ("", *PERCENT.values(), *NATS.values(), "KL budget", "measured")
DIFFERENCES = ("", "True*Info − baseline", "p", "p (Holm)", "MC1 − baseline", "p", "p (Holm)", "questions")
COSTS = ("", "fitted or stored numbers", "on disk", "seconds to make", "peak memory", "ms per token", "chosen settings")
HOW_TO_READ = {
    "True*Info": "mean(True) x mean(Info), in %. True, Info, MC1 and MC2 are in %, CE and KL in nats per token on "
    "neutral text, against the unedited model; prompting, which leaves the model as it is, has neither.",
    "[low, high] and ±": "95 % interval over questions (of CE and KL over texts), seeds averaged inside; ± is the "
    "standard deviation between seeds.",
    "p": "of a sign-flip test, paired by question; p (Holm) is corrected over the rows of the table.",
    "Settings": "every method tried its own on the same validation questions, up to the same number, drawn once for "
    "all folds and seeds; no test question was seen before the last measurement.",
    "KL budget": "'kept': in every fold and seed the best setting is also the best one within the budget, so that one "
    "row is both results. Where it was not, a second row shows the best that kept it. The budget is for the texts that "
    "settings are chosen on, the KL shown is that of other texts.",
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


def quality_cells(row: ResultRow) -> list[str]:
    """Return a row's measurements as text."""
    percent = [_spread(row.metrics[m], percent=True) for m in PERCENT]
    nats = (_spread(row.metrics[m], percent=False) for m in NATS)
    draws = f", {len(row.draws)} draws" if row.draws else ""
    return [row.name, *percent, *nats, _budget(row), f"{row.n_done} of {row.n_units}{draws}"]


def _budget(row: ResultRow) -> str:
    if row.variant == "within":
        return "chosen within it" if row.n_done else "none within"
    if row.n_kept is None:
        return "-"
    return "kept" if row.n_kept == row.n_done else f"kept in {row.n_kept} of {row.n_done}"


def difference_cells(row: ResultRow) -> list[str]:
    """Return a row's paired differences to the unedited model as text."""
    parts = [row.name]
    for metric in ("true_info", "mc1"):
        parts += _difference(row.differences.get(metric))
    return [*parts, str(row.differences["true_info"].n) if row.differences else "-"]


def cost_cells(row: ResultRow) -> list[str]:
    """Return a row's costs as text."""
    c = row.costs
    crowd = {None: " (?)", 0: "", 1: ""}.get(row.n_at_once, f" ({row.n_at_once} at once)")
    return [
        row.name,
        "-" if c["trainable_parameters"] is None else f"{c['trainable_parameters']:,.0f}",
        size(c["bytes_on_disk"]),
        "-" if c["seconds"] is None else f"{_three_digits(c['seconds'])}{crowd}",
        size(c["peak_bytes"]),
        "-" if c["ms_per_token"] is None else f"{_three_digits(c['ms_per_token'])}{crowd}",
        "; ".join(f"{knobs_text(json.loads(s))} ({n}x)" for s, n in row.settings) or "-",
    ]


def _three_digits(value: float | int) -> str:
    # 1,234 rather than 1.23e+03
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def size(n_bytes: float | int | None) -> str:
    """Return a number of bytes for reading."""
    if n_bytes is None:
        return "-"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{_three_digits(n_bytes / scale)} {unit}"
    return f"{n_bytes:.0f} B"


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
    s, design, meters, model = specification, specification["design"], specification["meters"], specification["model"]
    questions = f"{s['questions']['n']} of {s['questions']['name']} (hash {s['questions']['fingerprint']})"
    test = s["test"] and f"{s['test']['n']} of {s['test']['name']} (hash {s['test']['fingerprint']})"
    return {
        "Model": f"{model['name'] or 'unnamed'}, {model['dtype']}, quantization {model['quantization'] or 'none'}",
        "Questions to train and choose on": questions,
        "Test questions": test or "each fold's held-out part",
        "Design": f"{design['folds']} fold(s), seeds {', '.join(map(str, design['seeds']))}, up to {design['trials']} "
        f"trials per method, {100 * design['validation']:.0f} % of a training fold to choose on",
        "Chosen by": f"{meters['metric']} on validation questions; KL budget {design['kl_budget']} nats per token",
        "Judge": f"{_judge(meters)}, answers of up to {meters['max_new_tokens']} tokens, greedy; multiple choice "
        f"{meters['convention']}",
        "Neutral texts": f"hash {meters['texts']}",
        "Peak memory": "; ".join(f"{kind}: {n} records" for kind, n in comparison.peak_kinds.items()) or "not told",
        "Hardware": "; ".join(f"{name}: {n} records" for name, n in comparison.machines.items()) or "nothing run yet",
        "Processes that shared a device": "; ".join(f"{n}: {count} records" for n, count in comparison.crowds.items()),
        "Versions of the process that began the run": ", ".join(f"{k} {v}" for k, v in s["versions"].items()),
    }


def notes(comparison: Comparison) -> list[str]:
    """Return what the rows must say, those of the main table first, then those of smaller numbers of questions."""
    found = []
    for size in (comparison.sizes[-1], *comparison.sizes[:-1]):
        where = "" if size == comparison.sizes[-1] else f", {size} training questions"
        found += [f"{row.name}{where}: {note}" for row in comparison.rows(size) for note in row.notes]
    return found


def _judge(meters: Mapping[str, Any]) -> str:
    return judge_line({"name": meters["judge"], **meters.get("judge_record", {})}).removeprefix("judge: ")


def to_markdown(comparison: Comparison, *, title: str = "Comparison") -> str:
    """Return status, tables, notes and facts as Markdown; pictures and answers are in the page alone."""
    from trimtab.report.knobs import SETTINGS, tried

    rows = comparison.rows(comparison.sizes[-1])
    lines = [f"# {title}", "", status(comparison), ""]
    lines += ["## What it does", "", *table_lines(QUALITY, map(quality_cells, rows)), ""]
    lines += [
        *(f"- **{term}**: {meaning}" for term, meaning in HOW_TO_READ.items()),
        "",
        "## Against the unedited model",
        "",
    ]
    lines += [*table_lines(DIFFERENCES, map(difference_cells, (r for r in rows if r.differences))), ""]
    lines += ["## What it costs", "", *table_lines(COSTS, map(cost_cells, rows)), ""]
    for smaller in comparison.sizes[:-1]:
        lines += [f"## {smaller or 'All'} training questions", ""]
        lines += [*table_lines(QUALITY, map(quality_cells, comparison.rows(smaller))), ""]
    lines += ["## Settings tried", "", *table_lines(SETTINGS, tried(comparison)), ""]
    noted = [f"- {note}" for note in notes(comparison)]
    lines += ["## Notes", "", *(noted or ["- none"]), "", "## Caveats", "", *(f"- {c}" for c in CAVEATS), ""]
    lines += ["## What was run", ""]
    lines += [f"- {key}: {value}" for key, value in facts(comparison).items()]
    lines += [f"- {name}: `{text}`" for name, text in comparison.specification["methods"].items()]
    return "\n".join(lines) + "\n"


def table_lines(heads: Sequence[str], rows: Any) -> list[str]:
    """Return a Markdown table's lines."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return lines + ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]


def _spread(value: Spread | None, *, percent: bool) -> str:
    if value is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 3)
    e = value.estimate
    seeds = "" if value.between_seeds is None else f" ± {scale * value.between_seeds:.{digits}f}"
    return f"{scale * e:.{digits}f} [{scale * e.low:.{digits}f}, {scale * e.high:.{digits}f}]{seeds}"


def _difference(value: PairedDifference | None) -> list[str]:
    if value is None:
        return ["-", "-", "-"]
    d = value.difference
    return [f"{100 * d:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]", f"{value.p:.4f}", f"{value.p_holm:.4f}"]


def knobs_text(knobs: Mapping[str, Any]) -> str:
    """Return a setting for reading."""
    parts = (
        f"{k}: {knobs_text(v)}" if isinstance(v, Mapping) else f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in knobs.items()
    )
    return ", ".join(parts) or "no knobs"
