"""The speed benchmark's table and chart for the docs."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

TITLES = {
    "capture": "Capture, statements that share questions",
    "unshared": "Capture, prompts that share nothing",
    "choice": "Six-shot multiple choice",
    "generation": "Generation, batch 1",
    "probes, embedded": "Probes, the embedded model's activations (one 7B layer)",
    "probes, correlated": "Probes, correlated features (one 7B layer)",
    "answers": "Generation for measuring: answers to as many questions as multiple choice is asked",
    "report": "The report of a comparison: ten methods and the unedited model, two folds of 817 questions",
}

SOLVER = (
    "trimtab fits all heads of a layer at once, with a Newton solver of its own that ends at a gradient of 1e-8 in "
    "float64, so that what is found does not depend on where a solver stops; the other rows loop over heads with "
    "scikit-learn, newton-cholesky at its defaults and lbfgs with 1,000 iterations. Differences are in coefficients."
)


def markdown(result: dict[str, Any]) -> str:
    """Return the page: how it was measured, and a table for each task."""
    versions = {**result["versions"], **result["peers"]}
    lines = [
        "# Benchmarks",
        "",
        f"`make bench` on {result['hardware']['threads']} CPU threads ({result['hardware']['machine']}); "
        f"{result['model']}; questions: {result['questions']}. Every peer runs in a process of its own, in turns, "
        "after a warm-up; where a difference is shown, after a check that its results equal trimtab's (of answers, "
        "their lengths). Seconds are medians; a ratio is the median of the rounds' ratios with its 95 % bootstrap "
        "interval.",
        *(["", f"In a run of their own, later: {', '.join(later)}."] if (later := result.get("later")) else []),
        "",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
    ]
    for task, found in result["tasks"].items():
        reference = found["reference"]
        lines += [
            "",
            f"## {TITLES[task]}",
            *(["", SOLVER] if task.startswith("probes") else []),
            "",
            f"| | s | x {reference} | 95 % | difference |",
            "|---|---|---|---|---|",
        ]
        for name, seconds in sorted(found["median"].items(), key=lambda item: item[1]):
            r = found["ratio to reference"].get(name)
            # the harness's slower batch sizes are timed once, outside of the rounds
            alone = "1 | " if name == reference else "once | "
            shown = f"{r['median']:.2f} | [{r['low']:.2f}, {r['high']:.2f}]" if r else alone
            difference = found["largest difference from trimtab"].get(name)
            lines.append(f"| {name} | {seconds:.3g} | {shown} | {'' if difference is None else f'{difference:.1g}'} |")
        lines += [f"| {name} | failed: {why[:80]} | | | |" for name, why in found["failed"].items()]
        if task == "choice" and "trimtab sweep of 20" in found["median"]:
            lines += ["", "The sweep is 20 settings (5 strengths, 4 head counts)."]
    return "\n".join([*lines, "", "## What was aimed at", "", *aims(result["tasks"])])


def aims(tasks: dict[str, Any]) -> list[str]:
    """Return a table of targets, of medians if not said otherwise, and whether this run reached them."""
    rows = []

    def add(aim: str, found: str, reached: bool) -> None:
        rows.append(f"| {aim} | {found} | {'reached' if reached else '**missed**'} |")

    def against(task: str, name: str) -> dict[str, float]:
        return tasks.get(task, {}).get("ratio to reference", {}).get(name, {})

    if r := against("capture", "trimtab"):
        add(
            "capture of statements that share questions: at most 0.6 of plain", f"{r['median']:.2f}", r["median"] <= 0.6
        )
    if r := against("unshared", "trimtab"):
        found = f"{r['median']:.3f} [{r['low']:.2f}, {r['high']:.2f}]"
        add(
            "prompts that share nothing: at most 1.10, interval not above 1",
            found,
            r["median"] <= 1.1 and r["low"] <= 1,
        )
    medians = tasks.get("choice", {}).get("median", {})
    harness = [seconds for name, seconds in medians.items() if name.startswith("lm-eval")]
    for name, n in (("trimtab", 1), ("trimtab sweep of 20", 20)):
        if harness and name in medians:
            times = n * min(harness) / medians[name]
            add(f"{name}: 10 times as fast as lm-eval at its fastest batch size", f"{times:.1f}", times >= 10)
    for name in ("trimtab generated", "trimtab all"):
        if r := against("generation", name):
            found = f"[{r['low']:.2f}, {r['high']:.2f}]"
            add(f"generation, {name}: interval not above 1", found, r["low"] <= 1)
    if r := against("answers", "trimtab"):
        add(
            "answers: as fast as in batches of 16, interval not above 1",
            f"[{r['low']:.2f}, {r['high']:.2f}]",
            r["low"] <= 1,
        )
    for task in ("probes, embedded", "probes, correlated"):
        for name, least in (("lbfgs", 5), ("newton-cholesky", 1)):
            if r := against(task, name):
                found = f"{r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
                add(f"{task}: {least} times as fast as {name}, or faster", found, r["median"] >= least)
    if seconds := tasks.get("report", {}).get("median", {}).get("trimtab"):
        add("report of a run: at most 5 s", f"{seconds:.1f} s", seconds <= 5)
    return ["| | here | |", "|---|---|---|", *rows]


def chart(result: dict[str, Any]) -> Figure:
    """Return a figure with one panel of bars for each task."""
    tasks = result["tasks"]
    figure = Figure(figsize=(9, 1.1 + 0.28 * sum(len(t["median"]) + 2 for t in tasks.values())), layout="constrained")
    panels = figure.subplots(len(tasks), 1, squeeze=False, height_ratios=[len(t["median"]) for t in tasks.values()])
    for panel, (task, found) in zip(panels[:, 0], tasks.items(), strict=True):
        names = sorted(found["median"], key=found["median"].__getitem__, reverse=True)
        colours = ["#c44e52" if "trimtab" in name else "#8c8c8c" for name in names]
        panel.barh(names, [found["median"][name] for name in names], color=colours)
        panel.set_title(TITLES[task], fontsize="medium", loc="left")
    figure.supxlabel("seconds, less is better", fontsize="medium")
    return figure
