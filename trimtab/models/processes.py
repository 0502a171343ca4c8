"""The processes of an `accelerate launch` or `torchrun`, and splitting work among them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from trimtab.errors import BadValue, TrimtabError

FSDP = "ACCELERATE_USE_FSDP"
"""The environment variable by which `accelerate launch` asks for weights that are split over processes."""
ENGINES = {"DeepSpeed": "ACCELERATE_USE_DEEPSPEED", "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM"}
"""Those by which it asks for engines that would take the training over."""
PRECISION = "ACCELERATE_MIXED_PRECISION"
"""The one by which it asks for autocast."""
COMPILER = "ACCELERATE_DYNAMO_BACKEND"
"""The one by which it asks for `torch.compile`."""
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


def over_processes(items: Sequence[T], work: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """Return `work(items)`, each process doing a stretch of the items and all getting every result.

    Stretches are consecutive, since neighbours (answers of one question) share computation.
    """
    rank, n = rank_and_count()
    if n == 1:
        return work(items)
    bounds = [len(items) * i // n for i in range(n + 1)]
    mine = items[bounds[rank] : bounds[rank + 1]]
    return [result for part in from_all(work(mine) if len(mine) else []) for result in part]


def from_all(mine: T) -> list[T]:
    """Return what each process gives, in their order."""
    n = rank_and_count()[1]
    if n == 1:
        return [mine]
    given: list[Any] = [None] * n
    dist.all_gather_object(given, mine)
    return given


def all_or_none(work: Callable[[], R]) -> R:
    """Return `work()`; a `TrimtabError` in one process is raised in every one, so that none waits for it.

    Raises:
        TrimtabError: of this process, or `BadValue` saying what stopped another one.
    """
    try:
        result = work()
    except TrimtabError as refusal:
        from_all(str(refusal))
        raise
    for rank, said in enumerate(from_all("")):
        if said:
            raise BadValue(f"process {rank} of this launch stopped: {said}")
    return result


def is_split(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor; without loading them, which a process alone has no use for."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """Return the whole of a tensor that is split over the processes, all of which must ask; any other as it is."""
    # an offloaded shard is in the CPU's memory, where NCCL does not reach
    return tensor.to(tensor.device_mesh.device_type).full_tensor() if is_split(tensor) else tensor


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole copies in the CPU's memory; every process must ask."""
    return {name: whole(t.detach()).to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def split_like(tensor: Tensor, place: Any) -> Tensor:
    """Return a whole tensor split over the processes as `place` is, if it is; every process must ask."""
    if not is_split(place):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = place.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, place.placements).to(place.device)


def launch_asks(variable: str) -> bool:
    """Return whether this process's launch asks for what the variable stands for."""
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes", "on")


@contextlib.contextmanager
def plain_launch() -> Iterator[None]:
    """Hide from transformers and accelerate that the launch asks for FSDP or a precision; what they write there goes.

    Under FSDP models are loaded on the first process alone, and the Trainer splits what it is given, weights and parts.
    """
    before = {name: os.environ.pop(name, None) for name in (FSDP, PRECISION)}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
