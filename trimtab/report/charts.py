"""The comparison as pictures: intervals, Pareto fronts, low-data curve, loss curves, probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.cells import unit_words
from trimtab.compare.comparison import Comparison
from trimtab.compare.design import BASELINE
from trimtab.compare.rows import ResultRow
from trimtab.protocols import Meter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's colours, told apart by colour-blind readers; without the yellow, which is lost on white."""
MARKERS = "osD^vP*X<>hd"
WHOLE = (-4, 104)
"""Limits of an axis in percent on which a marker at 0 or 100 is drawn whole."""


def scale(meter: Meter) -> float:
    """Return what a figure is multiplied by on an axis: shares are drawn in percent."""
    return 100.0 if meter.unit == "share" else 1.0


def axis_label(meter: Meter) -> str:
    """Return a meter's heading with its unit."""
    return f"{meter.heading} ({unit_words(meter.unit)})"


def limits(meter: Meter, axis: str) -> dict[str, tuple[int, int]]:
    """Return the limits of an axis: shares are drawn on all of 0 to 100 %, other units as far as they go."""
    return {f"{axis}lim": WHOLE} if meter.unit == "share" else {}


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each name; no two share both.

    Figures of one report give the comparison's methods, so that a method looks the same in all of them.
    """
    pairs = zip(dict.fromkeys(names), cycle(PALETTE), cycle(MARKERS), strict=False)
    return {name: {"color": color, "marker": marker} for name, color, marker in pairs}


def intervals_figure(rows: Sequence[ResultRow], meter: Meter) -> Figure:
    """Return a meter's figure of every row with its interval; the unedited model's is a line.

    Ticks are a control's draws, which rows keep of the main meter. Names stand above their lines, so that the figure
    is read on a narrow screen too.
    """
    shown, times = [(row, m.estimate) for row in rows if (m := row.metrics[meter.name])], scale(meter)
    figure, axes = new_figure(6, 0.9 + 0.44 * max(1, len(shown)))
    style = styles([row.method for row in rows])
    for place, (row, value) in enumerate(reversed(shown)):
        look = style[row.method]
        axes.plot([times * value.low, times * value.high], [place, place], color=look["color"], linewidth=2)
        axes.plot([times * drawn for drawn in row.draws], [place] * len(row.draws), "|", color="grey", markersize=9)
        face = look["color"] if row.variant == "best" else "white"
        axes.plot(times * value, place, **look, markerfacecolor=face, markersize=8, linestyle="")
        if row.method == BASELINE:
            axes.axvline(times * value, color="grey", linestyle="--", linewidth=1)
        beside = axes.get_yaxis_transform()
        axes.text(0.01, place + 0.18, row.name, transform=beside, fontsize=11, va="bottom")
    axes.set_yticks([])
    axes.set_xlabel(axis_label(meter), fontsize=12)
    axes.set(**limits(meter, "x"), ylim=(-0.6, max(1, len(shown)) - 0.2))
    axes.grid(axis="x", alpha=0.3)
    return figure


def effect_figure(rows: Sequence[ResultRow], meter: Meter, controls: Mapping[str, str]) -> Figure:
    """Return a meter's figure against drift, of rows that have one; controls in grey, the unedited model as a line.

    Numbers stand for rows in the order given, from 1: the page lists them, since names would lie on one another.
    """
    figure, axes = new_figure(6, 4.6 + 0.1 * max(0, len(rows) - 12))
    style, points, colors = styles([row.method for row in rows]), [], []
    for row in rows:
        found, x = row.metrics[meter.name], _drift(row)
        assert found is not None, f"{row.name} has no {meter.name}"
        value = found.estimate
        color = "grey" if row.method in controls else style[row.method]["color"]
        low, high, y = (scale(meter) * v for v in (value.low, value.high, float(value)))
        if row.method == BASELINE:
            axes.axhline(y, color="grey", linestyle="--", linewidth=1)
        axes.plot([x, x], [low, high], color=color, linewidth=1.5, alpha=0.5)
        face = color if row.variant == "best" else "white"
        axes.plot(x, y, marker=style[row.method]["marker"], color=color, markerfacecolor=face, markersize=9)
        points.append((x, y))
        colors.append(color)
    drifts = [x for x, _ in points]
    linear = max(1e-3, min((x for x in drifts if x > 0), default=0))
    axes.set_xscale("symlog", linthresh=linear)
    axes.set_xlim(-linear / 5, 2 * max(linear, *drifts))
    for n, (point, beside, color) in enumerate(zip(points, _beside(axes, points), colors, strict=True), 1):
        axes.annotate(
            str(n), point, xytext=beside, textcoords="offset points", color=color, fontsize=12, ha="center", va="center"
        )
    axes.set_xlabel("drift: KL from the unedited model, nats per token", fontsize=12)
    axes.set_ylabel(axis_label(meter), fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    return figure


def _beside(axes: Any, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return where each point's number stands, in typographic points from it: as far from all others as can be."""
    found, places = [], axes.transData.transform(points) * 72 / axes.figure.dpi
    taken = [*places]
    around = [(12 * np.cos(turn), 11 * np.sin(turn)) for turn in np.pi / 4 * np.arange(1, 9)]
    for i, place in enumerate(places):
        others = np.array([other for j, other in enumerate(taken) if j != i] or [place + 1e3])
        away = [np.linalg.norm(others - place - step, axis=1).min() for step in around]
        best = next(step for step, far in zip(around, away, strict=True) if far >= min(13, max(away)))
        found.append(best)
        taken.append(place + best)
    return found


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points (cost, gain) that no other point beats, by rising cost.

    A point is beaten by one that costs no more and gains no less, and is better in one of the two.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        equal = front and points[i] == points[front[-1]]
        if not front or points[i][1] > points[front[-1]][1] or equal:
            front.append(i)
    return front


