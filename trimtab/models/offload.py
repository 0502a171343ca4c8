"""Weights that accelerate keeps elsewhere (CPU memory or disk) until their module runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def input_device(model: Any) -> torch.device:
    """Return the device on which the model takes tokens."""
    embedding = model.get_input_embeddings()
    device = embedding.weight.device
    if device.type == "meta":
        placed = (getattr(hook, "execution_device", None) for hook in _hooks(embedding))
        device = torch.device(next((d for d in placed if d is not None), device))
    return device


def stored_weight(model: nn.Module, name: str) -> Tensor | None:
    """Return a weight that is offloaded at the moment, from where accelerate keeps it; None if nobody keeps it."""
    owner, _, leaf = name.rpartition(".")
    for hook in _hooks(model.get_submodule(owner)):
        stored = getattr(hook, "weights_map", None)
        if stored is not None:
            return stored[leaf]
    return None


def moves_weights(model: nn.Module) -> bool:
    """Return whether accelerate moves weights or inputs between devices around modules' forwards."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", () if hook is None else (hook,))
