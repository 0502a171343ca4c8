"""The only file that writes weights: changes added in place for the time of a block, then put back to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.models.anatomy import base_of, decoder_of
from trimtab.models.hooks import held_by_this_thread, on_inputs, on_outputs


class LowRank(NamedTuple):
    """A change `left @ right` of a linear module's weight, as `module(x) = W x` has it, however the module stores W."""

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "rank d_in"]


WeightChange: TypeAlias = LowRank | Tensor
"""What is added to a parameter: factors for a linear module's weight, or a whole tensor of the parameter's shape."""

_KEPT: Any = WeakTensorKeyDictionary()
"""Parameter that is changed at present -> its values before each of the changes, the outermost first."""


def unchanged(parameter: Tensor) -> Tensor:
    """Return the values that a parameter has when no change of this file is in place."""
    kept = _KEPT.get(parameter)
    return kept[0] if kept else parameter


@contextlib.contextmanager
def changes_suspended(model: Any) -> Iterator[None]:
    """Run the block with the values that the model's parameters have when no change of this file is in place."""
    changed = [p for p in base_of(model).parameters() if unchanged(p) is not p]
    before = [p.detach().clone() for p in changed]
    try:
        with torch.no_grad():
            for parameter in changed:
                parameter.copy_(unchanged(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(changed, before, strict=True):
                parameter.copy_(values)


@contextlib.contextmanager
def changed_weights(model: Any, changes: Mapping[str, WeightChange], strength: float | int = 1.0) -> Iterator[Any]:
    """Add `strength` times each change, by its parameter's name in the base model; take them back on exit, to the bit.

    Yields the model. Sums are made in float32 (float64 for float64 weights) and rounded once. The weights of 4 and 8
    bits, which cannot be written, take low-rank changes through hooks: `out + strength * left @ right @ x`.

    Raises:
        Incompatible: the model has no such parameter; another thread has an edit in place; blocks are left in another
            order than they were entered in.
        ShapeError: a change of another shape than its parameter.
        BadValue: a whole tensor for quantised weights, or weights that are offloaded.
    """
    base = base_of(model)
    with held_by_this_thread(decoder_of(model)), contextlib.ExitStack() as stack:
        for name, change in changes.items():
            parameter, module = _place(base, name)
            if _is_plain(parameter):
                stack.enter_context(_written(name, parameter, _summed(name, parameter, module, change, strength)))
            elif isinstance(change, LowRank):
                stack.enter_context(_beside(module, change, strength))
            else:
                raise BadValue(
                    f"{name} is quantised, and a change of all of it cannot be added; load the model plainly"
                )
        yield model


@contextlib.contextmanager
def own_memory(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Give parameters memory of their own for the block, to be written into: what they held comes back untouched."""
    before = [parameter.data for parameter in parameters]
    try:
        with torch.inference_mode(False):
            for parameter, values in zip(parameters, before, strict=True):
                parameter.data = values.clone()
        yield
    finally:
        for parameter, values in zip(parameters, before, strict=True):
            parameter.data = values


def untie(model: Any) -> None:
    """Give the output embedding a weight of its own, and say so in the config."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False


@torch.no_grad()
def with_changes(twin: Any, changes: Mapping[str, WeightChange], strength: float | int = 1.0) -> None:
    """Give the changed parameters of a model's twin memory and values of their own; raises as `changed_weights`."""
    for name, change in changes.items():
        parameter, module = _place(twin, name)
        if not _is_plain(parameter):
            raise BadValue(f"{name} is quantised: trimtab.export.checkpoint dequantises the weights, and merges")
        parameter.data = _summed(name, parameter, module, change, strength)


@torch.no_grad()
def differences(base: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """Return what `other`'s weights have more than `base`'s, by name, in float32 (float64 for float64 weights).

    Weights that do not differ are left out; a weight of two names, as tied embeddings are, stands there once.

    Raises:
        Incompatible: the two have other weights, or weights of other shapes.
        BadValue: quantised or offloaded weights.
    """
    ours, theirs = (dict(model.named_parameters()) for model in (base, other))
    for name in sorted(ours.keys() ^ theirs.keys()):
        raise Incompatible(
            f"{name} is a weight of one of the two models only, so that no sum of weights leads from one to the other"
        )
    found = {}
    for name, parameter in ours.items():
        one, two = parameter.detach(), theirs[name].detach()
        for weight in (one, two):
            _require_readable(name, weight)
        if one.shape != two.shape:
            raise Incompatible(
                f"{name} is {tuple(one.shape)} in one model and {tuple(two.shape)} in the other: they are not of one "
                "base (another vocabulary or architecture); name checkpoints that were tuned from this very model"
            )
        wide = torch.promote_types(torch.promote_types(one.dtype, two.dtype), torch.float32)
        change = (two.to("cpu", wide) - one.to("cpu", wide)).contiguous()
        if bool(change.any()):
            found[name] = change
    return found


@torch.no_grad()
def as_whole(model: Any, name: str, change: WeightChange) -> Tensor:
    """Return a change as a whole tensor of its parameter's shape, on the CPU; raises as `changed_weights`."""
    parameter, module = _place(base_of(model), name)
    if not isinstance(change, LowRank):
        return change
    _require_readable(name, parameter)
    whole = turned(module, change.left @ change.right).contiguous()
    _require_shape(name, whole, parameter)
    return whole


def inner_product(one: WeightChange, other: WeightChange) -> float:
    """Return the sum of the products of two changes' entries; both have factors, or neither has."""
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        along, across = one.left.double().T @ other.left.double(), one.right.double() @ other.right.double().T
        return float((along * across).sum())
    assert isinstance(one, Tensor) and isinstance(other, Tensor)
    return float((one.double() * other.double()).sum())


def turned(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a linear module's weight as d_out x d_in, or such a matrix as the module stores it: Conv1D turns it."""
    return weight.t() if hasattr(module, "nf") else weight


def _place(base: Any, name: str) -> tuple[nn.Parameter, nn.Module]:
    owner, _, leaf = name.rpartition(".")
    module = dict(base.named_modules()).get(owner)
    module = getattr(module, "base_layer", module)  # within an adapter
    parameter = getattr(module, leaf, None)
    if module is None or parameter is None:
        raise Incompatible(
            f"the edit changes {name}, and {type(base).__name__} has no such weight; use it on the model it was made on"
        )
    return parameter, module


def _require_shape(name: str, change: Tensor, parameter: Tensor) -> None:
    if change.shape != parameter.shape:
        raise ShapeError(f"the change of {name} is {tuple(change.shape)}, the weight {tuple(parameter.shape)}")


def _require_readable(name: str, parameter: Tensor) -> None:
    if parameter.is_meta:
        raise BadValue(f"{name} is offloaded and cannot be written; load the model with all weights on one device")
    if not _is_plain(parameter):
        raise BadValue(f"{name} is quantised, and has no values to reckon with; load the model plainly")


def _is_plain(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and getattr(parameter, "quant_state", None) is None


@torch.no_grad()
def _summed(
    name: str, parameter: nn.Parameter, module: nn.Module, change: WeightChange, strength: float | int
) -> Tensor:
    _require_readable(name, parameter)
    wide = torch.promote_types(parameter.dtype, torch.float32)
    if isinstance(change, LowRank):
        left, right = (factor.to(parameter.device, wide) for factor in change)
        change = turned(module, left @ right)
    _require_shape(name, change, parameter)
    return (parameter.to(wide) + strength * change.to(parameter.device, wide)).to(parameter.dtype)


@contextlib.contextmanager
def _written(name: str, parameter: nn.Parameter, values: Tensor) -> Iterator[None]:
    before = parameter.detach().clone()
    kept = _KEPT.setdefault(parameter, [])
    kept.append(before)
    try:
        with torch.no_grad():
            parameter.copy_(values)
        del values
        yield
    finally:
        if kept[-1] is not before:
            raise Incompatible(f"two changes of {name} end in another order than they began; leave the inner one first")
        with torch.no_grad():
            parameter.copy_(before)
        kept.pop()
        if not kept:
            del _KEPT[parameter]


@contextlib.contextmanager
def _beside(module: nn.Module, change: LowRank, strength: float | int) -> Iterator[None]:
    given: list[Tensor] = []

    def take(x: Tensor) -> None:
        given[:] = [x]

    def add(out: Tensor) -> Tensor:
        x = given.pop()
        left, right = (factor.to(x.device, torch.float32) for factor in change)
        return out + (strength * (x.float() @ right.T) @ left.T).to(out.dtype)

    with on_inputs([(module, take)]), on_outputs([(module, add)]):
        yield
