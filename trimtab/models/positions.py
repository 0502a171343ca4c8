"""Where an edit acts in a forward: masks per token, and the forwards in which "generated" has no meaning."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import BadValue, ShapeError
from trimtab.protocols import Positions, TokenMask


def mask_of(positions: Tensor | TokenMask, shape: Sequence[int]) -> Tensor:
    """Return the mask for a forward of this (batch, seq) shape; raises `ShapeError` if it has another."""
    mask = positions.value if isinstance(positions, TokenMask) else positions
    if mask is None:
        raise ShapeError("the TokenMask has no value: set mask.value before each forward")
    if tuple(mask.shape) != tuple(shape):
        raise ShapeError(
            f"the mask is {tuple(mask.shape)}, the forward is {tuple(shape)} (batch, seq); give one entry per token"
        )
    return mask


class ForwardCheck:
    """Refuses the decoder's forwards in which "generated" has no meaning and counts the others."""

    def __init__(self, decoder: nn.Module, positions: Positions) -> None:
        if isinstance(positions, str) and positions not in ("generated", "all"):
            raise BadValue(f"positions must be 'generated', 'all' or a mask (batch, seq), got {positions!r}")
        self.signature = inspect.signature(decoder.forward)
        self.positions = positions
        self.suspended = False
        self.count = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        """Refuse a forward in which the positions have no meaning."""
        if self.suspended or not isinstance(self.positions, str) or self.positions == "all":
            return
        given = self.signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if tokens is None or tokens.shape[1] == 1:
            return
        # transformers 5.24 renamed the argument
        past = given.get("cache", given.get("past_key_values"))
        if past is None:
            raise BadValue(
                f"positions='generated' in one forward over {tokens.shape[1]} positions without a cache would edit the "
                "last one only; pass a mask (batch, seq) of the positions to edit, or positions='all'"
            )
        if not hasattr(past, "get_seq_length"):
            raise BadValue(
                f"positions='generated' edits the last position of each row, and a {type(past).__name__} (continuous "
                "batching) packs several sequences into one; call generate in place of generate_batch"
            )
        if _ends_in_padding(given.get("attention_mask"), past, tokens.shape[1]):
            raise BadValue(
                "positions='generated' needs left padding: some rows of this batch end in padding; "
                "set tokenizer.padding_side = 'left'"
            )

    def require_one_prediction(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        """Refuse, on the whole model, a step that predicts tokens at several positions and edits the last one only."""
        wanted = kwargs.get("logits_to_keep")
        if self.suspended or self.positions != "generated" or not isinstance(wanted, int) or wanted < 2:
            return
        if kwargs.get("cache", kwargs.get("past_key_values")) is None:
            return  # without a cache it is no step of a generation: the decoder's check speaks of it
        raise BadValue(
            f"positions='generated' edits the last position of a forward only, and this one is to predict {wanted} "
            "tokens at once, as assisted (speculative) generation does; generate without assistant_model and "
            "prompt_lookup_num_tokens, or pass a mask (batch, seq) of the positions to edit"
        )

    def completed(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002
        """Count a forward, unless it was refused or failed."""
        self.count += not self.suspended


def _ends_in_padding(mask: Any, past: Any, length: int) -> bool:
    if isinstance(mask, Mapping):
        mask = next(iter(mask.values()))
    if not isinstance(mask, Tensor):
        return False
    if mask.ndim == 2:
        return not bool(mask[:, -1].all())
    # with a static cache, generate() has expanded the mask already: the last token must be seen by itself
    place = int(past.get_seq_length()) + length - 1
    if mask.ndim != 4 or place >= mask.shape[-1]:
        return False
    own = mask[:, 0, -1, place]
    return not bool(own.all() if own.dtype == torch.bool else (own == 0).all())
