"""fit_residual_shift: from activations and probes to mean differences of the residual stream."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.activations.captured import HeadActivations
from trimtab.edits.residual import ResidualShift
from trimtab.errors import BadDataset, BadValue, ShapeError
from trimtab.probes.head_probes import HeadProbes
from trimtab.protocols import Cost, stopwatch


def fit_residual_shift(acts: HeadActivations, probes: HeadProbes, *, top_k: int = 1) -> ResidualShift:
    """Return a shift of strength 1 on the layers whose residual streams the probes read best.

    A layer's vector is the mean over questions of mean(positive) - mean(negative): over contrast pairs, the mean
    difference of Rimsky et al. (2023, section 3).

    Args:
        acts: training activations captured with `site="residual"`, example layer 1 d_model.
        probes: their accuracies rank the layers. The paper chooses the layer by the effect of steering it, as
            `choose_strength` does among the first k.
        top_k: number of layers.

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
    with stopwatch() as seconds:
        layers = tuple(place.layer for place in probes.top(top_k))
        difference = _mean_over_questions(acts)
        vectors = difference[[acts.layers.index(layer) for layer in layers]].float()
    record: dict[str, Any] = {
        **({"model": acts.record["model"]} if "model" in acts.record else {}),
        "position": acts.record.get("position"),
        "n_statements": len(acts),
        "accuracy": [float(probes.accuracy[acts.layers.index(layer), 0]) for layer in layers],
        "validation_questions": list(probes.validation_questions),
        "questions": sorted({*acts.groups, *probes.validation_questions}),
    }
    return ResidualShift(layers, vectors, 1.0, "CAA", Cost(seconds[0], vectors.numel(), 0), record)


def _mean_over_questions(acts: HeadActivations) -> Float[Tensor, "layer d_model"]:
    numbers = {group: i for i, group in enumerate(dict.fromkeys(acts.groups))}
    index = torch.tensor([numbers[g] for g in acts.groups])
    x = acts.values[:, :, 0].double()
    means = []
    for label in (True, False):
        chosen = acts.labels == label
        count = torch.bincount(index[chosen], minlength=len(numbers))
        if not bool(count.all()):
            group = list(numbers)[int((count == 0).nonzero()[0])]
            raise BadDataset(f"{group[:60]!r} has only {'negative' if label else 'positive'} texts; give both kinds")
        total = torch.zeros(len(numbers), *x.shape[1:], dtype=x.dtype).index_add_(0, index[chosen], x[chosen])
        means.append(total / count[:, None, None])
    return (means[0] - means[1]).mean(0)
