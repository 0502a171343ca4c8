"""A random projection from few dimensions to all weights that is never stored: hashed from a seed, as needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 1 << 22  # weights hashed at a time, so that the hashes of a large matrix never stand in memory together
_SIGNED = 1 << 63


class Lift(torch.autograd.Function):
    """Rows start .. start + n of P z, in a shape; the backward pass makes P anew instead of keeping it.

    Each row of P has one entry, at a hashed place and of a hashed sign, +-sqrt(d / D) (a count sketch, Charikar et
    al. 2002): its columns are orthogonal and of unit length on average. Hashes are integer arithmetic, the same on
    every device.
    """

    @staticmethod
    def forward(ctx: Any, z: Float[Tensor, " d"], seed: int, start: int, shape: torch.Size, total: int) -> Tensor:
        """Return the part of P z that belongs to one weight."""
        ctx.place = (len(z), seed, start, shape.numel(), math.sqrt(len(z) / total))
        out = z.new_empty(shape.numel())
        for chunk, bucket, sign in _entries(*ctx.place, like=z):
            out[chunk] = z[bucket] * sign
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the transpose of that part of P, times the gradient."""
        flat = gradients[0].reshape(-1)
        back = flat.new_zeros(ctx.place[0])
        for chunk, bucket, sign in _entries(*ctx.place, like=flat):
            back.index_add_(0, bucket, flat[chunk] * sign)
        return back, None, None, None, None


def _entries(
    d: int, seed: int, start: int, n: int, scale: float, *, like: Tensor
) -> Iterator[tuple[slice, Int[Tensor, " chunk"], Float[Tensor, " chunk"]]]:
    for first in range(0, n, CHUNK):
        last = min(first + CHUNK, n)
        hashed = mixed(torch.arange(start + first, start + last, device=like.device), seed)
        sign = ((hashed & 1) * 2 - 1).to(like.dtype) * scale
        yield slice(first, last), (hashed >> 1).remainder(d), sign


def mixed(place: Int[Tensor, " n"], seed: int) -> Int[Tensor, " n"]:
    """Return 63 well-mixed bits for each place: splitmix64 (Steele et al. 2014) started at the hashed seed."""
    start = _splitmix(torch.tensor([seed])) if isinstance(seed, int) else seed
    return _splitmix(place + start.to(place.device)) & (_SIGNED - 1)


def _splitmix(x: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    # int64 multiplication wraps around on every backend; shifts of negatives must not drag the sign in
    x = x * _as_signed(0x9E3779B97F4A7C15) + _as_signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _as_signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _as_signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Int[Tensor, " n"], bits: int) -> Int[Tensor, " n"]:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _as_signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= _SIGNED else constant
