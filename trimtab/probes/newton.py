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
    problem = _Problem(design, target, penalty, C)
    found = _descended(problem, tolerance, max_steps)
    if not found.gradient <= max(tolerance, _floor(x.dtype)):
        raise BadValue(
            f"the probes did not converge in {max_steps} Newton steps (gradient {found.gradient:.1e}); lower C"
        )
    return found


class _Problem(NamedTuple):
    """What is minimised: `objective` of the weights, the last of which is the intercept."""

    design: Float[Tensor, "head example width"]
    target: Float[Tensor, " example"]
    penalty: Float[Tensor, " width"]
    C: float | int

    def margins(self, weight: Float[Tensor, "head width"]) -> Float[Tensor, "head example"]:
        return torch.einsum("hed,hd->he", self.design, weight.to(self.design.dtype))

    def objective(self, weight: Float[Tensor, "head width"]) -> Float[Tensor, " head"]:
        margins = self.margins(weight)
        losses = torch.nn.functional.softplus(margins) - self.target * margins
        return self.C * losses.double().sum(1) + (self.penalty * weight.square()).sum(1) / 2

    def derivatives(
        self, weight: Float[Tensor, "head width"]
    ) -> tuple[Float[Tensor, "head width"], Float[Tensor, "head width width"]]:
        chance = torch.sigmoid(self.margins(weight))
        slope = torch.einsum("hed,he->hd", self.design, chance - self.target)
        curvature = (chance * (1 - chance)).sqrt()[..., None] * self.design
        hessian = self.C * (curvature.transpose(1, 2) @ curvature).double() + torch.diag(self.penalty)
        return self.C * slope.double() + self.penalty * weight, hessian


def _descended(problem: _Problem, tolerance: float, max_steps: int) -> Fitted:
    """Return where the Newton steps end: at the tolerance, at what the dtype allows, or after `max_steps`."""
    weight = problem.penalty.new_zeros(problem.design.shape[0], problem.design.shape[-1])
    scale, floor = problem.C * len(problem.target), _floor(problem.design.dtype)
    gradient, hessian = problem.derivatives(weight)
    largest = float(gradient.abs().max()) / scale
    for _ in range(max_steps):
        if largest <= tolerance:
            break
        step = torch.linalg.solve(hessian, gradient)
        weight = weight - _size(problem, weight, step, gradient)[:, None] * step
        before = largest
        gradient, hessian = problem.derivatives(weight)
        largest = float(gradient.abs().max()) / scale
        if before <= largest <= floor:
            break
    return Fitted(weight[:, :-1], weight[:, -1], largest)


def _size(
    problem: _Problem,
    weight: Float[Tensor, "head width"],
    step: Float[Tensor, "head width"],
    gradient: Float[Tensor, "head width"],
) -> Float[Tensor, " head"]:
    """Return each head's share of its step: 1, halved until the objective falls."""
    loss = problem.objective(weight)
    # where the gain is within rounding, the full step is right: a search along it would see noise only
    noise = 16 * torch.finfo(problem.design.dtype).eps * loss.abs()
    gain = torch.einsum("hd,hd->h", step, gradient)
    size = torch.ones_like(loss)
    for _ in range(30):
        rose = problem.objective(weight - size[:, None] * step) > loss - 1e-4 * size * gain + noise
        if not bool(rose.any()):
            break
        size = torch.where(rose, size / 2, size)
    return size


def _floor(dtype: torch.dtype) -> float:
    # the gradient is a mean of as many terms as there are examples, each rounded in the features' dtype
    return 1e-5 if dtype == torch.float32 else 1e-8
