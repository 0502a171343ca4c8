"""The only file that registers hooks: reading and replacing module inputs and outputs, and adding to heads
and to the residual stream."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.activations.captured import Head
from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.models.positions import ForwardCheck, mask_of
from trimtab.protocols import Positions

Replace: TypeAlias = Callable[[Tensor], Tensor | None]
"""Gets a module's first input or output; returns what stands in its place, or None to leave it."""


@contextlib.contextmanager
def on_inputs(hooks: Iterable[tuple[nn.Module, Replace]]) -> Iterator[None]:
    """Call each function on its module's first input at every forward inside the block."""
    with contextlib.ExitStack() as stack:
        for module, function in hooks:
            handle = module.register_forward_pre_hook(partial(_replace_first_input, function), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def on_outputs(hooks: Iterable[tuple[nn.Module, Replace]]) -> Iterator[None]:
    """Call each function on its module's (first) output at every forward inside the block."""
    with contextlib.ExitStack() as stack:
        for module, function in hooks:
            handle = module.register_forward_hook(partial(_replace_first_output, function))
            stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def on_arguments(
    hooks: Iterable[tuple[nn.Module, Callable[[dict[str, Any]], Mapping[str, Any] | None]]],
) -> Iterator[None]:
    """Call each function on its module's arguments by name at every forward; those it returns replace the given."""
    with contextlib.ExitStack() as stack:
        for module, function in hooks:
            names = list(inspect.signature(module.forward).parameters)
            hook = partial(_replace_arguments, function, names)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


@contextlib.contextmanager
def add_to_heads(
    model: Any,
    deltas: Mapping[Head, Float[Tensor, " d_head"]],
    positions: Positions = "generated",
    *,
    heads: Sequence[Any] | None = None,
) -> Iterator[None]:
    """Add a vector to chosen heads' activations, at the input of the attention output projection.

    Where it acts is `positions`: `"generated"` is the last position of each forward and demands a KV cache for
    forwards over several positions; a mask must have the forward's shape. A function that was compiled around the
    model is traced again at its first call inside the block. `heads` are the model's sites, found
    by `find_heads` if not given.

    Raises:
        BadValue: a head the model does not have; `"generated"` in a forward without a cache or with right padding.
        ShapeError: a delta or a mask of the wrong shape.
        Incompatible: the model was compiled before, or a forward ran in which the hooks did not fire.
    """
    from trimtab.models.heads import find_heads  # heads.py finds sites with this file's hooks

    _require_uncompiled(model)
    sites = {site.layer: site for site in (find_heads(model) if heads is None else heads)}
    vectors = _layer_vectors(sites, deltas)
    with _adding(model, {layer: (on_inputs, sites[layer].module, v) for layer, v in vectors.items()}, positions):
        yield


@contextlib.contextmanager
def add_to_residual(
    model: Any, deltas: Mapping[int, Float[Tensor, " d_model"]], positions: Positions = "generated"
) -> Iterator[None]:
    """Add a vector to the residual stream after chosen decoder layers (counted from 0).

    Where it acts is `positions`, as for `add_to_heads`.

    Raises:
        BadValue: a layer the model does not have; `"generated"` where it has no meaning.
        ShapeError: a delta or a mask of the wrong shape.
        Incompatible: as for `add_to_heads`.
    """
    from trimtab.models.heads import decoder_layers, text_config

    _require_uncompiled(model)
    layers, d_model = decoder_layers(model), text_config(model).hidden_size
    for layer, delta in deltas.items():
        if not 0 <= layer < len(layers):
            raise BadValue(f"no layer {layer}: the model has layers 0-{len(layers) - 1}")
        if delta.shape != (d_model,):
            raise ShapeError(f"delta for layer {layer}: expected {(d_model,)}, got {tuple(delta.shape)}")
    # without its zeros, as in _layer_vectors
    sites = {layer: (on_outputs, layers[layer], delta.cpu()) for layer, delta in deltas.items() if bool(delta.any())}
    with _adding(model, sites, positions):
        yield


@contextlib.contextmanager
def _adding(model: Any, sites: Mapping[int, tuple[Any, nn.Module, Tensor]], positions: Positions) -> Iterator[None]:
    """Add each layer's vector at its site (how to hook it, the module, the vector), and check that it acted."""
    from trimtab.models.heads import base_of, decoder_of

    _forget_graphs()
    decoder = decoder_of(model)
    forwards = ForwardCheck(decoder, positions)
    adders = {layer: _Adder(vector, forwards) for layer, (_, _, vector) in sites.items()}
    with contextlib.ExitStack() as stack:
        stack.callback(decoder.register_forward_pre_hook(forwards, with_kwargs=True).remove)
        stack.callback(decoder.register_forward_hook(forwards.completed).remove)
        whole = base_of(model).register_forward_pre_hook(forwards.require_one_prediction, with_kwargs=True)
        stack.callback(whole.remove)
        for layer, (hooked, module, _) in sites.items():
            stack.enter_context(hooked([(module, adders[layer])]))
        yield
    silent = [layer for layer, adder in adders.items() if not adder.fired]
    if forwards.count and silent:
        raise Incompatible(f"the edit never acted on layer(s) {silent}: their projections were not called as modules")


def _require_uncompiled(model: Any) -> None:
    if is_compiled(model):
        raise Incompatible(
            "the model was compiled before the edit was applied, so its hooks would be ignored silently; "
            "apply the edit first and compile inside the block, or use the uncompiled model"
        )


def has_edits(decoder: nn.Module) -> bool:
    """Return whether an edit of this file is in place."""
    return any(isinstance(hook, ForwardCheck) for hook in decoder._forward_pre_hooks.values())


@contextlib.contextmanager
def edits_suspended(decoder: nn.Module) -> Iterator[None]:
    """Run the block as if no `add_to_heads` were active, so that edits neither change nor refuse its forwards."""
    active = [hook for hook in decoder._forward_pre_hooks.values() if isinstance(hook, ForwardCheck)]
    before = [check.suspended for check in active]
    for check in active:
        check.suspended = True
    try:
        yield
    finally:
        for check, suspended in zip(active, before, strict=True):
            check.suspended = suspended


def is_compiled(model: Any) -> bool:
    """Return whether `torch.compile` (or `generate`'s own compilation) already holds a graph of this model."""
    if getattr(model, "_compiled_call", None) is not None:
        return True
    return any(
        hasattr(part, "_orig_mod")
        or part._compiled_call_impl is not None
        or hasattr(part.__dict__.get("forward"), "_torchdynamo_orig_callable")
        for part in model.modules()
    )


def _forget_graphs() -> None:
    """Let functions that were compiled around the model be traced again, now with its hooks in them.

    A graph traced before holds no guard on hooks that are registered later, and would run without them.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _replace_first_input(
    function: Replace,
    module: nn.Module,  # noqa: ARG001
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if args:
        new = function(args[0])
        return None if new is None else ((new, *args[1:]), kwargs)
    name = next(iter(kwargs))
    new = function(kwargs[name])
    return None if new is None else (args, {**kwargs, name: new})


def _replace_arguments(
    function: Callable[[dict[str, Any]], Mapping[str, Any] | None],
    names: Sequence[str],
    module: nn.Module,  # noqa: ARG001
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    placed = dict(zip(names, args, strict=False))
    new = function({**placed, **kwargs})
    if new is None:
        return None
    by_name = {name: value for name, value in new.items() if name not in placed}
    return tuple(new.get(name, value) for name, value in placed.items()), {**kwargs, **by_name}


def _replace_first_output(function: Replace, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG001
    first = output[0] if isinstance(output, tuple) else output
    new = function(first)
    if new is None:
        return None
    return (new, *output[1:]) if isinstance(output, tuple) else new


def _layer_vectors(sites: Mapping[int, Any], deltas: Mapping[Head, Tensor]) -> dict[int, Tensor]:
    vectors: dict[int, Tensor] = {}
    for (layer, head), delta in deltas.items():
        site = sites.get(layer)
        if site is None or not 0 <= head < site.n_heads:
            last = max(sites)
            n_heads = next(iter(sites.values())).n_heads
            raise BadValue(f"no head {head} in layer {layer}: the model has layers 0-{last} of {n_heads} heads")
        if delta.shape != (site.d_head,):
            raise ShapeError(
                f"delta for layer {layer} head {head}: expected {(site.d_head,)}, got {tuple(delta.shape)}"
            )
        whole = vectors.setdefault(layer, torch.zeros(site.n_heads, site.d_head, dtype=delta.dtype))
        whole[head] += delta.cpu()
    return {layer: whole.flatten() for layer, whole in vectors.items() if bool(whole.any())}


class _Adder:
    """Adds one layer's vector at the positions; keeps a copy of it for each device and dtype it meets."""

    def __init__(self, vector: Float[Tensor, " width"], forwards: ForwardCheck) -> None:
        self.vector, self.positions, self.forwards = vector, forwards.positions, forwards
        self.placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.fired = False

    def __call__(self, x: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq width"] | None:
        if self.forwards.suspended:
            return None
        self.fired = True
        place = (x.device, x.dtype)
        if place not in self.placed:
            # a small copy to the device need not wait for what the device is computing
            self.placed[place] = self.vector.to(device=x.device, dtype=x.dtype, non_blocking=True)
        vector = self.placed[place]
        if isinstance(self.positions, str):
            if self.positions == "all" or x.shape[1] == 1:
                return x + vector
            return torch.cat([x[:, :-1], x[:, -1:] + vector], dim=1)
        mask = mask_of(self.positions, x.shape[:2]).to(x.device)
        if mask.dtype == torch.bool:
            return torch.where(mask[..., None], x + vector, x)
        return x + mask[..., None].to(x.dtype) * vector
