"""How many bits a quantised model spends on a weight, by what it really stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class StoredBits:
    """Bits per parameter of the weights in memory."""

    quantised: float | None
    """Of the quantised weights alone, with their scales; None if there are none. By arithmetic 4 bits and a float32
    scale for every 64 weights make 4.5; with double quantisation an 8-bit scale, and a float32 for every 256 of
    those, make 4.127."""
    whole: float
    """Of all weights, with those that stay in the model's own dtype (embeddings, norms, head)."""


def bits_per_parameter(model: Any) -> StoredBits:
    """Return the bits that the model's weights take up per parameter, of 4-bit, 8-bit or plain weights.

    The code books (16 and 256 numbers, the same for every weight) are left out.
    """
    bits = counts = all_bits = all_counts = 0
    for parameter in model.parameters():
        quantised = stored_quantised(parameter)
        if quantised is None:
            all_bits, all_counts = all_bits + 8 * parameter.nbytes, all_counts + parameter.numel()
        else:
            bits, counts = bits + quantised[0], counts + quantised[1]
    whole = (bits + all_bits) / (counts + all_counts)
    return StoredBits(bits / counts if counts else None, whole)


def has_four_bit(model: Any) -> bool:
    """Return whether some weights are held in 4 bits by bitsandbytes."""
    return any(getattr(p, "quant_state", None) is not None for p in model.parameters())


def stored_quantised(parameter: Any) -> tuple[int, int] | None:
    """Return (bits, parameters) of a weight that bitsandbytes holds, or None of any other."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        scales: list[Tensor] = [state.absmax]
        if state.nested:
            scales += [state.state2.absmax, state.offset]
        return 8 * (parameter.nbytes + sum(s.nbytes for s in scales)), state.shape.numel()
    if parameter.dtype == torch.int8:
        # a float32 scale for each row, kept on the weight before the first forward and by the module after it
        return 8 * parameter.nbytes + 32 * len(parameter), parameter.numel()
    return None
