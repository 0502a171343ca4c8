"""The processes of an `accelerate launch` or `torchrun`, and splitting work among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")
R = TypeVar("R")


def rank_and_count() -> tuple[int, int]:
    """Return this process's number and how many there are; (0, 1) unless a launcher started several.

    The first call in a launched process joins its group (through accelerate: NCCL with GPUs, gloo without).
    """
    if not dist.is_available():
        return 0, 1
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return 0, 1
        from accelerate import PartialState

        PartialState()
    return dist.get_rank(), dist.get_world_size()


def wait() -> None:
    """Return when every process has come here."""
    if rank_and_count()[1] > 1:
        dist.barrier()


def spread(items: Sequence[T], work: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """Return `work(items)`, each process doing a stretch of the items and all getting every result.

    Stretches are consecutive, since neighbours (answers of one question) share computation.
    """
    rank, n = rank_and_count()
    if n == 1:
        return work(items)
    bounds = [len(items) * i // n for i in range(n + 1)]
    mine = items[bounds[rank] : bounds[rank + 1]]
    parts: list[list[R]] = [[] for _ in range(n)]
    dist.all_gather_object(parts, work(mine) if len(mine) else [])
    return [result for part in parts for result in part]
