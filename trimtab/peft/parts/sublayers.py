"""Where a decoder layer's sublayers end, found by structure, and the sizes that a config alone gives."""

from __future__ import annotations

from typing import Any

from torch import nn

from trimtab.errors import UnsupportedModel
from trimtab.models.anatomy import decoder_layers, head_sizes, output_width, text_config
from trimtab.models.heads import find_heads


def attention_blocks(model: Any) -> list[tuple[int, nn.Module, nn.Module]]:
    """Return (index, layer, attention output projection) of every layer that has attention."""
    layers = decoder_layers(model)
    return [(site.layer, layers[site.layer], site.module) for site in find_heads(model)]


def feed_forward(layer: nn.Module, projection: nn.Module) -> nn.Module:
    """Return the module whose output is the feed-forward network's, before residual and dropout.

    That is the last child of the layer that has weight matrices and does not hold the attention's projection, or,
    where such a child is dense, its one linear module that leads back to the model's width (some networks add the
    residual inside the child). Mixtures of experts are taken whole.

    Raises:
        UnsupportedModel: there is no such child.
    """
    children = [
        child
        for child in layer.children()
        if all(module is not projection for module in child.modules())
        and any(parameter.ndim > 1 for parameter in child.parameters())
    ]
    if not children:
        raise UnsupportedModel(
            f"no feed-forward network found in a {type(layer).__name__}: looked for a child with weight matrices "
            "beside the attention"
        )
    return _leading_back(children[-1], output_width(projection))


def _leading_back(block: nn.Module, width: int | None) -> nn.Module:
    modules = list(block.modules())
    mixture = any(isinstance(m, nn.ModuleList) for m in modules) or any(p.ndim > 2 for p in block.parameters())
    leading = [m for m in modules if output_width(m) == width]
    return leading[0] if len(leading) == 1 and not mixture else block


def config_of(model_or_config: Any) -> Any:
    """Return the text decoder's config, of a model or given as such."""
    if isinstance(model_or_config, nn.Module):
        return text_config(model_or_config)
    if not hasattr(model_or_config, "get_text_config"):
        raise UnsupportedModel(f"expected a model or its transformers config, got a {type(model_or_config).__name__}")
    return model_or_config.get_text_config(decoder=True)


def key_value_sizes(config: Any) -> tuple[int, int]:
    """Return (heads, d_head) of keys and values by the config."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, head_width(config)


def head_width(config: Any) -> int:
    """Return the width of one head by the config; raises `UnsupportedModel` if it differs between layers."""
    widths = sorted({width for _, width in head_sizes(config)})
    if len(widths) > 1:
        raise UnsupportedModel(
            f"the heads of {config.model_type} are {' or '.join(map(str, widths))} wide, by layer; this method counts "
            "on one width"
        )
    return widths[0]
