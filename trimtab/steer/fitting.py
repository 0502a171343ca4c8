"""fit_shift and fit_residual_shift: from activations and probes to vectors at the sites that the probes read best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.activations.captured import HeadActivations
from trimtab.activations.labelled import Head
from trimtab.activations.shards import ActivationStore
from trimtab.devices import one_thread
from trimtab.edits.vectors import HeadShift, ResidualShift
from trimtab.errors import BadDataset, BadValue, ShapeError
from trimtab.probes.head_probes import HeadProbes
from trimtab.protocols import Cost, stopwatch
from trimtab.steer.screen import item_differences

Activations: TypeAlias = HeadActivations | ActivationStore


def mass_mean(acts: Activations, probes: HeadProbes, head: Head) -> Float[Tensor, " d_head"]:  # noqa: ARG001
    """Return mean(true) - mean(false) of a head's activations."""
    x = _of_head(acts, head)
    return x[acts.labels].mean(0) - x[~acts.labels].mean(0)


def probe_weights(acts: Activations, probes: HeadProbes, head: Head) -> Float[Tensor, " d_head"]:
    """Return the coefficients of a head's probe."""
    return probes.coef[acts.layers.index(head.layer), head.head].double()


class Direction(NamedTuple):
    """A way of finding a head's direction, of any length."""

    shift: str
    """What a shift along it is called in tables."""
    of: Callable[[Activations, HeadProbes, Head], Float[Tensor, " d_head"]]
    random: bool = False
    """Whether the shift is turned at random afterwards: the control."""


DIRECTIONS: Mapping[str, Direction] = {
    "mass_mean": Direction("ITI", mass_mean),
    "probe": Direction("ITI (probe weights)", probe_weights),
    "random": Direction("Random direction", mass_mean, random=True),
}


def direction_named(name: str) -> Direction:
    """Return the way of this name; raises `BadValue` for one that there is not."""
    if name not in DIRECTIONS:
        *others, last = DIRECTIONS
        raise BadValue(f"unknown direction {name!r}; choose {', '.join(others)} or {last}")
    return DIRECTIONS[name]


@one_thread()
def fit_shift(
    acts: Activations,
    probes: HeadProbes,
    *,
    top_k: int = 8,
    direction: str = "mass_mean",
    sigma_statements: Activations | None = None,
    seed: int = 0,
    heads: Sequence[Head] | None = None,
) -> HeadShift:
    """Return a shift of strength 1 on the heads that the probes read best, or on given ones.

    Args:
        acts: training activations (`site="heads"`), example layer head d_head.
        probes: their accuracies rank the heads; their coefficients are the directions if asked for.
        top_k: number of heads, K in the paper.
        direction: `"mass_mean"`: mean(true) - mean(false); `"probe"`: the probe's coefficients; `"random"`: the
            control, isotropic directions scaled so that each head's shift has the norm it has for mass_mean.
        sigma_statements: activations on which the spread along a direction is measured; the training ones if not
            given. The original code uses another prompt bank; strengths are not portable between banks.
        seed: of the random directions.
        heads: the heads to shift, best first, in place of the `top_k` best.

    Raises:
        BadDataset, BadValue: one class only; NaN; more heads asked for than there are, or others; an unknown direction.
        ShapeError: activations, probes or sigma_statements of different geometry.
    """
    way = direction_named(direction)
    if acts.record.get("site", "heads") != "heads":
        raise BadValue("a head shift needs activations captured with site='heads', got site='residual'")
    acts.require_both_labels().require_finite()
    bank = acts if sigma_statements is None else sigma_statements.require_finite()
    _require_same_heads(acts, "probes", probes.layers, probes.coef.shape)
    _require_same_heads(acts, "sigma_statements", bank.layers, bank.geometry)
    if len(bank) < 2:
        raise BadDataset(f"sigma_statements holds {len(bank)} statements; a spread needs two or more")
    with stopwatch() as seconds:
        heads = probes.top(top_k) if heads is None else tuple(Head(*head) for head in heads)
        units = torch.stack([_unit(way.of(acts, probes, head), head) for head in heads])
        sigma = _sigma(bank, heads, units)
    record = {
        **{key: acts.record[key] for key in ("model", "named_heads") if key in acts.record},
        "direction": direction,
        "position": acts.record.get("position"),
        "n_statements": len(acts),
        "sigma_bank": "training statements" if sigma_statements is None else "given statements",
        **_ranking(probes, heads),
        "questions": _questions(acts, probes),
        "seed": seed,
    }
    cost = Cost(seconds[0], units.numel(), 0)
    shift = HeadShift(heads, units.float(), sigma.float(), name=way.shift, cost=cost, record=record)
    return shift.randomised(seed) if way.random else shift


