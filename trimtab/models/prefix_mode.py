"""Which way of sharing prefixes gives a model's plain results: tried out on a few short sequences."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trimtab.edits import TokenMask
from trimtab.errors import TrimtabError
from trimtab.models.heads import base_of
from trimtab.models.prefix_cache import Mode, may_be_packed
from trimtab.models.prefix_pass import Computed, Limits, Pass, Step, kept_logits, kept_places
from trimtab.models.token_tree import TokenTree, TreeRow

WORTHWHILE = 1.15
"""Below this saving in tokens, plain batches of similar length are as fast as anything."""


def chosen_mode(model: Any, tree: TokenTree, n_edits: int, pad: int, mask: TokenMask, computed: Computed) -> Mode:
    """Return the fastest way that gives this model's plain results."""
    plain = n_edits * sum(map(len, tree.paths))
    n_own = int(tree.own.sum())
    if plain < WORTHWHILE * (len(tree.tokens) - n_own + n_edits * n_own):
        return "plain"
    failures = []
    for mode in MODES:
        failure = _failure(model, mode, pad, mask)
        if failure is None:
            computed.mode = mode
            return mode
        failures.append(failure)
    note = (
        f"{type(base_of(model)).__name__}: prefixes are not shared, every sequence is computed whole "
        f"({'; '.join(failures)})"
    )
    computed.notes.append(note)
    warnings.warn(note, stacklevel=2)
    return "plain"


MODES: tuple[Mode, ...] = ("packed", "padded")
TRIED = (
    TreeRow((9, 4, 11, 7, 5, 3, 8, 6, 10), 7, 7),
    TreeRow((9, 4, 11, 7, 5, 3, 8, 12, 4, 9), 7, 7),
    TreeRow((9, 4, 11, 7, 6, 3, 4, 10, 5), 6, 6),
)


def _failure(model: Any, mode: Mode, pad: int, mask: TokenMask) -> str | None:
    """Return why a mode does not give what plain forwards over single rows give, or None if it does."""
    if mode == "packed" and not may_be_packed(model):
        return "packed: layers of a kind that a mask over ancestors does not describe"
    expected = _tried(model, "plain", pad, mask, max_rows=1)
    try:
        found = _tried(model, mode, pad, mask, max_rows=3)
    except (torch.OutOfMemoryError, TrimtabError):
        raise
    except Exception as cause:  # other people's models raise what they like
        return f"{mode}: {type(cause).__name__}"
    far = float((found - expected).abs().max() / expected.std().clamp(min=1e-12))
    quantized = getattr(base_of(model).config, "quantization_config", None) is not None
    exact = base_of(model).dtype in (torch.float32, torch.float64) and not quantized
    return None if far <= (1e-3 if exact else 0.1) else f"{mode}: other results by {far:.2g} standard deviations"


@torch.inference_mode()
def _tried(model: Any, mode: Mode, pad: int, mask: TokenMask, max_rows: int) -> Tensor:
    found: dict[int, Tensor] = {}

    def read(index: int, step: Step, forward: Callable[[], Any]) -> None:  # noqa: ARG001
        values = kept_logits(forward().logits, step)[kept_places(step)].double().cpu()
        found.update(zip(step.rows, values.split(step.counts), strict=True))

    n_known = base_of(model).get_input_embeddings().weight.shape[0]
    rows = [TreeRow([t % n_known for t in row.ids], row.split, row.wanted) for row in TRIED]
    limits = Limits.of(model, None, max_rows)
    enter = {0: lambda: contextlib.nullcontext(model)}
    Pass(model, TokenTree.grown(rows), rows, mode, pad, limits, mask, Computed(), read).run(enter, "")
    return torch.cat([found[i] for i in range(len(rows))])
