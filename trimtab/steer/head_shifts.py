"""fit_shift: from activations and probes to directions, their spread, and the heads to shift."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from trimtab.activations.captured import HeadActivations
from trimtab.activations.labelled import Head
from trimtab.activations.shards import ActivationStore
from trimtab.edits.shifts import HeadShift
from trimtab.errors import BadDataset, BadValue, ShapeError
from trimtab.probes.head_probes import HeadProbes
from trimtab.protocols import Cost, stopwatch

Direction = Literal["mass_mean", "probe", "random"]


def fit_shift(
    acts: HeadActivations | ActivationStore,
    probes: HeadProbes,
    *,
    top_k: int = 8,
    direction: Direction = "mass_mean",
    sigma_statements: HeadActivations | ActivationStore | None = None,
    seed: int = 0,
) -> HeadShift:
    """Return a shift of strength 1 on the heads that the probes read best.

    Args:
        acts: training activations (`site="heads"`), example layer head d_head.
        probes: their accuracies rank the heads; their coefficients are the directions if asked for.
        top_k: number of heads, K in the paper.
        direction: `"mass_mean"`: mean(true) - mean(false); `"probe"`: the probe's coefficients; `"random"`: the
            control, isotropic directions scaled so that each head's shift has the norm it has for mass_mean.
        sigma_statements: activations on which the spread along a direction is measured; the training ones if not
            given. The original code uses another prompt bank; strengths are not portable between banks.
        seed: of the random directions.

    Raises:
        BadDataset, BadValue: one class only; NaN; more heads asked for than there are; an unknown direction.
        ShapeError: activations, probes or sigma_statements of different geometry.
    """
    if direction not in ("mass_mean", "probe", "random"):
        raise BadValue(f"unknown direction {direction!r}; choose mass_mean, probe or random")
    if acts.record.get("site", "heads") != "heads":
        raise BadValue("a head shift needs activations captured with site='heads', got site='residual'")
    acts.require_both_labels().require_finite()
    bank = acts if sigma_statements is None else sigma_statements.require_finite()
    _require_same_heads(acts, "probes", probes.layers, probes.coef.shape)
    _require_same_heads(acts, "sigma_statements", bank.layers, bank.geometry)
    if len(bank) < 2:
        raise BadDataset(f"sigma_statements holds {len(bank)} statements; a spread needs two or more")
    with stopwatch() as seconds:
        heads = probes.top(top_k)
        mean_units = torch.stack([_mass_mean(acts, head) for head in heads])
        if direction == "probe":
            units = torch.stack([_unit(probes.coef[acts.layers.index(h.layer), h.head], h) for h in heads])
        elif direction == "random":
            generator = torch.Generator().manual_seed(seed)
            units = normalize(torch.randn(mean_units.shape, generator=generator, dtype=torch.float64), dim=1)
        else:
            units = mean_units
        # random directions keep the norm of the real shift, so that only the direction differs
        sigma = _sigma(bank, heads, mean_units if direction == "random" else units)
    record: dict[str, Any] = {
        **{key: acts.record[key] for key in ("model", "named_heads") if key in acts.record},
        "direction": direction,
        "position": acts.record.get("position"),
        "n_statements": len(acts),
        "sigma_bank": "training statements" if sigma_statements is None else "given statements",
        "accuracy": [float(probes.accuracy[acts.layers.index(h.layer), h.head]) for h in heads],
        "validation_questions": list(probes.validation_questions),
        "questions": sorted({*acts.groups, *probes.validation_questions}),
        "seed": seed,
    }
    name = {"mass_mean": "ITI", "probe": "ITI (probe weights)", "random": "Random direction"}[direction]
    cost = Cost(seconds[0], units.numel(), 0)
    return HeadShift(heads, units.float(), sigma.float(), 1.0, name, cost, record)


def _require_same_heads(
    acts: HeadActivations | ActivationStore, what: str, layers: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    if (layers, tuple(shape)) != (acts.layers, acts.geometry):
        raise ShapeError(
            f"activations {acts.geometry} and {what} {tuple(shape)} differ (layer head d_head), or are "
            "of other layers; make both on the same model with site='heads'"
        )


def _mass_mean(acts: HeadActivations | ActivationStore, head: Head) -> Float[Tensor, " d_head"]:
    x = torch.from_numpy(acts.head(*head).X).double()
    return _unit(x[acts.labels].mean(0) - x[~acts.labels].mean(0), head)


def _unit(vector: Float[Tensor, " d_head"], head: Head) -> Float[Tensor, " d_head"]:
    vector = vector.double()
    if float(vector.norm()) == 0:
        raise BadValue(f"layer {head.layer} head {head.head} has a zero direction: its activations do not vary")
    return vector / vector.norm()


def _sigma(
    bank: HeadActivations | ActivationStore, heads: tuple[Head, ...], units: Float[Tensor, "k d_head"]
) -> Float[Tensor, " k"]:
    projections = [
        torch.from_numpy(bank.head(*head).X).double() @ unit for head, unit in zip(heads, units, strict=True)
    ]
    return torch.stack(projections).std(dim=1, correction=0)
