"""to_lm_eval: an edit that adds constants as a file for lm-evaluation-harness's own `steered` model type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of
from trimtab.protocols import Edit
from trimtab.storage import write_errors, written_file


def to_lm_eval(model: Any, edit: Edit, path: str | Path) -> list[str]:
    """Write the edit at all positions for `lm_eval --model steered`, and return the hook points in the file.

    The harness adds vectors to the outputs of modules that it finds by name below the base model. A shift of heads
    is W_O times the shift there (a projection is linear). Its loader reads `.pt` files only, which are pickles; this
    one holds plain tensors, numbers and texts, so that `torch.load(path, weights_only=True)` reads it too. trimtab
    itself never reads such a file.

    Raises:
        BadValue: the path does not end in .pt, or the edit does anything but add constants, or nothing.
        Incompatible: the edit is another model's, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise BadValue(f"lm-evaluation-harness reads steered files that end in .pt, got {path.name!r}")
    with edit.applied(model, "all"):
        pass  # refuses another model's edit
    vectors = edit.constants(model)
    if not vectors:
        raise BadValue(f"{edit.name!r} has strength {edit.strength}: there is nothing to export")
    prefix = f"{base_of(model).base_model_prefix}."
    hooks: dict[str, dict[str, Any]] = {
        name.removeprefix(prefix): {
            "steering_vector": vector[None].to(torch.float32),
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for name, vector in vectors.items()
    }
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_file(path) as staging:
            torch.save(hooks, staging)
    return list(hooks)
