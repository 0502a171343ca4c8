"""Heads that the user names by hand, held to the check that found heads pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from trimtab.errors import BadValue, UnsupportedModel


def require_modules(base: nn.Module, heads: Mapping[int, tuple[str, int]]) -> dict[int, nn.Module]:
    """Return each layer's named module; raises `BadValue` for what names none, or one of them twice."""
    if not isinstance(heads, Mapping) or not all(_is_named(*item) for item in heads.items()):
        raise BadValue(f"heads must be {{layer: (module name, number of heads)}} with whole numbers, got {heads!r}")
    if not heads:
        raise BadValue("heads is empty; give {layer: (module name, number of heads)}")
    given = [name for name, _ in heads.values()]
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        raise BadValue(f"heads names module {twice!r} for several layers; name each layer's own")
    modules = dict(base.named_modules())
    for layer, (name, _) in heads.items():
        if name not in modules:
            last = name.rpartition(".")[2]
            alike = [m for m in modules if m.rpartition(".")[2] == last] or [m for m in modules if m]
            raise BadValue(f"layer {layer}: the model has no module {name!r}; it has such as {', '.join(alike[:3])}")
    return {layer: modules[name] for layer, (name, _) in heads.items()}


def _is_named(layer: Any, place: Any) -> bool:
    if not isinstance(place, tuple | list) or len(place) != 2:
        return False
    name, n_heads = place
    # a bool is an int to Python
    return isinstance(name, str) and all(type(n) is int and n >= 0 for n in (layer, n_heads))


def layer_around(base: nn.Module, name: str, others: set[str]) -> nn.Module:
    """Return the outermost module around `name` that holds none of the other named modules: its layer.

    Raises:
        UnsupportedModel: there is no such module.
    """
    parts = name.split(".")
    for length in range(1, len(parts)):
        path = ".".join(parts[:length])
        around = base.get_submodule(path)
        several = isinstance(around, nn.ModuleList | nn.ModuleDict) or around is base.get_submodule(name)
        if not several and not any(other.startswith(path + ".") for other in others) and _takes_vectors(around):
            return around
    raise UnsupportedModel(f"module {name!r} stands in no layer of its own, so its heads cannot be verified")


def _takes_vectors(module: nn.Module) -> bool:
    # a module with the embedding inside is called with tokens
    return not any(isinstance(part, nn.Embedding) for part in module.modules())


def verified_width(
    module: nn.Module, where: str, n_heads: int, inputs: Mapping[nn.Module, Tensor], mixing: Collection[nn.Module]
) -> int:
    """Return the width of a head if the module's input holds `n_heads` of them and is what attention gives.

    Args:
        inputs: what the modules of the layer got in a trial forward.
        mixing: the modules that follow attention in it.

    Raises:
        UnsupportedModel: the module was not called, has another width, or does not follow attention.
    """
    if module not in inputs:
        raise UnsupportedModel(
            f"{where} was not called with vectors (batch, seq, width); name the projection that the heads go into"
        )
    width = inputs[module].shape[-1]
    if n_heads < 1 or width % n_heads:
        raise UnsupportedModel(f"the input of {where} is {width} wide, which is not {n_heads} heads")
    if module not in mixing:
        why = "comes after another such module" if mixing else "does not depend on earlier positions"
        raise UnsupportedModel(f"{where} is not the projection after attention: its input {why}")
    return width // n_heads
