"""Virtual tokens: keys and values that stand before those of every row, wherever its padding is."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.anatomy import decoder_layers, decoder_of, text_config
from trimtab.models.heads import find_heads
from trimtab.models.hooks import edits_suspended, on_arguments
from trimtab.models.tokens import context_length

CACHES = ("cache", "past_key_values", "past_key_value", "layer_past")
"""What transformers has called the cache in its modules' signatures."""


class KeysValues(NamedTuple):
    """One layer's keys and values of the virtual tokens, as attention gets them (after rotation)."""

    keys: Float[Tensor, "1 heads n d_head"]
    values: Float[Tensor, "1 heads n d_head"]


class VirtualTokens:
    """Makes every attention layer of a model see n virtual tokens before the first token of each row.

    Causality makes what virtual tokens do independent of the rows' own tokens: all there is to them is their keys
    and values, the same for every row, and that the positions of the real tokens count from n on. So they are put in
    where attention reads its keys, not into the sequence: rows stay as long as they were, padding stays where it is
    and is masked as before, a cache holds real tokens only, and checkpointed layers recompute them. `make` returns
    the layers' keys and values; it is called at the start of each sequence, and at every forward with gradients.
    Under a sliding window virtual tokens stay visible.
    """

    def __init__(self, model: Any, n_tokens: int, make: Callable[[], list[KeysValues]]) -> None:
        self.decoder, self.n, self.make = decoder_of(model), n_tokens, make
        self.attentions = attention_modules(model)
        self.cache_name = cache_argument(self.decoder)
        self.limit = context_length(model) if _learns_positions(model) else None
        self.current: list[KeysValues] = []
        self.making = False

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """Keep the virtual tokens in place for the block."""
        hooks = [(module, partial(self._enter_attention, i)) for i, module in enumerate(self.attentions)]
        with on_arguments([(self.decoder, self._enter_decoder), *hooks]):
            yield

    def _enter_decoder(self, given: dict[str, Any]) -> Mapping[str, Any] | None:
        if self.making:
            return None
        tokens = given.get("input_ids")
        tokens = given["inputs_embeds"] if tokens is None else tokens
        cache = given.get(self.cache_name)
        past = 0 if cache is None else int(cache.get_seq_length())
        if past == 0 or torch.is_grad_enabled() or not self.current:
            self.making = True
            try:
                self.current = self.make()
            finally:
                self.making = False
        positions = given.get("position_ids")
        if positions is None:
            positions = _positions(given.get("attention_mask"), past, tokens.shape[1], tokens.device)
        positions = positions + self.n
        if self.limit is not None and self.n + past + tokens.shape[1] > self.limit and positions.max() >= self.limit:
            raise BadValue(
                f"{past + tokens.shape[1]} tokens and {self.n} virtual ones exceed the model's {self.limit} positions; "
                "use shorter texts or fewer virtual tokens"
            )
        return {"position_ids": positions}

    def _enter_attention(self, layer: int, given: dict[str, Any]) -> Mapping[str, Any] | None:
        if self.making:
            return None
        name = cache_argument(self.attentions[layer])
        cache, mask = given.get(name), given.get("attention_mask")
        hidden = given["hidden_states"]
        index = getattr(self.attentions[layer], "layer_idx", layer)
        past = 0 if cache is None else int(cache.get_seq_length(index))
        return {
            name: _Preceded(cache, self.current[layer]),
            "attention_mask": _extended(mask, self.n, past, hidden.shape[1], hidden.device),
        }


class _Preceded:
    """Stands in for a layer's cache: stores real tokens in it (if there is one), returns virtual ones before them."""

    def __init__(self, cache: Any, before: KeysValues) -> None:
        self.cache, self.before = cache, before

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, *args, **kwargs)
        return _joined(self.before.keys, keys), _joined(self.before.values, values)


def _joined(before: Tensor, after: Tensor) -> Tensor:
    return torch.cat([before.to(after).expand(len(after), -1, -1, -1), after], dim=2)


