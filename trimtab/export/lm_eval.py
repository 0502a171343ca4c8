"""to_lm_eval: a shift as a file for lm-evaluation-harness's own `steered` model type."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from trimtab.errors import BadValue, Incompatible
from trimtab.models.heads import base_of
from trimtab.protocols import Edit


def to_lm_eval(model: Any, shift: Edit, path: str | Path) -> list[str]:
    """Write the shift at all positions for `lm_eval --model steered`, and return the hook points in the file.

    The harness adds vectors to the outputs of modules that it finds by name below the base model. A shift of heads
    is W_O times the shift there (a projection is linear). Its loader reads `.pt` files only, which are pickles; this
    one holds plain tensors, numbers and texts, so that `torch.load(path, weights_only=True)` reads it too. trimtab
    itself never reads such a file.

    Raises:
        BadValue: the path does not end in .pt, or the shift changes nothing.
        Incompatible: the shift is another model's, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise BadValue(f"lm-evaluation-harness reads steered files that end in .pt, got {path.name!r}")
    vectors = shift.constants(model)
    if not vectors:
        raise BadValue(f"the shift {shift.name!r} has strength {shift.strength}: there is nothing to export")
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
    _write(hooks, path)
    return list(hooks)


def _write(value: dict[str, Any], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as cause:
        raise Incompatible(f"cannot write {path} ({cause.strerror}); name another place") from cause
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(value, file)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except (OSError, RuntimeError) as cause:
        raise Incompatible(f"cannot write {path} ({cause}); make room or name another disk") from cause
    finally:
        Path(name).unlink(missing_ok=True)
