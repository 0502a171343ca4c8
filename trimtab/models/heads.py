"""find_heads: every layer's attention output projection, found by what it does rather than by its name."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.anatomy import base_of, decoder_layers, head_sizes, input_width, text_config
from trimtab.models.calling import tried_out
from trimtab.models.hooks import on_inputs
from trimtab.models.identity import remembered, traits, warn_once
from trimtab.models.named_heads import layer_around, require_modules, verified_width


@dataclass(frozen=True)
class HeadSite:
    """One layer's attention output projection; its input is the concatenation of the layer's heads."""

    layer: int
    module: nn.Module
    name: str
    """The module's path in the model, for messages."""
    n_heads: int
    d_head: int


def find_heads(model: Any, heads: Mapping[int, tuple[str, int]] | None = None) -> tuple[HeadSite, ...]:
    """Return the attention output projection of every layer that has one, in layer order.

    Attention is where positions mix, so the projection is the first linear module of a layer whose input at later
    positions depends on the layer's input at the first position. That is tried out on two forwards over four
    positions in which every layer gets random inputs, the same but for the first position. The width of what is
    found must be n_heads x d_head by the model's config. Layers without attention (the state-space, convolutional
    and recurrent layers of hybrids) are left out with a warning, once, and so are those whose heads have another size
    than those of most layers (Gemma 4's global attention). The model remembers what was found for as long as its
    modules, hooks and config stay the same.

    Args:
        heads: for a model of your own whose heads are not found: `{layer: (module name, number of heads)}`, the
            module being the one that the concatenated heads go into. It must pass the same trial.

    Raises:
        UnsupportedModel: no layer list or no such projection; the message says what was looked for. Named heads
            differ in size.
        BadValue: the attention of some layer gives NaN or infinite values; a name that the model does not have.
    """
    if heads is not None:
        return _named(model, heads)
    config, base = text_config(model), base_of(model)
    found, without, other = remembered(base, "heads", traits(base), lambda: _found(model, config))
    # hooks and adapters that come and go make heads be looked for again; what is left out is said once
    if without:
        warn_once(base, "left_out", f"layers {without} have no attention heads and are left out")
    if other:
        note = "have heads of another size than most layers and are left out; heads= takes those by name"
        warn_once(base, "other_size", f"layers {other} {note}")
    return tuple(HeadSite(layer, base.get_submodule(name), name, *size) for layer, name, *size in found)


def _found(model: Any, config: Any) -> tuple[list[tuple[int, str, int, int]], list[int], list[int]]:
    """Return layer, module name, number of heads and their width of every site of the commonest size; the layers
    without heads; and those with heads of another size."""
    masked = type(base_of(model)).__name__.endswith("ForMaskedLM")
    if masked or getattr(config, "is_encoder_decoder", False) or not hasattr(config, "num_attention_heads"):
        raise UnsupportedModel(
            f"{type(base_of(model)).__name__} is not a decoder with attention heads (model type {config.model_type}); "
            "expected a decoder-only transformer"
        )
    layers = decoder_layers(model)
    names = {module: name for name, module in base_of(model).named_modules()}
    linears = [[m for m in layer.modules() if input_width(m) is not None] for layer in layers]
    one, other = (_linear_inputs(model, layers, linears, seed) for seed in (1, 2))
    sizes = head_sizes(config)
    sites, without, found = [], [], {}
    for index in range(len(layers)):
        mixing = _mixing_linears(one[index], other[index], f"layer {index}", names)
        for module in mixing if _may_attend(config, index) else ():
            found[names.get(module, "?")] = input_width(module)
            if input_width(module) == math.prod(sizes[index]) and not convolves(module, names, model):
                sites.append((index, names[module], *sizes[index]))
                break
        else:
            without.append(index)
    if not sites:
        raise UnsupportedModel(
            f"no attention heads found in {type(base_of(model)).__name__}: looked in {len(layers)} layers for a linear "
            f"module after attention with {' or '.join(f'{n} x {d}' for n, d in sorted(set(sizes)))} inputs, "
            f"found {found or 'none'}"
        )
    usual = statistics.mode(sizes[index] for index, *_ in sites)
    other = [index for index, *_ in sites if sizes[index] != usual]
    return [site for site in sites if site[0] not in other], without, other


