"""Milliseconds per generated token."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from trimtab.models.anatomy import base_of, input_device
from trimtab.models.calling import inference


def ms_per_token(model: Any, *, n_tokens: int = 8, repeats: int = 3) -> float:
    """Return the median time of one greedy decoding step with a cache, in milliseconds (batch 1, no stopping)."""
    base = base_of(model)
    device = input_device(base)
    ids = torch.ones(1, 8, dtype=torch.long, device=device)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": n_tokens, "min_new_tokens": n_tokens}
    times = []
    with inference(model):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(1000 * (time.perf_counter() - start) / n_tokens)
    return statistics.median(times[1:])