@one_thread()
def fit_residual_shift(
    acts: HeadActivations, probes: HeadProbes, *, top_k: int = 1, layers: Sequence[int] | None = None
) -> ResidualShift:
    """Return a shift of strength 1 on the layers whose residual streams the probes read best, or on given ones.

    A layer's vector is the mean over questions of mean(positive) - mean(negative): over contrast pairs, the mean
    difference of Rimsky et al. (2023, section 3).

    Args:
        acts: training activations captured with `site="residual"`, example layer 1 d_model.
        probes: their accuracies rank the layers. The paper chooses the layer by the effect of steering it, as `fit`
            and `rank_sites` do.
        top_k: number of layers.
        layers: the layers to shift, best first, in place of the `top_k` best.

    Raises:
        BadDataset, BadValue: one class only; a question without both classes; NaN; activations of heads; more
            layers asked for than there are.
        ShapeError: activations and probes of different geometry.
    """
    if acts.record.get("site", "residual") != "residual":
        raise BadValue("a residual shift needs activations captured with site='residual', got site='heads'")
    acts.require_both_labels().require_finite()
    if (probes.layers, tuple(probes.coef.shape)) != (acts.layers, tuple(acts.values.shape[1:])):
        raise ShapeError(
            f"activations {tuple(acts.values.shape[1:])} and probes {tuple(probes.coef.shape)} differ (layer 1 "
            "d_model); make both on the same model with site='residual'"
        )
    if not 1 <= top_k <= len(acts.layers):
        raise BadValue(f"top {top_k} layers asked for; the model has {len(acts.layers)}, choose 1 to that many")
    missing = sorted(set(layers or ()) - set(acts.layers))
    if missing:
        raise BadValue(f"no layer {missing[0]}: the model has layers {min(acts.layers)} to {max(acts.layers)}")
    with stopwatch() as seconds:
        best = probes.top(top_k) if layers is None else tuple(Head(layer, 0) for layer in layers)
        chosen = [acts.layers.index(place.layer) for place in best]
        there = replace(acts, values=acts.values[:, chosen], layers=tuple(place.layer for place in best))
        vectors = item_differences(there).mean(0)[:, 0].float()
    record = {
        **({"model": acts.record["model"]} if "model" in acts.record else {}),
        "position": acts.record.get("position"),
        "n_statements": len(acts),
        **_ranking(probes, best),
        "questions": _questions(acts, probes),
    }
    cost = Cost(seconds[0], vectors.numel(), 0)
    return ResidualShift(tuple(place.layer for place in best), vectors, cost=cost, record=record)


def _ranking(probes: HeadProbes, best: tuple[Head, ...]) -> dict[str, Any]:
    return {
        "accuracy": [float(probes.accuracy[probes.layers.index(h.layer), h.head]) for h in best],
        "validation_questions": list(probes.validation_questions),
    }


def _questions(acts: Activations, probes: HeadProbes) -> list[str]:
    return sorted({*acts.groups, *probes.validation_questions})


def _require_same_heads(acts: Activations, what: str, layers: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if (layers, tuple(shape)) != (acts.layers, acts.geometry):
        raise ShapeError(
            f"activations {acts.geometry} and {what} {tuple(shape)} differ (layer head d_head), or are "
            "of other layers; make both on the same model with site='heads'"
        )


def _unit(vector: Float[Tensor, " d_head"], head: Head) -> Float[Tensor, " d_head"]:
    if float(vector.norm()) == 0:
        raise BadValue(f"layer {head.layer} head {head.head} has a zero direction: its activations do not vary")
    return vector / vector.norm()


def _of_head(acts: Activations, head: Head) -> Float[Tensor, "example d_head"]:
    # without the names of the questions, of which `acts.head` makes an array
    return acts.values_of(head.layer, slice(head.head, head.head + 1))[:, 0].double()


def _sigma(bank: Activations, heads: tuple[Head, ...], units: Float[Tensor, "k d_head"]) -> Float[Tensor, " k"]:
    projections = [_of_head(bank, head) @ unit for head, unit in zip(heads, units, strict=True)]
    return torch.stack(projections).std(dim=1, correction=0)