def pareto_figure(rows: Sequence[ResultRow], meter: Meter) -> Figure:
    """Return a meter's figure against KL and against the seconds to make it, each with its Pareto front."""
    figure, (left, right) = new_figure(10, 4.6, columns=2)
    _pareto(left, rows, meter, _drift, linear=1e-3)
    label = "KL(unedited || edited), nats per token"
    left.set(xlabel=label, ylabel=axis_label(meter), **limits(meter, "y"))
    _pareto(right, rows, meter, lambda r: r.costs["seconds"], linear=0.1)
    right.set(xlabel="seconds to make", **limits(meter, "y"))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _drift(row: ResultRow) -> float:
    drift = row.metrics.get("kl")
    return drift.estimate if drift else 0.0


def _pareto(
    axes: Any, rows: Sequence[ResultRow], meter: Meter, cost: Callable[[ResultRow], float | None], *, linear: float
) -> None:
    """Draw the points and their front; costs below `linear` stand on a linear scale, the rest on a logarithmic one."""
    style, shown, points = styles([r.method for r in rows]), [], []
    for row in rows:
        gain, x = row.metrics[meter.name], cost(row)
        if gain is not None and x is not None:
            shown.append(row)
            points.append((float(x), scale(meter) * float(gain.estimate)))
    for row, (x, y) in zip(shown, points, strict=True):
        face = style[row.method]["color"] if row.variant == "best" else "white"
        axes.plot(x, y, **style[row.method], markerfacecolor=face, linestyle="", markersize=8, label=row.name)
    edge = 2 * max([linear, *(x for x, _ in points)])
    front = [points[i] for i in pareto_front([(x, meter.sign * y) for x, y in points])]
    front += [(edge, y) for _, y in front[-1:]]  # so that a front of one row is seen too
    axes.plot([x for x, _ in front], [y for _, y in front], color="grey", linewidth=1, zorder=0, drawstyle="steps-post")
    axes.set_xscale("symlog", linthresh=linear)
    axes.set_xlim(-linear / 5, edge)
    axes.grid(alpha=0.3)


