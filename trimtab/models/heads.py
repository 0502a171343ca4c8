"""find_heads: every layer's attention output projection, found by what it does rather than by its name."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import UnsupportedModel
from trimtab.models.hooks import on_inputs


@dataclass(frozen=True)
class HeadSite:
    """One layer's attention output projection; its input is the concatenation of the layer's heads."""

    layer: int
    module: nn.Module
    name: str
    """The module's path in the model, for messages."""
    n_heads: int
    d_head: int


def find_heads(model: Any) -> tuple[HeadSite, ...]:
    """Return the attention output projection of every layer that has one, in layer order.

    Attention is where positions mix, so the projection is the first linear module of a layer whose input at later
    positions depends on the layer's input at the first position. That is tried out on two forwards of four tokens
    which differ in the first one, with the layers' inputs at the other positions held fixed. The width of what is
    found must be n_heads x d_head by the model's config. Layers without attention (state-space layers of hybrids)
    are left out with a warning.

    Raises:
        UnsupportedModel: no layer list or no such projection; the message says what was looked for.
    """
    config = text_config(model)
    layers = decoder_layers(model)
    names = {module: name for name, module in base_of(model).named_modules()}
    mixed = _first_mixing_linear(model, layers)
    sites, without = [], []
    for index, module in enumerate(mixed):
        d_head = _d_head(config)
        if module is None or _width(module) != config.num_attention_heads * d_head:
            without.append(index)
            continue
        sites.append(HeadSite(index, module, names.get(module, "?"), config.num_attention_heads, d_head))
    if not sites:
        found = {names.get(m, "?"): _width(m) for m in mixed if m is not None}
        raise UnsupportedModel(
            f"no attention heads found in {type(base_of(model)).__name__}: looked in {len(layers)} layers for a linear "
            f"module after attention with {config.num_attention_heads} x {_d_head(config)} inputs, "
            f"found {found or 'none'}"
        )
    if without:
        warnings.warn(f"layers {without} have no attention heads and are left out", stacklevel=2)
    return tuple(sites)


def base_of(model: Any) -> Any:
    """Return the Hugging Face model inside a PEFT wrapper or a compiled module, or the model itself."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: Any) -> Any:
    """Return the config of the text decoder."""
    return base_of(model).config.get_text_config(decoder=True)


def decoder_of(model: Any) -> nn.Module:
    """Return the decoder stack: the module that is called with tokens and holds the layers."""
    decoder = base_of(model).get_decoder()
    return base_of(model).base_model if decoder is None else decoder


def decoder_layers(model: Any) -> list[nn.Module]:
    """Return the decoder's layers: the outermost ModuleList with as many entries as the config has layers."""
    n_layers = text_config(model).num_hidden_layers
    for module in decoder_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return list(module)
    raise UnsupportedModel(
        f"no list of {n_layers} layers found in {type(base_of(model)).__name__}; expected a decoder-only transformer"
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


def _first_mixing_linear(model: Any, layers: list[nn.Module]) -> list[nn.Module | None]:
    first = _linear_inputs(model, layers, token=5, pinned=None)
    second = _linear_inputs(model, layers, token=6, pinned=[seen.layer_input for seen in first])
    return [_first_difference(a, b) for a, b in zip(first, second, strict=True)]


@dataclass
class _Seen:
    """What one forward showed of one layer, at the positions after the first."""

    layer_input: Float[Tensor, "seq d_model"] | None
    linear_inputs: dict[nn.Module, Float[Tensor, "seq width"]]
    """In the order of the calls."""


def _linear_inputs(
    model: Any, layers: list[nn.Module], *, token: int, pinned: list[Tensor | None] | None
) -> list[_Seen]:
    seen = [_Seen(None, {}) for _ in layers]
    hooks = []
    for index, layer in enumerate(layers):

        def enter(x: Tensor, index: int = index) -> Tensor | None:
            rest = pinned[index] if pinned else None
            if rest is not None:
                x = torch.cat([x[:, :1], rest.to(x)[None]], dim=1)
            seen[index].layer_input = x[0, 1:].clone()
            return x if rest is not None else None

        hooks.append((layer, enter))
        for module in layer.modules():
            if _width(module) is None:
                continue

            def read(x: Tensor, index: int = index, module: nn.Module = module) -> None:
                if x.ndim == 3 and x.shape[1] == 4:
                    seen[index].linear_inputs.setdefault(module, x[0, 1:].clone())

            hooks.append((module, read))
    base = base_of(model)
    device = base.get_input_embeddings().weight.device
    tokens = torch.tensor([[token, 7, 8, 9]], device=device)
    with inference(base), on_inputs(hooks):
        base(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return seen


def _first_difference(a: _Seen, b: _Seen) -> nn.Module | None:
    for module, x in a.linear_inputs.items():
        y = b.linear_inputs.get(module)
        # a relative threshold, since kernels may round equal rows differently (int8 does)
        if y is not None and (x - y).abs().max() > 1e-3 * x.abs().max():
            return module
    return None


def _width(module: nn.Module) -> int | None:
    """Return the input width of a linear-like module (Linear, Conv1D, quantised or adapter-wrapped), else None."""
    for name in ("in_features", "nx"):
        width = getattr(module, name, None)
        if isinstance(width, int):
            return width
    return None


def _d_head(config: Any) -> int:
    explicit = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None)
    return explicit or config.hidden_size // config.num_attention_heads
