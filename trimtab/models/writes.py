"""What writes to the residual stream: embeddings, attention and MLPs, found by what they do, and taken a direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import UnsupportedModel
from trimtab.models.adding import Affine, Place, changed_at, require_layers
from trimtab.models.anatomy import base_of, decoder_layers, text_config
from trimtab.models.calling import tried_out
from trimtab.models.heads import find_heads
from trimtab.models.hooks import on_inputs, on_outputs
from trimtab.models.identity import remembered, traits
from trimtab.models.mlp import find_mlp_outputs

COMPONENTS = ("embedding", "attention", "mlp")
"""What writes to the stream."""
LEFT = 1e-3
"""The share of a stream along a direction that counts as none."""


class Write(NamedTuple):
    """A linear module whose output is added to the stream as it is."""

    layer: int
    component: str
    name: str
    """Of the module in the base model."""


def find_writes(model: Any) -> tuple[Write, ...]:
    """Return every layer's last map of attention and of its MLP, if nothing else writes to the stream in the layers.

    Empty where something does: a norm behind the MLP, experts, layers without attention. That is tried out: with a
    direction taken from the embeddings and from what these modules give, no layer's output may have any of it.
    """
    base = base_of(model)
    return remembered(base, "writes", traits(base), lambda: _found(model))


def _found(model: Any) -> tuple[Write, ...]:
    base, n_layers = base_of(model), len(decoder_layers(model))
    try:
        heads, mlps = find_heads(model), find_mlp_outputs(model)
    except UnsupportedModel:
        return ()
    writes = [Write(site.layer, "attention", site.name) for site in heads]
    writes += [Write(site.layer, "mlp", site.weight.removesuffix(".weight")) for site in mlps]
    if len(heads) < n_layers:
        return ()
    width = text_config(model).hidden_size
    direction = nn.functional.normalize(torch.randn(width, generator=torch.Generator().manual_seed(4)), dim=0)
    away = projection(direction)
    layers, streams = decoder_layers(model), []
    hooks = [(base.get_submodule(w.name), partial(_without, away)) for w in writes]
    reading = [(layer, lambda x: streams.append(x.float().cpu())) for layer in layers]
    entering = on_inputs([(layers[0], partial(_without, away))])
    tried_out(model, range(4), entering, on_outputs([*hooks, *reading]))
    left = max(float((x @ direction).abs().max() / x.norm(dim=-1).max()) for x in streams)
    # half precision leaves its own rounding behind
    return tuple(writes) if left < max(LEFT, torch.finfo(base.dtype).eps) else ()


def _without(change: Affine, x: Tensor) -> Tensor:
    exact = Affine(*(part.to(x.device, torch.promote_types(x.dtype, torch.float32)) for part in change))
    return (x + exact.added(x)).to(x.dtype)


def projection(
    direction: Float[Tensor, " width"], strength: float | int = 1, centre: Float[Tensor, " width"] | None = None
) -> Affine:
    """Return the change that takes away, `strength` times, what lies along a unit vector, as seen from `centre`."""
    centre = torch.zeros_like(direction) if centre is None else centre
    return Affine(strength * direction[:, None], direction[None], centre)


def erased_writes(
    model: Any,
    changes: Mapping[int, Affine],
    components: Sequence[str] = COMPONENTS,
    positions: Any = "generated",
) -> AbstractContextManager[Any]:
    """Make a linear change of all that the layers write to the stream; the first one's, of the embeddings too.

    Where writes cannot be told apart (see `find_writes`) the stream itself is changed after every layer.

    Raises:
        UnsupportedModel: some of the components only, where they cannot be told apart.
        BadValue, Incompatible, ShapeError: as `changed_residual`.
    """
    base, layers, writes = base_of(model), decoder_layers(model), find_writes(model)
    if not writes and set(components) != set(COMPONENTS):
        raise UnsupportedModel(
            f"attention and MLP of {type(base).__name__} do not write to the stream as they are (a norm or experts "
            "stand between): they cannot be ablated one by one; ablate all components"
        )
    require_layers(model, changes)
    places = []
    for layer, change in changes.items():
        if layer == 0 and "embedding" in components:
            places.append(Place(0, on_inputs, layers[0], change))
        if not writes:
            places.append(Place(layer, on_outputs, layers[layer], change))
    for layer, component, name in writes:
        if layer in changes and component in components:
            places.append(Place(layer, on_outputs, base.get_submodule(name), changes[layer]))
    return changed_at(model, places, positions)
