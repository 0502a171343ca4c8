"""choose_strength: sweep how many sites and how strongly on validation questions, within a budget of drift."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, product
from typing import TYPE_CHECKING, Any, TypeVar

from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.prose import validation_texts
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadValue, Incompatible
from trimtab.evaluate.drift import drifts
from trimtab.evaluate.table import summed_up
from trimtab.progress import tracked
from trimtab.protocols import Edit, Measured, Meter
from trimtab.steer.meters import Metric, meter_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHAS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
Chosen = TypeVar("Chosen", bound=Edit)


@dataclass(frozen=True)
class Trial:
    """One setting of a sweep and what it did on the validation questions."""

    top_k: int
    strength: float | int
    kl: float
    score: float | None
    """The metric; None where the KL was over the budget, since the setting could not be chosen."""


@dataclass(frozen=True)
class Sweep:
    """What `choose_strength` tries, and on what."""

    alphas: Sequence[float | int] = ALPHAS
    """Strengths, in units of the given edit's strength; negative ones push the other way."""
    top_ks: Sequence[int] | None = None
    """Numbers of sites, each the edit's best; all, half and a quarter of them if not given."""
    texts: Sequence[str] | None = None
    """Neutral texts for the drift: 64 of trimtab's own that `drift` does not report on, if not given."""
    validated_only: bool = True
    """Whether, of the questions, only those that ranked the edit's sites are used, where any of them did: its
    directions have not seen them."""

    def sites(self, n: int) -> list[int]:
        """Return the numbers of sites to try of an edit that has n; raises `BadValue` for one that it does not have."""
        ks = sorted({n, max(1, n // 2), max(1, n // 4)} if self.top_ks is None else set(self.top_ks))
        if not ks or not 1 <= ks[0] <= ks[-1] <= n:
            raise BadValue(f"top_ks must hold head counts from 1 to the shift's {n}, got {ks}")
        return ks

    def strengths(self) -> list[float | int]:
        """Return the strengths from weak to strong, without 0; raises `BadValue` for none, or an infinite one."""
        alphas = sorted({a for a in self.alphas if a != 0}, key=lambda a: (abs(a), a))
        if not alphas or not all(abs(a) < float("inf") for a in alphas):
            raise BadValue(f"alphas must hold finite strengths, at least one of them not 0, got {list(self.alphas)}")
        return alphas

    def questions(self, given: ItemSet[Any], edit: Edit) -> ItemSet[Any]:
        """Return the questions to choose on."""
        ranked = set(edit.validated_on) if self.validated_only else set()
        held = [i for i, question in enumerate(given) if question.key in ranked]
        return given.select(held) if held else given


def choose_strength(
    model: Any,
    tokenizer: Any,
    questions: ItemSet[Any],
    shift: Chosen,
    *,
    kl_budget: float | int = 0.1,
    metric: str | Metric | Meter = "true_info",
    sweep: Sweep | None = None,
) -> Chosen:
    """Return the edit with the number of sites and strength that do best on validation questions within the budget.

    For every number of sites and sign the strengths are tried from weak to strong, and that sweep ends at the first
    one whose KL(unedited || edited) on neutral text is over the budget. The record of the result keeps every trial
    under "sweep" (see `sweep_figure`).

    Args:
        questions: training questions, of which those that ranked the edit's sites are used (`Sweep.validated_only`).
        shift: a shift, or another edit that can be scaled.
        kl_budget: in nats per token, edit at all positions.
        metric: `"true_info"` of generated answers by the exact judge, `"mc1"`, a `Meter`, or a callable
            `(model, tokenizer, questions, edit) -> float`, more being better.
        sweep: what is tried; the default `Sweep` if not given.

    Raises:
        BadValue: no setting stays within the budget; no strengths to try; a number of sites that the edit lacks; an
            edit that cannot be scaled.
        Incompatible: the edit changes nothing at any strength.
    """
    meter, sweep = meter_for(metric).choosing, sweep or Sweep()
    require_budget(kl_budget)
    settings = list(product(sweep.sites(shift.n_sites), sweep.strengths()))
    validation = sweep.questions(questions, shift)
    texts = validation_texts() if sweep.texts is None else sweep.texts

    edits = {(k, alpha): shift.first(k).scaled(alpha) for k, alpha in settings}
    kls = _kls(model, tokenizer, edits, texts, kl_budget)
    within = [setting for setting, kl in kls.items() if kl <= kl_budget]
    tried = [NoEdit(), *(edits[setting] for setting in within)]
    found = meter.instrument.measure(model, tokenizer, validation, tried, asking=validation.asking)
    unedited, *scores = (_figure(meter, of, edit) for of, edit in zip(found, tried, strict=True))
    scored = dict(zip(within, scores, strict=True))
    trials = [Trial(k, alpha, kl, scored.get((k, alpha))) for (k, alpha), kl in kls.items()]
    best = _best(trials, kl_budget, meter)
    if best.score is not None and meter.sign * best.score <= meter.sign * unedited:
        warnings.warn(
            f"no setting within a KL of {kl_budget} beats the unedited model's {meter.name} of {unedited:.3f} on "
            f"{len(validation)} validation questions; the best has {best.score:.3f}",
            stacklevel=2,
        )
    record = {
        "metric": meter.name,
        "judge": next((of.record.get("judge") for of in found if of), None),
        "kl_budget": kl_budget,
        "better": meter.better,
        "n_validation": len(validation),
        "trials": [asdict(t) for t in (Trial(0, 0.0, 0.0, unedited), *trials)],
        "chosen": asdict(best),
    }
    chosen: Any = edits[best.top_k, best.strength].with_record(sweep=record)
    return chosen


def require_budget(kl_budget: float | int) -> None:
    """Raise `BadValue` if no drift at all would stay within the budget."""
    if not kl_budget > 0:
        raise BadValue(f"kl_budget must be positive, got {kl_budget}; give nats per token, such as 0.1")


def sweep_figure(shift: Edit) -> Figure:
    """Return a figure of a chosen shift's sweep: the metric and the KL against strength, a line per head count.

    Raises:
        BadValue: the shift did not come from `choose_strength`.
    """
    from matplotlib.figure import Figure

    sweep = shift.record.get("sweep")
    if sweep is None:
        raise BadValue("this shift has no sweep: it did not come from choose_strength")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    baseline, *trials = sweep["trials"]
    for k, marker in zip(sorted({t["top_k"] for t in trials}), cycle("os^Dvx"), strict=False):
        rows = sorted((t for t in trials if t["top_k"] == k), key=lambda t: t["strength"])
        scored = [t for t in rows if t["score"] is not None]
        left.plot(
            [t["strength"] for t in scored], [t["score"] for t in scored], marker=marker, alpha=0.8, label=f"K = {k}"
        )
        right.plot([t["strength"] for t in rows], [t["kl"] for t in rows], marker=marker, alpha=0.8, label=f"K = {k}")
    left.axhline(baseline["score"], color="grey", linestyle="--", label="unedited")
    best = sweep["chosen"]
    left.plot(
        best["strength"],
        best["score"],
        marker="*",
        markersize=16,
        color="black",
        linestyle="",
        label="chosen",
    )
    label = {"true_info": "True*Info", "mc1": "MC1"}.get(sweep["metric"], sweep["metric"])
    left.set(
        xlabel="strength alpha",
        ylabel=label,
        ylim=(0, 1),
        title=f"{sweep['n_validation']} validation questions",
    )
    right.axhline(sweep["kl_budget"], color="grey", linestyle="--", label="budget")
    right.set(xlabel="strength alpha", ylabel="KL (nats per token)", yscale="log", title="Drift on neutral text")
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    return figure


def _kls(
    model: Any,
    tokenizer: Any,
    edits: Mapping[tuple[int, float | int], Edit],
    texts: Sequence[str],
    kl_budget: float | int,
) -> dict[tuple[int, float | int], float]:
    """Return the drift of the settings in their order, up to the first over the budget for each K and sign."""
    found, over = {}, set()
    for alpha in tracked(list(dict.fromkeys(alpha for _, alpha in edits)), "measuring drift of strengths"):
        row = [(k, a) for k, a in edits if a == alpha and (k, a > 0) not in over]
        moves = drifts(model, tokenizer, [edits[setting] for setting in row], texts=texts) if row else ()
        for setting, moved in zip(row, moves, strict=True):
            found[setting] = float(moved.kl)
            if moved.kl > kl_budget:
                over.add((setting[0], alpha > 0))
    return {setting: found[setting] for setting in edits if setting in found}


def _figure(meter: Meter, found: Measured | None, edit: Edit) -> float:
    value = summed_up(meter, found)
    if value is None:
        raise BadValue(f"{meter.name} says nothing of {edit.name}; choose its setting by another meter")
    return float(value)


def _best(trials: Sequence[Trial], kl_budget: float | int, meter: Meter) -> Trial:
    if all(t.kl == 0 for t in trials):
        raise Incompatible("the shift changes nothing at any strength: it does not act on this model")
    scored = {trial: trial.score for trial in trials if trial.score is not None}
    if not scored:
        least = min(trials, key=lambda t: t.kl)
        raise BadValue(
            f"no setting stays within a KL of {kl_budget}: the smallest is {least.kl:.3g} at strength "
            f"{least.strength} on {least.top_k} heads; raise kl_budget or try smaller alphas"
        )
    # equal scores go to the smaller drift
    return max(scored, key=lambda trial: (meter.sign * scored[trial], -trial.kl))
