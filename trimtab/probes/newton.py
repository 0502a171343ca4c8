"""Logistic regressions of many heads at once by Newton's method, on a CPU or a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.errors import BadValue

BLOCK_BYTES = 2**23
"""Features of the heads that are fitted together on a CPU, so that its cache holds them."""


class HeadRegressions(NamedTuple):
    """One logistic regression per head."""

    coef: Float[Tensor, "head d_head"]
    intercept: Float[Tensor, " head"]
    gradient: float
    """The largest entry of the objective's gradient at the end, divided by C times the number of examples."""


def newton_logistic(
    x: Float[Tensor, "example head d_head"],
    labels: Bool[Tensor, " example"],
    *,
    C: float | int = 1.0,
    tolerance: float = 1e-8,
    max_steps: int = 100,
) -> HeadRegressions:
    """Return every head's L2-regularised logistic regression, where `x` lives, in float64.

    The optimum of scikit-learn's objective, `C * sum(log loss) + |w|^2 / 2` with the intercept not penalised. All heads
    of a block step at once. A head keeps the inverse of its Hessian while steps with it halve the gradient, each as
    long as would have been best for the last one (Barzilai & Borwein 1988), and takes a new one when they do not. Steps
    sum over examples in the dtype of `x`; near the optimum the gradient is summed in float64, and later steps add only
    what they change to it. Heads whose features are too ill-conditioned for float32 steps are fitted in float64.

    Args:
        tolerance: the largest entry of the gradient, in the units of `HeadRegressions.gradient`.
        max_steps: how many Hessians a head may take.

    Raises:
        BadValue: the steps do not converge (the message says how far the gradient is from 0).
    """
    n, n_heads, d_head = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    size = n_heads if x.is_cuda else min(n_heads, max(1, BLOCK_BYTES // (n * (d_head + 1) * dtype.itemsize)))
    # one buffer for all blocks: on a CPU fresh memory costs as much as a step
    design = x.new_empty(size, n, d_head + 1, dtype=dtype)
    design[..., -1] = 1
    penalty = torch.ones(d_head + 1, dtype=torch.float64, device=x.device)
    penalty[-1] = 0
    target = labels.to(x.device, torch.float64)
    weights, gradients = [], []
    for block in x.split(size, dim=1):
        features = design[: block.shape[1]]
        features[..., :-1] = block.transpose(0, 1)
        point = _fitted(problem := _Problem(features, target, penalty, C), tolerance, max_steps)
        weights.append(point.weight)
        gradients.append(problem.gap(point))
    largest = float(torch.cat(gradients).max())
    if not largest <= tolerance:
        raise BadValue(f"the probes did not converge in {max_steps} Newton steps (gradient {largest:.1e}); lower C")
    weight = torch.cat(weights)
    return HeadRegressions(weight[:, :-1], weight[:, -1], largest)


class _Point(NamedTuple):
    """Where every head is, in float64; the last weight is the intercept."""

    weight: Float[Tensor, "head width"]
    margins: Float[Tensor, "head example"]
    chance: Float[Tensor, "head example"]
    gradient: Float[Tensor, "head width"]

    def of(self, heads: Bool[Tensor, " head"]) -> _Point:
        return _Point(*(part[heads] for part in self))

    def where(self, heads: Bool[Tensor, " head"], other: _Point) -> _Point:
        """Return this point for the given heads, the other one for the rest."""
        return _Point(*(torch.where(heads[:, None], a, b) for a, b in zip(self, other, strict=True)))

    def put(self, heads: Tensor, part: _Point) -> None:
        for whole, some in zip(self, part, strict=True):
            whole[heads] = some


class _Problem(NamedTuple):
    """What is minimised for every head."""

    design: Float[Tensor, "head example width"]
    target: Float[Tensor, " example"]
    penalty: Float[Tensor, " width"]
    C: float | int

    def of(self, heads: Bool[Tensor, " head"]) -> _Problem:
        return self._replace(design=self.design[heads])

    def gap(self, point: _Point) -> Float[Tensor, " head"]:
        return point.gradient.abs().amax(1) / (self.C * len(self.target))

    def start(self) -> _Point:
        n_heads, n, width = self.design.shape
        margins = self.target.new_zeros(n_heads, n)
        gradient = self.C * _total(self.design, (0.5 - self.target).expand(n_heads, n))
        return _Point(self.target.new_zeros(n_heads, width), margins, margins + 0.5, gradient)

    def exactly(self, weight: Float[Tensor, "head width"]) -> _Point:
        """Return the point of these weights, its margins and gradient computed in float64."""
        n_heads, n, width = self.design.shape
        rows = n if weight.is_cuda else max(1, 2**20 // (8 * n_heads * width))  # the cache holds 1 MB
        margins, chance, gradient = [], [], self.penalty * weight
        for part, target in zip(self.design.split(rows, dim=1), self.target.split(rows), strict=True):
            features = part.double()
            margins.append(_margins(features, weight))
            chance.append(torch.sigmoid(margins[-1]))
            gradient = gradient + self.C * _total(features, chance[-1] - target)
        return _Point(weight, torch.cat(margins, dim=1), torch.cat(chance, dim=1), gradient)

    def moved(self, point: _Point, step: Float[Tensor, "head width"]) -> _Point:
        """Return the point after a step: what the step changes is added, so that its rounding shrinks as steps do."""
        margins = point.margins - _margins(self.design, step)
        chance = torch.sigmoid(margins)
        change = self.C * _total(self.design, chance - point.chance) - self.penalty * step
        return _Point(point.weight - step, margins, chance, point.gradient + change)

    def inverse(self, point: _Point | None = None) -> Float[Tensor, "head width width"]:
        """Return the inverse of the Hessian at a point, or at no weights, where every example weighs a quarter."""
        if point is None:
            hessian = self.design.transpose(1, 2) @ self.design / 4
        else:
            curvature = (point.chance * (1 - point.chance)).to(self.design.dtype)
            hessian = self.design.transpose(1, 2) @ (curvature[..., None] * self.design)
        factor, failed = torch.linalg.cholesky_ex(self.C * hessian.double() + torch.diag(self.penalty))
        # where rounding leaves no factor, no inverse: such heads take no step, and are left to float64
        usable = (failed == 0)[:, None, None]
        identity = torch.eye(len(self.penalty), dtype=factor.dtype, device=factor.device)
        return torch.cholesky_inverse(torch.where(usable, factor, identity)) * usable


def _margins(
    design: Float[Tensor, "head example width"], weight: Float[Tensor, "head width"]
) -> Float[Tensor, "head example"]:
    # a row times the design's transpose: on a CPU twice as fast as the design times a column
    return (weight.to(design.dtype)[:, None] @ design.transpose(1, 2))[:, 0].double()


def _total(
    design: Float[Tensor, "head example width"], share: Float[Tensor, "head example"]
) -> Float[Tensor, "head width"]:
    return (share.to(design.dtype)[:, None] @ design)[:, 0].double()


def _fitted(problem: _Problem, tolerance: float, max_steps: int) -> _Point:
    """Return where the steps end; heads that float32 steps do not take there are fitted in float64."""
    point, inverse = problem.start(), problem.inverse()
    if problem.design.dtype == torch.float64:
        return _descended(problem, point, inverse, tolerance, max_steps)[0]
    # once the gradient in float64 is this close, steps in float32 would have to be wrong by 1 % to break the tolerance
    near = 100 * tolerance
    left = problem.gap(point) > near
    for inverses in (6, 1, 1):
        point, inverse = _descended(problem, point, inverse, near / 2, min(inverses, max_steps))
        point = problem.exactly(point.weight)
        left = problem.gap(point) > near
        if not bool(left.any()):
            break
    point, _ = _descended(problem, point, inverse, tolerance / 2, min(2, max_steps))
    left = left | (problem.gap(point) > tolerance)
    if bool(left.any()):
        rest = problem.of(left)
        # from the start: float32 may have left weights along directions that the examples do not tell apart
        point.put(left, _fitted(rest._replace(design=rest.design.double()), tolerance, max_steps))
    return point


def _descended(
    problem: _Problem, point: _Point, inverse: Float[Tensor, "head width width"], goal: float, max_steps: int
) -> tuple[_Point, Float[Tensor, "head width width"]]:
    """Return where steps with at most `max_steps` inverses of each head end, and the last inverse."""
    heads = torch.arange(len(inverse), device=inverse.device)
    some, there, theirs = problem, point, inverse
    for number in range(max_steps):
        there = _stepped(some, there, theirs, goal)
        point.put(heads, there)
        left = some.gap(there) > goal
        if number + 1 == max_steps or not bool(left.any()):
            break
        heads, some, there = heads[left], some.of(left), there.of(left)
        theirs = some.inverse(there)
        inverse[heads] = theirs
    return point, inverse


def _stepped(problem: _Problem, point: _Point, inverse: Float[Tensor, "head width width"], goal: float) -> _Point:
    """Return where steps with one inverse end: when all but few heads are at the goal or no longer halve the gradient.

    The gradient's size is `g H^-1 g` (twice the objective's distance from its minimum, were it quadratic). A step along
    which that does not fall is not taken but halved: by convexity, a short enough one makes it fall.
    """
    newton = _times(inverse, point.gradient)
    size = (newton * point.gradient).sum(1)
    length = torch.ones_like(size)
    for _ in range(40):
        step = length[:, None] * newton
        there = problem.moved(point, step)
        newton_there = _times(inverse, there.gradient)
        size_there = (newton_there * there.gradient).sum(1)
        fell = size_there < size
        best = 1 / (1 - (step * there.gradient).sum(1) / (step * point.gradient).sum(1))
        length = torch.where(fell, length * best, length / 2)
        going = (size > 0) & (~fell | (size_there <= size / 4))
        point = there.where(fell, point)
        newton, size = torch.where(fell[:, None], newton_there, newton), torch.where(fell, size_there, size)
        if 4 * int((going & (problem.gap(point) > goal)).sum()) < len(size):
            break
    return point


def _times(inverse: Float[Tensor, "head width width"], gradient: Float[Tensor, "head width"]) -> Tensor:
    return (gradient[:, None] @ inverse)[:, 0]
