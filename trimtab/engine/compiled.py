"""A shift that survives compilation: a constant behind the projection, inside the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.activations.labelled import Head
from trimtab.errors import BadValue, Incompatible
from trimtab.models.anatomy import base_of
from trimtab.models.heads import find_heads
from trimtab.models.hooks import is_compiled


class ShiftedProjection(nn.Module):
    """A projection whose output at the last position of each forward is moved by a constant."""

    def __init__(self, inner: nn.Module, constant: Float[Tensor, " d_model"]) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("constant", constant, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection with the constant added where the next token is predicted."""
        y = self.inner(x)
        if y.shape[1] == 1:
            return y + self.constant
        return torch.cat([y[:, :-1], y[:, -1:] + self.constant], dim=1)


@contextlib.contextmanager
def shifted_for_compilation(model: Any, deltas: Mapping[Head, Float[Tensor, " d_head"]]) -> Iterator[Any]:
    """Yield the model with the vectors added to heads' activations in a way that compiled generation keeps.

    Inside the block `model.generate(cache_implementation="static")` compiles the decoding step with the shift in it
    (hooks that are placed after compilation are ignored silently). The shift acts as `"generated"`: on the last
    position of each forward. A vector before a linear map is a constant behind it, projection(x + delta) -
    projection(x), taken from the live module. On exit the modules are as before and what generation compiled is gone,
    so that other edits can be applied; `{}` does the same for compiled generation without a shift.

    Raises:
        Incompatible: the model was compiled before.
        BadValue: a head that the model does not have.
    """
    base = base_of(model)
    if is_compiled(base):
        raise Incompatible(
            "the model was compiled before the shift was placed, so it would be ignored silently; "
            "use a model that was not compiled"
        )
    sites = {site.layer: site for site in find_heads(model)}
    chosen: dict[int, Tensor] = {}
    for (layer, head), delta in deltas.items():
        site = sites.get(layer)
        if site is None or not 0 <= head < site.n_heads:
            raise BadValue(f"no head {head} in layer {layer}: the model has layers {', '.join(map(str, sites))}")
        whole = chosen.setdefault(layer, torch.zeros(site.n_heads, site.d_head, dtype=torch.float64))
        whole[head] += delta.cpu().double()
    placed = [(sites[layer], _constant(base, sites[layer].module, d.flatten())) for layer, d in chosen.items()]
    try:
        for site, constant in placed:
            base.set_submodule(site.name, ShiftedProjection(site.module, constant))
        yield model
    finally:
        for site, _ in placed:
            base.set_submodule(site.name, site.module)
        _forget_compilation(base)


@torch.no_grad()
def _constant(base: Any, module: nn.Module, delta: Float[Tensor, " width"]) -> Float[Tensor, " d_model"]:
    place = next(module.parameters()).device
    # 8 bits and 4 bits weights say nothing of the dtype they compute in; the model's own says
    x = torch.stack([delta, torch.zeros_like(delta)])[None].to(place, base.dtype)
    y = module(x)[0]
    return y[0] - y[1]


def _forget_compilation(base: Any) -> None:
    for name in ("_compiled_call", "_last_compile_config"):
        if name in vars(base):
            delattr(base, name)
