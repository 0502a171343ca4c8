"""4-bit blockwise quantisation in plain PyTorch, written from the paper (Dettmers et al. 2023, sections 2 and 3).

The oracle for what bitsandbytes holds and computes. It takes from bitsandbytes only what is data of a checkpoint: the
second level's code book and mean offset.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64
BLOCK_OF_SCALES = 256


def nf4_code() -> Tensor:
    """Return NF4's 16 levels: quantiles of a normal distribution, scaled to [-1, 1], with an exact zero (section 3).

    Half of the levels stand on each side: 8 from the quantiles above the median, 7 from those below. The outermost
    quantile, 0.9677083, is the mean of 1 - 1/30 and 1 - 1/32.
    """
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    outermost = (1 - 1 / 30 + 1 - 1 / 32) / 2
    above = normal.icdf(torch.linspace(outermost, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(outermost, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return (levels / levels.max()).float()


def fp4_code() -> Tensor:
    """Return the 15 distinct levels of a sign, two exponent bits and a mantissa bit, scaled to [-1, 1]."""
    positive = torch.tensor([0.0625, 2, 3, 4, 6, 8, 12]) / 12
    return torch.cat([-positive.flip(0), torch.zeros(1), positive])


CODES = {"nf4": nf4_code, "fp4": fp4_code}


class SecondLevel(NamedTuple):
    """What a checkpoint holds to quantise the scales: the code book of 8-bit levels and the mean that is taken off."""

    code: Tensor
    offset: Tensor


def scales_of(weight: Tensor) -> Tensor:
    """Return the largest size in each block of a weight."""
    return _in_blocks(weight.flatten(), BLOCK)[0].abs().amax(1)


def rounded(weight: Tensor, kind: str, scales: Tensor) -> Tensor:
    """Return the weight after quantising it by its own scales and dequantising it by those given."""
    blocks, n = _in_blocks(weight.flatten(), BLOCK)
    levels = nearest(CODES[kind](), blocks / scales_of(weight)[:, None])
    return (levels * scales[:, None]).flatten()[:n].view(weight.shape)


def stored_scales(levels: Tensor, largest: Tensor, second: SecondLevel) -> Tensor:
    """Return the scales that 8-bit levels stand for: the level's value times its block's largest, plus the mean."""
    blocks, n = _in_blocks(second.code[levels.long()], BLOCK_OF_SCALES)
    return (blocks * largest[:, None]).flatten()[:n] + second.offset


def rounded_scales(scales: Tensor, second: SecondLevel) -> tuple[Tensor, Tensor]:
    """Return (scales after their own blockwise quantisation around their mean, the largest of each one's block)."""
    blocks, n = _in_blocks(scales - second.offset, BLOCK_OF_SCALES)
    largest = blocks.abs().amax(1, keepdim=True)
    near = nearest(second.code, blocks / largest) * largest
    return near.flatten()[:n] + second.offset, largest.expand_as(blocks).flatten()[:n]


def nearest(code: Tensor, x: Tensor) -> Tensor:
    """Return the level of the code book that is nearest to each number."""
    levels = code.sort().values
    midpoints = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(x, midpoints)]


def bits(n_weights: int, *, double: bool) -> int:
    """Return the bits that n weights take by arithmetic."""
    scales = -(-n_weights // BLOCK)
    if not double:
        return 4 * n_weights + 32 * scales
    return 4 * n_weights + 8 * scales + 32 * -(-scales // BLOCK_OF_SCALES) + 32  # one offset in all


def _in_blocks(x: Tensor, size: int) -> tuple[Tensor, int]:
    n = len(x)
    return torch.nn.functional.pad(x, (0, -n % size)).view(-1, size), n
