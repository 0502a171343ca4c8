"""TailForward: what follows some place in texts, run again and again behind what stands before it, computed once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from trimtab.models.calling import cache_behind, cache_name, logits_limit, takes_positions
from trimtab.models.tokens import Batch


class TailForward:
    """Forwards over the tails of rows, whose heads are kept as the model's cache; for one state of its weights."""

    def __init__(self, model: Any, heads: Batch, tails: Batch) -> None:
        """Run the heads.

        Args:
            heads: what stands before, padded on the left; may have no token at all.
            tails: what follows in each row, padded on the right.
        """
        self.model, self.tails, self.past = model, tails, None
        self.mask = torch.cat([heads.attention_mask, tails.attention_mask], 1)
        n = heads.input_ids.shape[1]
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.positions = positions[:, n:] if takes_positions(model) else None
        if n:
            with torch.no_grad():
                self.past = cache_behind(model, heads.input_ids, heads.attention_mask)

    def __call__(self, *, times: int = 1, last: bool = False) -> Tensor:
        """Return the logits at the tails' tokens (batch * times, seq, vocab), each row `times` times running.

        Args:
            last: whether those of the last token alone are wanted (seq 1).
        """

        def repeated(rows: Tensor) -> Tensor:
            return rows.repeat_interleave(times, 0)

        given: dict[str, Any] = {"input_ids": repeated(self.tails.input_ids), "attention_mask": repeated(self.mask)}
        if self.positions is not None:
            given["position_ids"] = repeated(self.positions)
        if self.past is not None:
            past = copy.deepcopy(self.past)  # a forward writes into the cache that it is given
            past.batch_repeat_interleave(times)
            given[cache_name(self.model)] = past
        given |= logits_limit(self.model, 1) if last else {}
        logits = self.model(**given, use_cache=self.past is not None).logits
        return logits[:, -1:] if last else logits
