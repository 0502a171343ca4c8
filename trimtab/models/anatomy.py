"""What a model is made of: its decoder, its layers, the widths of its parts, and the device that each part is on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import UnsupportedModel


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


def untouched_layers(model: Any, names: Iterable[str]) -> int:
    """Return how many of the decoder's first layers compute as before where these parameters change."""
    prefixes = {id(module): name for name, module in base_of(model).named_modules()}
    layers = [f"{prefixes[id(layer)]}." for layer in decoder_layers(model)]
    # what stands outside the layers, as embeddings do, may be below all of them
    return min((next((i for i, at in enumerate(layers) if name.startswith(at)), 0) for name in names), default=0)


def head_sizes(config: Any) -> list[tuple[int, int]]:
    """Return each layer's number of heads and the width of one, by the config."""
    n_layers = config.num_hidden_layers
    # where layers differ (Gemma 4) the config of the whole refuses to say how
    each = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config] * n_layers
    return [(layer.num_attention_heads, _d_head(layer)) for layer in (each[i] for i in range(n_layers))]


def _d_head(config: Any) -> int:
    explicit = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None)
    return explicit or config.hidden_size // config.num_attention_heads


def input_width(module: nn.Module) -> int | None:
    """Return the input width of a linear-like module (Linear, Conv1D, quantised or adapter-wrapped), else None."""
    return _first_number(module, "in_features", "nx")


def output_width(module: nn.Module) -> int | None:
    """Return the output width of a linear-like module, as `input_width`."""
    return _first_number(module, "out_features", "nf")


def _first_number(module: nn.Module, *names: str) -> int | None:
    values = (getattr(module, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def has_tied_embeddings(model: Any) -> bool:
    """Return whether the output embedding is the input embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embedding.weight


def input_device(model: Any) -> torch.device:
    """Return the device on which the model takes tokens."""
    embedding = model.get_input_embeddings()
    device = embedding.weight.device
    if device.type == "meta":
        placed = (getattr(hook, "execution_device", None) for hook in _hooks(embedding))
        device = torch.device(next((d for d in placed if d is not None), device))
    return device


def stored_weight(model: nn.Module, name: str) -> Tensor | None:
    """Return a weight that is offloaded at the moment, from where accelerate keeps it; None if nobody keeps it."""
    owner, _, leaf = name.rpartition(".")
    for hook in _hooks(model.get_submodule(owner)):
        stored = getattr(hook, "weights_map", None)
        if stored is not None:
            return stored[leaf]
    return None


def moves_weights(model: nn.Module) -> bool:
    """Return whether accelerate moves weights or inputs between devices around modules' forwards."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", () if hook is None else (hook,))