def _named(model: Any, heads: Mapping[int, tuple[str, int]]) -> tuple[HeadSite, ...]:
    base = base_of(model)
    modules = require_modules(base, heads)
    names = {module: name for name, module in base.named_modules()}
    paths = {name for name, _ in heads.values()}
    layers = [layer_around(base, name, paths - {name}) for name, _ in heads.values()]
    linears = [
        [m for m in around.modules() if input_width(m) is not None or m is named or _is_matrix(m)]
        for around, named in zip(layers, modules.values(), strict=True)
    ]
    one, other = (_linear_inputs(model, layers, linears, seed) for seed in (1, 2))
    sites = []
    for i, (layer, (name, n_heads)) in enumerate(heads.items()):
        where, module = f"layer {layer}: module {name!r}", modules[layer]
        mixing = list(_mixing_linears(one[i], other[i], f"layer {layer}", names))
        sites.append(HeadSite(layer, module, name, n_heads, verified_width(module, where, n_heads, one[i], mixing)))
    sizes = {(site.n_heads, site.d_head): site.layer for site in reversed(sites)}
    if len(sizes) > 1:
        listed = ", ".join(f"layer {layer}: {n} x {d}" for (n, d), layer in sorted(sizes.items(), key=lambda x: x[1]))
        raise UnsupportedModel(f"the named heads differ in size ({listed}); name layers of one size at a time")
    return tuple(sorted(sites, key=lambda site: site.layer))


LinearInputs: TypeAlias = dict[nn.Module, Float[Tensor, "seq width"]]
"""The inputs that one layer's linear modules got in one forward after the first position, in the order of the calls."""


def _linear_inputs(
    model: Any, layers: list[nn.Module], linears: list[list[nn.Module]], seed: int
) -> list[LinearInputs]:
    seen: list[LinearInputs] = [{} for _ in layers]

    # random inputs, since tokens may share an embedding, and late in a model the first position is the same for all
    def enter(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        noise[..., 0, :] = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(seed))
        return noise.to(x)

    hooks = []
    for layer, modules, inputs in zip(layers, linears, seen, strict=True):
        hooks.append((layer, enter))
        hooks += [(module, partial(_keep, inputs, module)) for module in modules]
    tried_out(model, [0] * 4, on_inputs(hooks))
    return seen


def _keep(inputs: LinearInputs, module: nn.Module, x: Tensor) -> None:
    if x.ndim == 3 and x.shape[1] == 4:
        inputs.setdefault(module, x[0, 1:].clone())


def _mixing_linears(
    one: LinearInputs, other: LinearInputs, where: str, names: Mapping[nn.Module, str]
) -> Iterator[nn.Module]:
    """Yield the linear modules that follow attention and nothing else, in the order of the calls.

    The first one whose input depends on earlier positions does. One in another branch (parallel attention and state
    spaces) does too: the module around it starts with linear modules that still see one position each.
    """
    alone: set[str] = set()
    spent: set[str] = set()
    for module, x in one.items():
        y = other.get(module)
        if y is None:
            continue
        name = names.get(module, "?")
        if not bool(x.isfinite().all() and y.isfinite().all()):
            raise BadValue(
                f"{where} gives NaN or infinite values to {name}; "
                "load the model in float32 (or bfloat16) and check its weights"
            )
        around = name.rpartition(".")[0]
        # a relative threshold, since kernels may round equal rows differently (int8 does)
        if not (x - y).abs().max() > 1e-3 * x.abs().max():
            alone.add(around)
            continue
        if not spent or around in alone - spent:
            yield module
        spent.add(around)


def _may_attend(config: Any, index: int) -> bool:
    """Return whether the config leaves open that the layer attends: convolutions and recurrences mix positions too."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    return index >= len(kinds) or (
        kinds[index] != "linear_attention" and ("attention" in kinds[index] or kinds[index] == "hybrid")
    )


def convolves(module: nn.Module, names: Mapping[nn.Module, str], model: Any) -> bool:
    """Return whether the module ends a state-space or convolutional mixer, which has a convolution over positions."""
    around = base_of(model).get_submodule(names[module].rpartition(".")[0])
    return any(isinstance(part, nn.Conv1d) for part in around.modules())


def _is_matrix(module: nn.Module) -> bool:
    return not list(module.children()) and any(p.ndim > 1 for p in module.parameters(recurse=False))
