"""What a run's processes stand on, and how many of them share it: times of a crowded device say little."""

from __future__ import annotations

import platform
from typing import Any

from trimtab.models.anatomy import input_device


def hardware(model: Any) -> str:
    """Return the name of what the model runs on, for records."""
    import torch

    device = input_device(model)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads ({platform.machine()})"


def place(model: Any) -> str:
    """Return which device of which machine this is: processes of one place take each other's time."""
    import torch

    device = input_device(model)
    # a GPU's number is its place among those that CUDA_VISIBLE_DEVICES shows to this process
    which = torch.cuda.get_device_properties(device).uuid if device.type == "cuda" else device
    return f"{platform.node()} {which}"
