"""Every setting that was tried: as a table, and each knob's effect where settings differ in that knob alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from trimtab.compare.comparison import Comparison
from trimtab.report.charts import PALETTE, WHOLE, new_figure
from trimtab.report.markdown import knobs_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTINGS = ("", "setting", "validation score (%)", "KL", "chosen")
Points: TypeAlias = dict[float, list[tuple[float, float | None]]]
"""A knob's value -> (score, KL) of the trials that had it."""


def tried(comparison: Comparison) -> list[list[str]]:
    """Return one line per method and setting: its mean score and KL on validation, and how often it was chosen."""
    size, lines = comparison.sizes[-1], []
    for method in comparison.methods:
        found: dict[str, list[dict[str, Any]]] = {}
        for trial in _trials(comparison, method):
            found.setdefault(json.dumps(trial["knobs"], default=str), []).append(trial)
        if len(found) < 2:
            continue
        chosen = [json.dumps(t["knobs"], default=str) for t in _chosen(comparison, method, size)]
        whole = comparison.specification.get("grids", {}).get(method)
        of = f"{len(found)} of {whole}" if whole else str(len(found))
        for place, (knobs, trials) in enumerate(sorted(found.items(), key=lambda item: item[1][0]["step"])):
            kls = [t["validation"]["kl"] for t in trials if t["validation"]["kl"] is not None]
            score = 100 * float(np.mean([t["validation"]["score"] for t in trials]))
            lines.append(
                [
                    f"{method} ({of} settings)" if place == 0 else "",
                    knobs_text(json.loads(knobs)),
                    f"{score:.1f}",
                    f"{np.mean(kls):.3f}" if kls else "-",
                    f"{chosen.count(knobs)} of {len(chosen)}",
                ]
            )
    return lines


def _trials(comparison: Comparison, method: str) -> list[dict[str, Any]]:
    """Return a method's finished trials on all training questions; a control has none, as it chooses nothing."""
    size = comparison.sizes[-1]
    return [
        t
        for t in comparison.trials
        if (t["method"], t["size"], t["status"]) == (method, size, "done") and "validation" in t
    ]


def _chosen(comparison: Comparison, method: str, size: int | None) -> list[dict[str, Any]]:
    return [comparison.trial(t, t["best"]) for t in comparison.of(method, size) if t["status"] == "done"]


def knob_lines(comparison: Comparison) -> dict[str, dict[str, list[Points]]]:
    """Return method -> numeric knob that varied -> groups of trials, all of whose other knobs are equal.

    Within a group the knob alone differs. Between groups something else does: they must not be joined.
    """
    found: dict[str, dict[str, dict[str, Points]]] = {}
    for method in comparison.methods:
        for trial in _trials(comparison, method):
            knobs = _flat(trial["knobs"])
            scores = trial["validation"]["score"], trial["validation"]["kl"]
            for knob, value in knobs.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    others = json.dumps({k: v for k, v in knobs.items() if k != knob}, sort_keys=True, default=str)
                    groups = found.setdefault(method, {}).setdefault(knob, {})
                    groups.setdefault(others, {}).setdefault(float(value), []).append(scores)
    varied = {
        method: {
            knob: list(groups.values())
            for knob, groups in knobs.items()
            if len({value for points in groups.values() for value in points}) > 1 and not knob.endswith("draw")
        }
        for method, knobs in found.items()
    }
    return {method: knobs for method, knobs in varied.items() if knobs}


def knobs_figure(comparison: Comparison) -> Figure | None:
    """Return the validation score against every knob that varied: learning rates, strengths, numbers of shots."""
    panels = [(m, k, groups) for m, knobs in knob_lines(comparison).items() for k, groups in knobs.items()]
    if not panels:
        return None
    n_rows = -(-len(panels) // 3)
    figure, grid = new_figure(11, 2.7 * n_rows, columns=3, rows=n_rows)
    cells = np.atleast_1d(grid).flatten()
    # one scale of KL for all: on their own, panels would show the smallest drift as large as the largest
    highest = max((kl for *_, groups in panels for p in groups for v in p.values() for _, kl in v if kl), default=0.0)
    for axes, (method, knob, groups) in zip(cells, panels, strict=False):
        values = sorted({value for points in groups for value in points})
        _panel(axes, groups, highest)
        joined = any(len(points) > 1 for points in groups)
        positive = min(values) > 0 and max(values) / min(values) >= 4
        axes.set(ylim=WHOLE, xscale="log" if positive else "linear")
        axes.set_title(f"{method}: {knob}" + ("" if joined else " (never alone)"), fontsize="small")
        axes.set_xticks(values, [f"{v:.2g}" for v in values], fontsize="x-small")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in cells[len(panels) :]:
        axes.set_visible(False)
    for axes in cells[: len(panels) : 3]:
        axes.set_ylabel("validation score (%)", color=PALETTE[0], fontsize="small")
    return figure


def _panel(axes: Any, groups: list[Points], highest: float) -> None:
    other = None
    for points in groups:
        values = sorted(points)
        means = [100 * float(np.mean([s for s, _ in points[v]])) for v in values]
        axes.plot(values, means, color=PALETTE[0], marker="o")
        for v in values:
            axes.plot([v] * len(points[v]), [100 * s for s, _ in points[v]], ".", color=PALETTE[0], alpha=0.35)
        drifts = [[kl for _, kl in points[v] if kl is not None] for v in values]
        if all(drifts):
            other = other or axes.twinx()
            other.plot(values, [float(np.mean(d)) for d in drifts], color=PALETTE[1], marker="s", linestyle=":")
    if other is not None:
        other.set_yscale("symlog", linthresh=1e-3)
        other.set_ylim(-2e-4, 2 * max(highest, 1e-3))
        other.tick_params(axis="y", colors=PALETTE[1], labelsize="x-small")
        other.set_ylabel("KL (nats per token)", color=PALETTE[1], fontsize="x-small")


def _flat(knobs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in knobs.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
