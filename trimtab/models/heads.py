"""find_heads: every layer's attention output projection, found by what it does rather than by its name."""

from __future__ import annotations

import contextlib
import inspect
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
from trimtab.models.hooks import edits_suspended, on_inputs
from trimtab.models.named_heads import layer_around, require_modules, verified_width
from trimtab.models.offload import input_device
from trimtab.models.remembered import remembered, traits, warn_once


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
    linears = [[m for m in layer.modules() if _width(m) is not None] for layer in layers]
    one, other = (_linear_inputs(model, layers, linears, seed) for seed in (1, 2))
    sizes = head_sizes(config)
    sites, without, found = [], [], {}
    for index in range(len(layers)):
        mixing = _mixing_linears(one[index], other[index], f"layer {index}", names)
        for module in mixing if _may_attend(config, index) else ():
            found[names.get(module, "?")] = _width(module)
            if _width(module) == math.prod(sizes[index]) and not _convolves(module, names, model):
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
        [m for m in around.modules() if _width(m) is not None or m is named or _is_matrix(m)]
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


def head_sizes(config: Any) -> list[tuple[int, int]]:
    """Return each layer's number of heads and the width of one, by the config."""
    n_layers = config.num_hidden_layers
    # where layers differ (Gemma 4) the config of the whole refuses to say how
    each = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config] * n_layers
    return [(layer.num_attention_heads, _d_head(layer)) for layer in (each[i] for i in range(n_layers))]


def base_of(model: Any) -> Any:
    """Return the Hugging Face model inside a PEFT wrapper or a compiled module, or the model itself."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: Any) -> Any:
    """Return the config of the text decoder; raises `UnsupportedModel` for what is no Hugging Face model."""
    config: Any = getattr(base_of(model), "config", None)
    if not hasattr(config, "get_text_config"):
        raise UnsupportedModel(
            f"{type(base_of(model)).__name__} has no transformers config; expected a Hugging Face causal language model"
        )
    return config.get_text_config(decoder=True)


def logits_limit(model: Any, keep: int) -> dict[str, int]:
    """Return the argument that makes the model's head run on the last `keep` positions only, if it has one."""
    takes = "logits_to_keep" in inspect.signature(base_of(model).forward).parameters
    return {"logits_to_keep": keep} if takes else {}


def decoder_of(model: Any) -> nn.Module:
    """Return the decoder stack: the module that is called with tokens and holds the layers."""
    decoder = base_of(model).get_decoder()
    return base_of(model).base_model if decoder is None else decoder


def decoder_layers(model: Any) -> list[nn.Module]:
    """Return the decoder's layers: the outermost ModuleList with as many entries as the config has layers.

    Raises:
        UnsupportedModel: there is no such list.
    """
    n_layers = getattr(text_config(model), "num_hidden_layers", None)
    for module in decoder_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return list(module)
    raise UnsupportedModel(
        f"no list of {n_layers or 'num_hidden_layers'} layers found in {type(base_of(model)).__name__}; "
        "expected a decoder-only transformer"
    )


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Run the block without gradients and with every module in evaluation mode; restore each module's mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


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
    base = base_of(model)
    tokens = torch.zeros(1, 4, dtype=torch.long, device=input_device(base))
    with inference(base), edits_suspended(decoder_of(model)), on_inputs(hooks):
        base(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
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


def _convolves(module: nn.Module, names: Mapping[nn.Module, str], model: Any) -> bool:
    """Return whether the module ends a state-space or convolutional mixer, which has a convolution over positions."""
    around = base_of(model).get_submodule(names[module].rpartition(".")[0])
    return any(isinstance(part, nn.Conv1d) for part in around.modules())


def _width(module: nn.Module) -> int | None:
    """Return the input width of a linear-like module (Linear, Conv1D, quantised or adapter-wrapped), else None."""
    for name in ("in_features", "nx"):
        width = getattr(module, name, None)
        if isinstance(width, int):
            return width
    return None


def _is_matrix(module: nn.Module) -> bool:
    return not list(module.children()) and any(p.ndim > 1 for p in module.parameters(recurse=False))


def _d_head(config: Any) -> int:
    explicit = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None)
    return explicit or config.hidden_size // config.num_attention_heads
