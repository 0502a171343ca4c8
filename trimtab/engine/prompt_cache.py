"""The cache of a batch of prompts, from which generation goes on; what all of them begin with is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from trimtab.engine.forwards import trial_logits
from trimtab.engine.sharing import chosen_mode, worthwhile
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.engine.tree_forward import TreeForward, as_cache
from trimtab.models.calling import cache_behind, inference
from trimtab.models.tokens import Batch, n_common
from trimtab.protocols import TokenMask


def prompt_cache(model: Any, batch: Batch, ids: Sequence[Sequence[int]], pad: int, *, several: bool) -> Any:
    """Return the cache of the prompts without their last tokens, for a left-padded batch of the given sequences.

    None where a prompt has no other token, and where computing it apart saves nothing: the prompts do not begin alike,
    and not `several` continuations start from it.
    """
    rows = [list(ids[i][:-1]) for i in batch.indices]
    if not all(rows):
        return None
    with inference(model):
        shared = _from_common_beginning(model, rows, pad)
        if shared is not None or not several:
            return shared
        return cache_behind(model, batch.input_ids[:, :-1], batch.attention_mask[:, :-1])


def _from_common_beginning(model: Any, ids: Sequence[list[int]], pad: int) -> Any:
    """Return the cache of prompts whose common beginning is computed once; None where that is not worth its while."""
    n_shared, n_all = n_common(min(ids), max(ids)), sum(map(len, ids))
    if not worthwhile(model, n_all, n_all - n_shared * (len(ids) - 1)):
        return None
    tree = TokenTree.of([TreeRow(row, len(row), len(row)) for row in ids], pad)
    mode, _ = chosen_mode(model, tree, 1, partial(trial_logits, model, pad, TokenMask()))
    if mode == "plain":
        return None
    forward = TreeForward(model, tree, mode)

    def longer(rows: Sequence[np.ndarray], past: Any) -> Any:
        return forward(model, forward.padded(rows), past, keep=1, remember=True)[1]

    past = longer([tree.paths[0][:n_shared]], None)
    rest = [path[n_shared:] for path in tree.paths]
    past = longer(rest, past) if any(map(len, rest)) else past.expanded(len(ids))
    return as_cache(past.gathered(torch.arange(len(ids), device=forward.device)))
