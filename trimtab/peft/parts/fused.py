"""Which rows of a fused attention projection make queries, keys and values, found by what they do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import UnsupportedModel
from trimtab.models.anatomy import base_of, output_width, text_config
from trimtab.models.calling import inference
from trimtab.models.heads import find_heads
from trimtab.models.hooks import on_inputs, on_outputs


def fused_width(model: Any) -> tuple[int, int, int]:
    """Return the rows of queries, of keys and of values that the config asks for in one layer."""
    config = text_config(model)
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    grouped = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.num_attention_heads * d_head, grouped * d_head, grouped * d_head


def is_fused(model: Any, module: nn.Module) -> bool:
    """Return whether one projection makes queries, keys and values at once."""
    return output_width(module) == sum(fused_width(model))


def fused_rows(model: Any, module: nn.Module) -> dict[str, Tensor]:
    """Return for "q", "k" and "v" a mask over the rows of the first layer's fused projection `module`.

    Each block of d_head rows is changed at the first of two positions, in its own row of one batch. What a value
    changes is seen at that position already (its softmax has one entry); a key's change only from the next one on; a
    query's nowhere later. The layout (blocks one after the other, or interleaved by head) needs no table.

    Raises:
        UnsupportedModel: the numbers of rows found are not those of the config.
    """
    base, widths = base_of(model), fused_width(model)
    site = find_heads(base)[0]
    width, d_head = sum(widths), site.d_head
    n_blocks = width // d_head
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 2, width, generator=generator).repeat(n_blocks + 1, 1, 1)
    for block in range(n_blocks):
        noise[block + 1, 0, block * d_head : (block + 1) * d_head] += torch.randn(d_head, generator=generator)
    seen: list[Tensor] = []
    tokens = torch.zeros(n_blocks + 1, 2, dtype=torch.long, device=base.get_input_embeddings().weight.device)
    hooks = [(site.module, lambda x: seen.append(x.detach().float().cpu()))]
    with inference(base), on_outputs([(module, lambda y: noise.to(y))]), on_inputs(hooks):
        base(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    moved = ((seen[0] - seen[0][:1]).abs().amax(-1) > 1e-4 * seen[0].abs().max())[1:]
    kinds = {"v": moved[:, 0], "k": moved[:, 1] & ~moved[:, 0], "q": ~moved.any(1)}
    rows = {kind: blocks.repeat_interleave(d_head) for kind, blocks in kinds.items()}
    if tuple(int(rows[kind].sum()) for kind in "qkv") != widths:
        raise UnsupportedModel(
            "cannot tell queries, keys and values apart in the fused projection of this model; name other targets"
        )
    return rows
