"""choose_strength: sweep head count and strength on validation questions, within a budget of drift."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, product
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.prose import validation_texts
from trimtab.edits.combined import NoEdit
from trimtab.edits.residual import ResidualShift
from trimtab.edits.shifts import HeadShift
from trimtab.errors import BadValue, Incompatible
from trimtab.evaluate.drift import drifts
from trimtab.evaluate.generation import generate_answers_many
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.judges.verdicts import judge_record
from trimtab.evaluate.multiple_choice import multiple_choice_many
from trimtab.progress import tracked
from trimtab.protocols import Edit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHAS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


Shift = TypeVar("Shift", HeadShift, ResidualShift)
Metric: TypeAlias = Callable[[Any, Any, ItemSet[Any], Edit], float | int]
"""Scores an edit on questions: (model, tokenizer, questions, edit) -> a number, more is better."""


@dataclass(frozen=True)
class Trial:
    """One setting of a sweep and what it did on the validation questions."""

    top_k: int
    strength: float | int
    kl: float
    score: float | None
    """The metric; None where the KL was over the budget, since the setting could not be chosen."""


def choose_strength(
    model: Any,
    tokenizer: Any,
    questions: ItemSet[Any],
    shift: Shift,
    *,
    kl_budget: float | int = 0.1,
    metric: Literal["true_info", "mc1"] | Metric = "true_info",
    alphas: Sequence[float | int] = ALPHAS,
    top_ks: Sequence[int] | None = None,
    judge: Any = exact_judge,
    texts: Sequence[str] | None = None,
) -> Shift:
    """Return the shift with the head count and strength that do best on validation questions within the budget.

    For every K and sign the strengths are tried from weak to strong, and that sweep ends at the first one whose
    KL(unedited || edited) on neutral text is over the budget. The record of the result keeps every trial under
    "sweep" (see `sweep_figure`).

    Args:
        questions: training questions; those that the shift's probes were validated on are used, or all of them if
            the shift does not say. Directions fitted on one capture of all of them have seen these, as in ITI's own
            code; capture them apart, as `steer.fit` does, to keep them unseen.
        kl_budget: in nats per token, shift at all positions.
        metric: `"true_info"` of generated answers by `judge`, `"mc1"`, or a callable
            `(model, tokenizer, questions, edit) -> float`, more being better.
        alphas: strengths to try, in units of the given shift's strength; negative ones push the other way.
        top_ks: head counts to try, each the shift's best; its whole, half and quarter if not given.
        texts: neutral texts; if not given, 64 of trimtab's own that `drift` does not report on.

    Raises:
        BadValue: no setting stays within the budget; no strengths to try; a head count that the shift does not have.
        Incompatible: the shift changes nothing at any strength.
    """
    if not callable(metric) and metric not in ("true_info", "mc1"):
        raise BadValue(f"unknown metric {metric!r}; choose true_info or mc1, or pass a callable")
    name = judge_record(metric)["name"] if callable(metric) else metric
    require_budget(kl_budget)
    ks, alphas = _grid(shift, top_ks, alphas)
    validation = _validation_part(questions, shift)
    texts = validation_texts() if texts is None else texts

    kls = _kls(model, tokenizer, shift, ks, alphas, texts, kl_budget)
    within = [setting for setting, kl in kls.items() if kl <= kl_budget]
    edits = [NoEdit(), *(shift.first(k).scaled(alpha) for k, alpha in within)]
    if callable(metric):
        unedited, *scores = (
            _number(metric(model, tokenizer, validation, e), name) for e in tracked(edits, "choosing strength")
        )
    elif metric == "mc1":
        unedited, *scores = (float(m.mc1) for m in multiple_choice_many(model, tokenizer, validation, edits))
    else:
        said = generate_answers_many(model, tokenizer, validation, edits, judge=judge)
        unedited, *scores = (float(answers.true_info) for answers in said)
    scored = dict(zip(within, scores, strict=True))
    trials = [Trial(0, 0.0, 0.0, unedited)]
    trials += [Trial(k, alpha, kl, scored.get((k, alpha))) for (k, alpha), kl in kls.items()]
    best = _best(trials, kl_budget)
    if best.score is not None and trials[0].score is not None and best.score <= trials[0].score:
        warnings.warn(
            f"no setting within a KL of {kl_budget} beats the unedited model's {name} of {trials[0].score:.3f} on "
            f"{len(validation)} validation questions; the best has {best.score:.3f}",
            stacklevel=2,
        )
    sweep = {
        "metric": name,
        "judge": judge_record(judge) if metric == "true_info" else getattr(metric, "record", None),
        "kl_budget": kl_budget,
        "n_validation": len(validation),
        "trials": [asdict(t) for t in trials],
        "chosen": asdict(best),
    }
    chosen = shift.first(best.top_k).scaled(best.strength)
    return replace(chosen, record={**shift.record, "sweep": sweep})


def require_budget(kl_budget: float | int) -> None:
    """Raise `BadValue` if no drift at all would stay within the budget."""
    if not kl_budget > 0:
        raise BadValue(f"kl_budget must be positive, got {kl_budget}; give nats per token, such as 0.1")


def sweep_figure(shift: HeadShift | ResidualShift) -> Figure:
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


def _grid(
    shift: HeadShift | ResidualShift, top_ks: Sequence[int] | None, alphas: Sequence[float | int]
) -> tuple[list[int], list[float | int]]:
    whole = len(shift)
    ks = sorted({whole, max(1, whole // 2), max(1, whole // 4)} if top_ks is None else set(top_ks))
    if not ks or not 1 <= ks[0] <= ks[-1] <= whole:
        raise BadValue(f"top_ks must hold head counts from 1 to the shift's {whole}, got {ks}")
    nonzero = sorted({a for a in alphas if a != 0}, key=lambda a: (abs(a), a))
    if not nonzero or not all(abs(a) < float("inf") for a in nonzero):
        raise BadValue(f"alphas must hold finite strengths, at least one of them not 0, got {list(alphas)}")
    return ks, nonzero


def _kls(
    model: Any,
    tokenizer: Any,
    shift: HeadShift | ResidualShift,
    ks: Sequence[int],
    alphas: Sequence[float | int],
    texts: Sequence[str],
    kl_budget: float | int,
) -> dict[tuple[int, float | int], float]:
    """Return every setting's drift, up to the first over the budget for each K and sign, K by K."""
    found, over = {}, set()
    for alpha in tracked(alphas, "measuring drift of strengths"):
        open_ks = [k for k in ks if (k, alpha > 0) not in over]
        edits = [shift.first(k).scaled(alpha) for k in open_ks]
        for k, moved in zip(open_ks, drifts(model, tokenizer, edits, texts=texts) if edits else (), strict=True):
            found[k, alpha] = float(moved.kl)
            if moved.kl > kl_budget:
                over.add((k, alpha > 0))
    return {setting: found[setting] for setting in product(ks, alphas) if setting in found}


def _number(score: Any, name: str) -> float:
    if not isinstance(score, int | float | np.number) or not isfinite(score):
        raise BadValue(f"the metric {name} returned {score!r:.60}, expected a finite number")
    return float(score)


def _validation_part(questions: ItemSet[Any], shift: HeadShift | ResidualShift) -> ItemSet[Any]:
    held = set(shift.record.get("validation_questions", ()))
    part = [i for i, q in enumerate(questions) if q.key in held]
    return questions.select(part) if part else questions


def _best(trials: Sequence[Trial], kl_budget: float | int) -> Trial:
    tried = trials[1:]
    if all(t.kl == 0 for t in tried):
        raise Incompatible("the shift changes nothing at any strength: it does not act on this model")
    within = [t for t in tried if t.score is not None]
    if not within:
        least = min(tried, key=lambda t: t.kl)
        raise BadValue(
            f"no setting stays within a KL of {kl_budget}: the smallest is {least.kl:.3g} at strength "
            f"{least.strength} on {least.top_k} heads; raise kl_budget or try smaller alphas"
        )
    # equal scores go to the smaller drift
    return max(within, key=lambda t: (t.score, -t.kl))
