"""Random numbers that can be repeated, without touching the caller's random state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def torch_seeded(seed: int | None, model: Any = None) -> Iterator[None]:
    """Run the block from a seed, if one is given; torch's generators are afterwards as they were.

    Those of the CPU and of the GPUs that `model` is on, or of all GPUs.
    """
    on_gpu = {p.device.index or 0 for p in (model.parameters() if model is not None else ()) if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=None if model is None else sorted(on_gpu)):
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def random_state_kept(model: Any) -> Iterator[None]:
    """Leave the generators of torch, numpy and Python as they are: the Trainer seeds them all."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch_seeded(None, model):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
