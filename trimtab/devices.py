"""The device that is asked for, or the one at hand, and the memory that is free on it."""

from __future__ import annotations

import os

import psutil
import torch

from trimtab.errors import BadValue


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
    return psutil.virtual_memory().available


def in_bytes(size: int) -> str:
    """Return a number of bytes for a sentence."""
    return f"{size / 1e9:.1f} GB" if size > 1e8 else f"{size / 1e6:.1f} MB"
