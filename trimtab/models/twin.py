"""A twin of a model: the same modules anew, over the same memory, so that the caller's own is left alone."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def twin_of(model: nn.Module) -> nn.Module:
    """Return a copy of the module tree whose parameters and buffers are new objects in the same memory.

    Splitting the twin, attaching to it or moving it leaves the model as it is. What writes into a weight must give it
    memory of its own first.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    memo |= {id(buffer): buffer.detach() for buffer in model.buffers()}
    twin = copy.deepcopy(model, memo)
    twin._is_twin = True  # pyright: ignore[reportArgumentType]
    return twin


def is_twin(model: Any) -> bool:
    """Return whether the model was made by `twin_of`, and is dropped rather than restored."""
    return getattr(model, "_is_twin", False)
