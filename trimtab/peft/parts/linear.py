"""Widths of linear-like modules: Linear, Conv1D, quantised or adapter-wrapped."""

from __future__ import annotations

from torch import nn


def in_width(module: nn.Module) -> int | None:
    """Return the input width of a linear-like module, else None."""
    return _first(module, "in_features", "nx")


def out_width(module: nn.Module) -> int | None:
    """Return the output width of a linear-like module, else None."""
    return _first(module, "out_features", "nf")


def _first(module: nn.Module, *names: str) -> int | None:
    widths = (getattr(module, name, None) for name in names)
    return next((w for w in widths if isinstance(w, int)), None)
