"""Keys and values of tokens that were computed, and the one forward that computes more tokens on top of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trimtab.engine.batching import Mode
from trimtab.engine.token_tree import TokenTree
from trimtab.models.anatomy import base_of, input_device, text_config
from trimtab.models.calling import cache_name, logits_limit, takes_positions
from trimtab.protocols import TokenMask


@dataclass(frozen=True)
class Past:
    """Computed tokens: which node of the tree stands where (-1: padding), and every layer's keys and values."""

    nodes: Int[Tensor, "batch past"]
    layers: tuple[tuple[Tensor, Tensor], ...]

    def expanded(self, batch: int) -> Past:
        """Return a single row seen as `batch` rows, without copying it."""
        if len(self.nodes) == batch:
            return self
        layers = tuple((k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)) for k, v in self.layers)
        return Past(self.nodes.expand(batch, -1), layers)

    def gathered(self, rows: Int[Tensor, " batch"]) -> Past:
        """Return these rows with the padding moved to the front of each."""
        kept = [nodes[nodes >= 0] for nodes in self.nodes[rows]]
        places = [(nodes >= 0).nonzero()[:, 0] for nodes in self.nodes[rows]]
        index = pad_sequence(places, batch_first=True, padding_side="left")

        def moved(x: Float[Tensor, "row head past width"]) -> Float[Tensor, "batch head past2 width"]:
            chosen = x[rows.to(x.device)]
            where = index.to(x.device)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
            return chosen.gather(2, where)

        nodes = pad_sequence(kept, batch_first=True, padding_value=-1, padding_side="left")
        return Past(nodes, tuple((moved(k), moved(v)) for k, v in self.layers))


class TreeForward:
    """Runs a model over nodes of a tree, given the past that they follow; an edit acts on the rows' own nodes."""

    def __init__(self, model: Any, tree: TokenTree, mode: Mode, mask: TokenMask | None = None) -> None:
        self.model, self.tree, self.mask = model, tree, mask or TokenMask()
        self.mode: Mode = mode
        self.device = input_device(model)
        self.tokens, self.depth, self.end = (to_device(x, self.device) for x in (tree.tokens, tree.depth, tree.end))
        self.positions = takes_positions(model)
        self.cache_name = cache_name(model)
        self.window, self.mixed = windows(model)

    def __call__(
        self, model: Any, rows: Int[np.ndarray, "batch seq"], past: Past | None, *, keep: int, remember: bool = False
    ) -> tuple[Any, Past | None]:
        """Return the output for padded rows of nodes, with logits of the last `keep` places, and the past with them.

        The past is given back if it is to be remembered.
        """
        self.mask.value = to_device(self.tree.own[rows] & (rows >= 0), self.device)
        nodes = to_device(rows, self.device)
        past = None if past is None else past.expanded(len(nodes))
        seen = nodes if past is None else torch.cat([past.nodes, nodes], 1)
        options = {"use_cache": False, **logits_limit(model, keep)}
        if self.positions and self.mode != "plain":
            options["position_ids"] = self.depth[nodes.clamp(min=0)]
        if past is not None or remember:
            options |= {"use_cache": True, self.cache_name: as_cache(past)}
        ids = self.tokens[nodes.clamp(min=0)].masked_fill(nodes < 0, self.tree.pad)
        output = model(input_ids=ids, attention_mask=self._mask(nodes, seen), **options)
        if not remember:
            return output, None
        layers = tuple((layer.keys, layer.values) for layer in options[self.cache_name].layers)
        return output, Past(seen, layers)

    def padded(self, rows: Sequence[np.ndarray]) -> Int[np.ndarray, "batch seq"]:
        """Return rows of nodes as one batch, padded where the mode wants it: in front if packed, behind otherwise."""
        length = max(map(len, rows))
        padded = np.full((len(rows), length), -1, dtype=np.int64)
        for place, row in zip(padded, rows, strict=True):
            place[slice(length - len(row), None) if self.mode == "packed" else slice(len(row))] = row
        return padded

    def _mask(self, nodes: Int[Tensor, "batch seq"], seen: Int[Tensor, "batch all"]) -> Any:
        if self.mode != "packed":
            return (seen >= 0).long()
        key, query = seen[:, None], nodes[:, :, None]
        visible = (key >= 0) & (key <= query) & (query < self.end[key.clamp(min=0)])
        # padding sees itself, since a softmax over nothing is not a number
        visible[:, :, -nodes.shape[1] :] |= torch.eye(nodes.shape[1], dtype=torch.bool, device=visible.device)
        full = self._additive(visible)
        if self.window is None:
            return full
        near = self.depth[query.clamp(min=0)] - self.depth[key.clamp(min=0)] < self.window
        sliding = self._additive(visible & near)
        return {"full_attention": full, "sliding_attention": sliding} if self.mixed else sliding

    def _additive(self, visible: Tensor) -> Float[Tensor, "batch 1 seq all"]:
        dtype = base_of(self.model).dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def to_device(x: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Return a small CPU array on the device, without waiting for what the device is computing."""
    tensor = torch.as_tensor(x)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def windows(model: Any) -> tuple[int | None, bool]:
    """Return the sliding window that layers attend within (None: all attend to everything), and whether kinds mix."""
    config = text_config(model)
    kinds, window = set(getattr(config, "layer_types", None) or ()), getattr(config, "sliding_window", None)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return None, False
    return window, bool(kinds)


def may_be_packed(model: Any) -> bool:
    """Return whether the config speaks only of attention that a mask over ancestors describes."""
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ())
    own_windows = ("attention_chunk_size", "window_size", "local_attention")
    return kinds <= {"full_attention", "sliding_attention", "attention"} and not any(
        getattr(config, name, None) for name in own_windows
    )


def as_cache(past: Past | None) -> Any:
    """Return the computed tokens as the cache that a model takes."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    # made without the config: a cache that forgets what left a sliding window could not be shared
    cache = DynamicCache()
    for k, v in () if past is None else past.layers:
        layer = DynamicLayer()
        layer.lazy_initialization(k, v)
        layer.keys, layer.values = k, v
        cache.layers.append(layer)
    return cache
