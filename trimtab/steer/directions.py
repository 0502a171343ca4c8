"""MassMean: the direction of every head, small enough to keep beside each fit for comparing it with another."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.activations.captured import HeadActivations
from trimtab.models.identity import Fingerprint
from trimtab.plain_values import hash_of
from trimtab.storage import load_result, save_result

KIND = "directions"


class _Saved(TypedDict):
    layers: list[int]
    statements: str
    model: Fingerprint | None


@dataclass(frozen=True, repr=False)
class MassMean:
    """Mean of true minus mean of false activations, of every head (or layer)."""

    values: Float[Tensor, "layer head d_head"]
    layers: tuple[int, ...]
    statements: str
    """Hash of the statements' questions and labels, in order."""
    model: dict[str, Any] | None = field(default=None)
    """Fingerprint of the model."""

    def __repr__(self) -> str:
        return f"MassMean({' x '.join(map(str, self.values.shape))}: layer x head x width)"

    @classmethod
    def of(cls, acts: HeadActivations) -> MassMean:
        """Return the differences of activations' class means, in float64.

        Raises:
            BadDataset, BadValue: one class only; NaN.
        """
        acts.require_both_labels().require_finite()
        true, false = (acts.values[acts.labels == label].double().mean(0) for label in (True, False))
        shown = "\n".join(acts.groups).encode() + bytes(acts.labels.to(torch.uint8).tolist())
        return cls(true - false, acts.layers, hash_of(shown), acts.record.get("model"))

    def save(self, path: str | Path) -> None:
        """Write the differences to a folder (safetensors and JSON), atomically, in float32.

        Raises:
            Incompatible: the folder holds something else or cannot be written.
        """
        record = {"layers": self.layers, "statements": self.statements, "model": self.model}
        save_result(path, KIND, record, {"values": self.values.float()})

    @classmethod
    def load(cls, path: str | Path) -> MassMean:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, KIND, fields=_Saved, names=("values",))
        return cls(tensors["values"].double(), tuple(record["layers"]), record["statements"], record["model"])
