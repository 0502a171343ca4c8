"""find_mlp_outputs: every layer's last map of its MLP, found by what it does rather than by its name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import UnsupportedModel
from trimtab.models.anatomy import base_of, decoder_layers, input_width, output_width, text_config
from trimtab.models.calling import tried_out
from trimtab.models.heads import convolves, find_heads
from trimtab.models.hooks import on_inputs, on_outputs
from trimtab.models.identity import remembered, traits

CHANGED = 2
"""Of the four positions that are tried, the one at which the map's output is moved."""


@dataclass(frozen=True)
class MlpSite:
    """One layer's last map of its MLP: `v = W k`, where `k` is the module's input."""

    layer: int
    module: Any
    """Linear-like: it has a `weight`."""
    weight: str
    """The name of W in the base model."""
    d_in: int
    d_out: int
    additive: bool
    """Whether what is added to its output is added to the layer's output as it is (no norm stands between)."""


def find_mlp_outputs(model: Any) -> tuple[MlpSite, ...]:
    """Return the MLP's last map of every layer, in layer order.

    It is the last linear module of the residual stream's width that a layer calls, other than attention's (see
    `find_heads`); it takes every position, and a change of its output at one position changes the layer's output there.
    That is tried out, on random inputs.

    Raises:
        UnsupportedModel: a layer has no such module, as with routed experts, whose keys reach one of them only; two
            layers share one; the heads cannot be found.
    """
    base = base_of(model)
    found = remembered(base, "mlp", traits(base), lambda: _found(model))
    modules = [base.get_submodule(weight.removesuffix(".weight")) for _, weight, _ in found]
    return tuple(
        MlpSite(layer, module, weight, input_width(module) or 0, output_width(module) or 0, additive)
        for (layer, weight, additive), module in zip(found, modules, strict=True)
    )


def _found(model: Any) -> list[tuple[int, str, bool]]:
    layers, width = decoder_layers(model), text_config(model).hidden_size
    names = {module: name for name, module in base_of(model).named_modules()}
    attention = {site.module for site in find_heads(model)}
    # what is narrower than the stream it writes to (per-layer embeddings) holds no memories
    linears = [
        [
            m
            for m in layer.modules()
            if output_width(m) == width <= (input_width(m) or 0)
            and m not in attention
            and not convolves(m, names, model)
        ]
        for layer in layers
    ]
    plain = _run(model, layers, linears)
    chosen = []
    for i, layer in enumerate(layers):
        experts = [name for name, p in layer.named_parameters() if p.ndim > 2 and "conv" not in name]
        if experts or plain.routed[i] or not plain.called[i]:
            why = "its MLP has several experts" if experts else "none of its linear modules takes each token once"
            raise UnsupportedModel(
                f"layer {i} of {type(base_of(model)).__name__} has no map at the end of an MLP that every token passes "
                f"({why}); facts can be edited in models whose layers have one MLP each"
            )
        chosen.append(plain.called[i][-1])
    shared = [module for module, times in Counter(chosen).items() if times > 1]
    if shared:
        raise UnsupportedModel(f"{names[shared[0]]} is the MLP of several layers: an edit of one would be one of all")
    moved = _run(model, layers, linears, moved=chosen)
    found = []
    for i, module in enumerate(chosen):
        gap, added = moved.outputs[i][0, CHANGED] - plain.outputs[i][0, CHANGED], _nudge(width, plain.outputs[i])
        if not bool(gap.abs().max() > 1e-4 * added.abs().max()):
            raise UnsupportedModel(
                f"{names[module]} does not reach the output of layer {i}; no MLP's last map was found"
            )
        found.append((i, f"{names[module]}.weight", bool((gap - added).norm() < 1e-2 * added.norm())))
    return found


class _Run:
    """Which linear modules every layer called, in order, and what every layer gave, in one forward."""

    def __init__(self, n_layers: int) -> None:
        self.called: list[list[nn.Module]] = [[] for _ in range(n_layers)]
        self.routed: list[bool] = [False] * n_layers
        """Whether a module was called on other than all positions, as an expert is."""
        self.outputs: dict[int, Tensor] = {}

    def note(self, layer: int, module: nn.Module, x: Tensor) -> None:
        self.called[layer].append(module)
        self.routed[layer] |= x.ndim != 3 or x.shape[1] != 4

    def keep(self, layer: int, out: Tensor) -> None:
        self.outputs[layer] = out.float().clone()


def _run(
    model: Any, layers: list[nn.Module], linears: list[list[nn.Module]], moved: list[nn.Module] | None = None
) -> _Run:
    run = _Run(len(layers))

    def enter(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)

    def move(out: Tensor) -> Tensor:
        out = out.clone()
        out[:, CHANGED] += _nudge(out.shape[-1], out)
        return out

    before: list[Any] = [(layer, enter) for layer in layers]
    after: list[Any] = [(module, move) for module in moved or ()]
    for i, (layer, modules) in enumerate(zip(layers, linears, strict=True)):
        before += [(module, partial(run.note, i, module)) for module in modules]
        after.append((layer, partial(run.keep, i)))
    tried_out(model, [0] * 4, on_inputs(before), on_outputs(after))
    return run


def _nudge(width: int, like: Tensor) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(3)).to(like)
