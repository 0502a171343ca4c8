"""Each knob's effect on the score and the drift, where settings differ in that knob alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from trimtab.compare.comparison import Comparison
from trimtab.report.charts import PALETTE, axis_label, limits, new_figure, scale
from trimtab.report.settings import trials_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points: TypeAlias = dict[float, list[tuple[float, float | None]]]
"""A knob's value -> (score, KL) of the trials that had it."""


def knob_lines(comparison: Comparison) -> dict[str, dict[str, list[Points]]]:
    """Return method -> numeric knob that varied -> groups of trials, all of whose other knobs are equal.

    Within a group the knob alone differs. Between groups something else does: they must not be joined.
    """
    found: dict[str, dict[str, dict[str, Points]]] = {}
    for method in comparison.methods:
        for trial in trials_of(comparison, method):
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
        _panel(axes, groups, highest, scale(comparison.chooser))
        joined = any(len(points) > 1 for points in groups)
        positive = min(values) > 0 and max(values) / min(values) >= 4
        axes.set(**limits(comparison.chooser, "y"), xscale="log" if positive else "linear")
        axes.set_title(f"{method}: {knob}" + ("" if joined else " (never alone)"), fontsize="small", y=1)
        axes.set_xticks(values, [f"{v:.2g}" for v in values], fontsize="x-small")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in cells[len(panels) :]:
        axes.set_visible(False)
    for axes in cells[: len(panels) : 3]:
        axes.set_ylabel(f"validation {axis_label(comparison.chooser)}", color=PALETTE[0], fontsize="small")
    return figure


def _panel(axes: Any, groups: list[Points], highest: float, times: float) -> None:
    other = None
    for points in groups:
        values = sorted(points)
        means = [times * float(np.mean([s for s, _ in points[v]])) for v in values]
        axes.plot(values, means, color=PALETTE[0], marker="o")
        each = [(v, times * s) for v in values for s, _ in points[v]]
        axes.plot(*zip(*each, strict=True), ".", color=PALETTE[0], alpha=0.35)
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
