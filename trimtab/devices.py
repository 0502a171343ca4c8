"""The device that is asked for, or the one at hand, the memory that is free on it, and threads on the CPU."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from trimtab.errors import BadValue, OutOfMemory


def available_device(device: str | int | torch.device | None) -> torch.device:
    """Return the device asked for, or the GPU if there is one; raises `BadValue` if it is not there."""
    if device is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # each process of a launch has its own GPU
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()  # read back, since "meta" holds nothing
    except (RuntimeError, AssertionError) as cause:
        raise BadValue(f"device {str(device)!r} is not available here; try 'cpu' or leave it out") from cause
    return device


def free_bytes(device: torch.device) -> int:
    """Return the bytes free on a device."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return free_on_cpu()


def free_on_cpu(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes of the CPU's memory that this process may still take: a container's or a job's limit counts.

    Limits are those of the process's control groups (Linux, both versions; a limit holds for all groups inside).
    """
    free = psutil.virtual_memory().available
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, kinds, place = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        # in a container the path may be the host's, of which only the root is seen
        for group in (Path(place), *Path(place).parents):
            free = min(free, _free_in(groups / kinds / group.relative_to("/"), *names))
    return free


def _free_in(group: Path, limit: str, taken: str) -> int:
    """Return what a control group may still take; cached files give way, so they count as free."""
    try:
        most, now = ((group / name).read_text().strip() for name in (limit, taken))
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # the group is not seen from here, or has no limit
        return sys.maxsize
    if most == "max":
        return sys.maxsize
    cached = sum(int(held.get(f"total_{name}", held.get(name, 0))) for name in ("inactive_file", "active_file"))
    return max(0, int(most) - int(now) + cached)


def ran_out_of_memory(mistake: BaseException) -> bool:
    """Return whether this says that there was no memory for it, in whatever words torch or a library below it has."""
    if isinstance(mistake, torch.OutOfMemoryError | MemoryError | OutOfMemory):
        return True
    # torch.AcceleratorError where CUDA itself is asked (a stream, an event); cuBLAS and cuDNN; the CPU's allocator
    said = ("error: out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")
    return isinstance(mistake, RuntimeError) and any(words in str(mistake) for words in said)


def is_crowded(device: torch.device) -> bool:
    """Return whether other processes hold much of a GPU's memory; False for a CPU, which does not tell.

    More than a tenth of it, and than what a process's own context and a screen take.
    """
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device) > max(total / 10, 2e9)


def in_bytes(size: int) -> str:
    """Return a number of bytes for a sentence."""
    return f"{size / 1e9:.1f} GB" if size > 1e8 else f"{size / 1e6:.1f} MB"


@contextlib.contextmanager
def one_thread(library: str = "torch") -> Iterator[None]:
    """Let BLAS and OpenMP use one thread in the block, or in a function that it decorates.

    A regression on some thousand short rows, or their means, is many small sums: on a machine of 64 cores its threads
    wait for each other ten to a hundred times longer than one of them computes.

    Args:
        library: what computes there, which is imported beforehand, since only pools that are loaded can be limited.
    """
    with _thread_pools(library).limit(limits=1):
        yield


@functools.cache
def _thread_pools(library: str) -> Any:
    """Return the pools of threads that are loaded; to look for them takes longer than a small regression does."""
    from threadpoolctl import ThreadpoolController

    importlib.import_module(library)
    return ThreadpoolController()
