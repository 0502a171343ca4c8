"""Logistic regressions of many heads at once by Newton's method, for GPUs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.errors import BadValue


class Fitted(NamedTuple):
    """One logistic regression per head."""

    coef: Float[Tensor, "head d_head"]
    intercept: Float[Tensor, " head"]
    gradient: float
    """The largest entry of the objective's gradient at the end, divided by the number of examples."""


def newton_logistic(
    x: Float[Tensor, "example head d_head"],
    labels: Bool[Tensor, " example"],
    *,
    C: float | int = 1.0,
    tolerance: float = 1e-8,
    max_steps: int = 100,
) -> Fitted:
    """Return every head's L2-regularised logistic regression, where `x` lives.

    The optimum of scikit-learn's objective, `C * sum(log loss) + |w|^2 / 2` with the intercept not penalised, by
    Newton steps on all heads together, halved until the objective falls (as scikit-learn's newton-cholesky does for
    one). Sums over examples are in the dtype of `x`; the steps are solved in float64, so that features with a wide
    spectrum reach the same optimum.

    Raises:
        BadValue: the steps do not converge (the message says how far the gradient is from 0).
    """
    design = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=-1).transpose(0, 1).contiguous()
    target = labels.to(x.device, x.dtype)
    penalty = torch.ones(design.shape[-1], dtype=torch.float64, device=x.device)
    penalty[-1] = 0
    weight = torch.zeros(design.shape[0], design.shape[-1], dtype=torch.float64, device=x.device)
    loss, gradient, hessian = _derivatives(design, target, weight, penalty, C)
    for _ in range(max_steps):
        largest = float(gradient.abs().max()) / (C * len(labels))
        if largest <= tolerance:
            break
        step = torch.linalg.solve(hessian, gradient)
        # where the gain is within rounding, the full step is right: a search along it would see noise only
        gain = torch.einsum("hd,hd->h", step, gradient)
        size = torch.ones_like(loss)
        for _ in range(30):
            found = _objective(design, target, weight - size[:, None] * step, penalty, C)
            rose = found > loss - 1e-4 * size * gain + _noise(loss, x.dtype)
            if not bool(rose.any()):
                break
            size = torch.where(rose, size / 2, size)
        weight = weight - size[:, None] * step
        before = largest
        loss, gradient, hessian = _derivatives(design, target, weight, penalty, C)
        after = float(gradient.abs().max()) / (C * len(labels))
        if after >= before and after <= _floor(x.dtype):
            break
    largest = float(gradient.abs().max()) / (C * len(labels))
    if not largest <= max(tolerance, _floor(x.dtype)):
        raise BadValue(f"the probes did not converge in {max_steps} Newton steps (gradient {largest:.1e}); lower C")
    return Fitted(weight[:, :-1], weight[:, -1], largest)


def _floor(dtype: torch.dtype) -> float:
    # the gradient is a mean of as many terms as there are examples, each rounded in the features' dtype
    return 1e-5 if dtype == torch.float32 else 1e-8


def _noise(loss: Float[Tensor, " head"], dtype: torch.dtype) -> Float[Tensor, " head"]:
    return 16 * torch.finfo(dtype).eps * loss.abs()


def _margins(
    design: Float[Tensor, "head example width"], weight: Float[Tensor, "head width"]
) -> Float[Tensor, "head example"]:
    return torch.einsum("hed,hd->he", design, weight.to(design.dtype))


def _objective(
    design: Float[Tensor, "head example width"],
    target: Float[Tensor, " example"],
    weight: Float[Tensor, "head width"],
    penalty: Float[Tensor, " width"],
    C: float | int,
) -> Float[Tensor, " head"]:
    margins = _margins(design, weight)
    losses = torch.nn.functional.softplus(margins) - target * margins
    return C * losses.double().sum(1) + (penalty * weight.square()).sum(1) / 2


def _derivatives(
    design: Float[Tensor, "head example width"],
    target: Float[Tensor, " example"],
    weight: Float[Tensor, "head width"],
    penalty: Float[Tensor, " width"],
    C: float | int,
) -> tuple[Float[Tensor, " head"], Float[Tensor, "head width"], Float[Tensor, "head width width"]]:
    margins = _margins(design, weight)
    losses = torch.nn.functional.softplus(margins) - target * margins
    chance = torch.sigmoid(margins)
    loss = C * losses.double().sum(1) + (penalty * weight.square()).sum(1) / 2
    gradient = C * torch.einsum("hed,he->hd", design, chance - target).double() + penalty * weight
    curvature = (chance * (1 - chance)).sqrt()[..., None] * design
    hessian = C * (curvature.transpose(1, 2) @ curvature).double() + torch.diag(penalty)
    return loss, gradient, hessian