def _extended(mask: Any, n: int, past: int, length: int, device: torch.device) -> Tensor | None:
    """Return the mask of a forward (batch 1 query key) with n visible columns before it."""
    if mask is None:
        if length == 1:
            return None
        # attention would have gone by causality alone, which holds for the real tokens' columns only
        visible = torch.ones(length, n + past + length, dtype=torch.bool, device=device)
        return visible.tril(diagonal=n + past)[None, None]
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise UnsupportedModel(
            "virtual tokens need an attention mask for every query and key; load the model with "
            "attn_implementation='sdpa' or 'eager'"
        )
    shape = (*mask.shape[:-1], n)
    before = mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)
    return torch.cat([before, mask], dim=-1)


def _positions(mask: Any, past: int, length: int, device: torch.device) -> Tensor:
    """Return the real tokens' positions (batch seq), counted from the first real token of each row."""
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return torch.arange(past, past + length, device=device)[None]


def cache_argument(module: nn.Module) -> str:
    """Return what a module calls the cache; raises `UnsupportedModel` if its forward takes none."""
    names = inspect.signature(module.forward).parameters
    for name in CACHES:
        if name in names:
            return name
    raise UnsupportedModel(f"{type(module).__name__} takes no cache of keys and values; virtual tokens need one")


def attention_modules(model: Any) -> list[nn.Module]:
    """Return each layer's attention: the innermost module that holds the output projection and takes a cache.

    Raises:
        UnsupportedModel: some layer has no attention, so that virtual tokens cannot reach past it, or the decoder
            takes no position ids.
    """
    layers, sites = decoder_layers(model), find_heads(model)
    if len(sites) < len(layers):
        raise UnsupportedModel(
            f"virtual tokens need attention with heads of one size in every layer; {len(layers) - len(sites)} of "
            f"{len(layers)} layers of this model have none such"
        )
    if "position_ids" not in inspect.signature(decoder_of(model).forward).parameters:
        raise UnsupportedModel(
            f"{type(decoder_of(model)).__name__} takes no position ids, so virtual tokens cannot stand before the text"
        )
    found = []
    for site in sites:
        holders = [
            module
            for module in layers[site.layer].modules()
            if any(part is site.module for part in module.modules())
            and any(name in inspect.signature(module.forward).parameters for name in CACHES)
        ]
        if not holders or holders[-1] is layers[site.layer]:
            raise UnsupportedModel(f"no attention module that takes a cache found around {site.name}")
        found.append(holders[-1])
    return found


def keys_and_values(model: Any, embeddings: Float[Tensor, "n d_model"]) -> list[KeysValues]:
    """Return every layer's keys and values of a sequence of embeddings that stands at positions 0 .. n."""
    from transformers import DynamicCache

    decoder: Any = decoder_of(model)
    cache: Any = DynamicCache()
    places = torch.arange(len(embeddings), device=embeddings.device)[None]
    # a checkpointed layer keeps no cache, and this one row of few tokens is cheap to hold
    with _not_checkpointed(decoder), edits_suspended(decoder):
        decoder(
            inputs_embeds=embeddings[None],
            position_ids=places,
            use_cache=True,
            **{cache_argument(decoder): cache},
        )
    return [KeysValues(layer.keys, layer.values) for layer in cache.layers]


@contextlib.contextmanager
def _not_checkpointed(decoder: nn.Module) -> Iterator[None]:
    checkpointed: list[Any] = [m for m in decoder.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True


def vocabulary_embeddings(model: Any, n_tokens: int, seed: int) -> Float[Tensor, "n d_model"]:
    """Return the embeddings of n random tokens, the start that Lester et al. (2021) found to train best.

    Raises:
        BadValue: the model's table of positions has none left for the text.
    """
    limit = context_length(model) if _learns_positions(model) else None
    if limit is not None and n_tokens >= limit:
        raise BadValue(f"{n_tokens} virtual tokens leave no room for text in the model's {limit} positions; use fewer")
    table = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(text_config(model).vocab_size, (n_tokens,), generator=generator)
    with torch.no_grad():
        return table(ids.to(table.weight.device)).detach()


def _learns_positions(model: Any) -> bool:
    """Return whether positions are looked up in a table, which ends."""
    tokens = model.get_input_embeddings()
    return any(isinstance(m, nn.Embedding) and m is not tokens for m in decoder_of(model).children())
