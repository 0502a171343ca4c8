"""seeded: sampling that can be repeated, without touching the caller's random state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the block from a seed; the CPU's and GPUs' generators are afterwards as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
