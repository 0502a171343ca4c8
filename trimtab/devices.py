"""The device that is asked for, or the one at hand."""

from __future__ import annotations

import os

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