def low_data_figure(comparison: Comparison) -> Figure | None:
    """Return the main figure against the number of training questions, or None if only one number was run."""
    if len(comparison.sizes) < 2:
        return None
    figure, axes = new_figure(8, 4.6)
    meter, times = comparison.main, scale(comparison.main)
    whole = max((t["n"]["train"] + t["n"]["validation"] for t in comparison.tests if t["status"] == "done"), default=0)
    curves: dict[str, list[tuple[int, Any]]] = {}
    for size in comparison.sizes:
        for row in comparison.rows(size):
            if row.variant == "best" and (value := row.metrics[meter.name]):
                curves.setdefault(row.method, []).append((size or whole, value.estimate))
    style = styles(comparison.methods)
    for name, curve in curves.items():
        look = style[name]
        curve.sort(key=lambda point: point[0])
        x, y = [n for n, _ in curve], [times * v for _, v in curve]
        axes.plot(x, y, **look, label=name)
        axes.fill_between(
            x, [times * v.low for _, v in curve], [times * v.high for _, v in curve], color=look["color"], alpha=0.08
        )
    label = comparison.worded("training questions, validation part included", "questions")
    axes.set(xlabel=label, ylabel=axis_label(meter), xscale="log", **limits(meter, "y"))
    axes.set_xticks(sorted({n for c in curves.values() for n, _ in c}), minor=False)
    axes.get_xaxis().set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def losses_figure(comparison: Comparison) -> Figure | None:
    """Return the training loss of every method's chosen trials, or None if nothing was trained.

    Each trial is averaged over fiftieths of its run; the line is the mean over folds and seeds, the band their range.
    """
    curves: dict[str, list[list[float]]] = {}
    for test in comparison.tests:
        if test["status"] == "done":
            losses = comparison.trial(test, test["best"])["made"].get("losses")
            if losses:
                curves.setdefault(test["method"], []).append(losses)
    if not curves:
        return None
    figure, axes = new_figure(8, 4.2)
    style = styles(comparison.methods)
    for name, runs in sorted(curves.items(), key=lambda item: comparison.methods.index(item[0])):
        look = style[name]
        smooth = np.array([_fiftieths(losses) for losses in runs])
        x = np.linspace(0, 1, smooth.shape[1])
        axes.plot(x, smooth.mean(0), **look, linewidth=1.5, markevery=10, markersize=5, label=name)
        axes.fill_between(x, smooth.min(0), smooth.max(0), color=look["color"], alpha=0.1, linewidth=0)
    axes.set(xlabel="share of the training run", ylabel="training loss (nats per labelled token)", yscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _fiftieths(losses: Sequence[float]) -> list[float]:
    if len(losses) < 50:
        return np.interp(np.linspace(0, 1, 50), np.linspace(0, 1, len(losses)), losses).tolist()
    return [float(part.mean()) for part in np.array_split(np.asarray(losses), 50)]


def heads_figure(comparison: Comparison) -> Figure | None:
    """Return the probes' accuracy per head, averaged over folds and seeds, with how often each head was shifted."""
    edits = [
        e
        for t in comparison.tests
        if t["status"] == "done"
        for e in (m["edit"] for m in comparison.measurements(t, "best"))
        if "probe_accuracy" in e and e.get("direction") != "random"
    ]
    if not edits:
        return None
    accuracy = np.mean([e["probe_accuracy"] for e in edits], axis=0)
    layers = edits[0]["layers"]
    figure, axes = new_figure(2.2 + 0.42 * accuracy.shape[1], 1.4 + 0.36 * len(layers))
    image = axes.imshow(100 * accuracy, cmap="cividis", vmin=50, vmax=100, origin="lower", aspect="auto")
    counts = np.zeros(accuracy.shape, dtype=int)
    for edit in edits:
        for layer, head in edit["heads"]:
            counts[layers.index(layer), head] += 1
    small = accuracy.size <= 300
    for (row, head), count in np.ndenumerate(counts):
        if count and small:
            color = "white" if accuracy[row, head] < 0.75 else "black"
            axes.text(head, row, str(count), ha="center", va="center", color=color, fontsize="small")
    axes.set_yticks(range(len(layers)), [str(x) for x in layers])
    axes.set(xlabel="head", ylabel="layer", title=f"How often shifted in {len(edits)} fit(s)" if small else "")
    figure.colorbar(image, label="probe accuracy (%)")
    return figure


def new_figure(width: float | int, height: float | int, *, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """Return a figure and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns)
