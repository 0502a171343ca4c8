"""HeadActivations: captured activations of attention heads, as pure tensors with labels, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.activations.labelled import Head, LabelledActivations
from trimtab.errors import BadValue, ShapeError
from trimtab.storage import load_result, save_result

__all__ = ["Head", "HeadActivations"]

KIND = "activations"


class _Saved(TypedDict):
    groups: list[str]
    layers: list[int]
    record: dict[str, Any]


@dataclass(frozen=True, repr=False)
class HeadActivations(LabelledActivations):
    """Activations of every head for a set of labelled statements.

    With `site="heads"` they are taken at the input of the attention output projection; with `site="residual"`
    they are the layers' outputs, held as one head of width d_model.
    """

    values: Float[Tensor, "example layer head d_head"]
    """float32 unless the model runs in float64; on the CPU."""
    labels: Bool[Tensor, " example"]
    """True for true (or positive) statements."""
    groups: tuple[str, ...]
    """The question of each example; splits and intervals go by it."""
    layers: tuple[int, ...]
    """The decoder layer each index along `layer` stands for (hybrid models skip some)."""
    record: dict[str, Any] = field(default_factory=dict)
    """Model fingerprint, position, site, token counts."""

    def __post_init__(self) -> None:
        if self.values.ndim != 4:
            raise ShapeError(f"activations have axes example, layer, head, d_head; got shape {[*self.values.shape]}")
        n, n_layers = self.values.shape[:2]
        if not len(self.labels) == len(self.groups) == n or len(self.layers) != n_layers:
            raise ShapeError(
                f"activations of {n} examples and {n_layers} layers came with {len(self.labels)} labels, "
                f"{len(self.groups)} groups and {len(self.layers)} layer numbers; the counts must agree"
            )

    def __repr__(self) -> str:
        return f"HeadActivations({' x '.join(map(str, self.values.shape))}: example x layer x head x width)"

    @property
    def n_heads(self) -> int:
        """Heads per layer."""
        return self.values.shape[2]

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.values.shape[3]

    def values_of(self, layer: int, heads: slice = slice(None)) -> Float[Tensor, "example head d_head"]:
        """Return some heads' values in one layer; nothing is copied."""
        self._require(layer, heads.start or 0)
        return self.values[:, self.layers.index(layer), heads]

    def layer(self, layer: int) -> HeadActivations:
        """Return one layer's activations; nothing is copied. Raises `BadValue` for a layer that was not captured."""
        return replace(self, values=self.values_of(layer)[:, None], layers=(layer,))

    def _where(self, keep: Bool[Tensor, " example"], groups: tuple[str, ...]) -> HeadActivations:
        return replace(self, values=self.values[keep], labels=self.labels[keep], groups=groups)

    def require_finite(self) -> HeadActivations:
        """Return self; raises `BadValue` naming the layers if some values are NaN or infinite.

        What a layer computes after its heads shows first in the heads of the next one, and then in all that follow.
        """
        if bool(self.values.sum().isfinite()):  # one pass without a copy; finite values may overflow, so look closer
            return self
        finite = torch.stack([self.values[:, i].isfinite().all() for i in range(len(self.layers))])
        if not bool(finite.all()):
            bad = [layer for layer, ok in zip(self.layers, finite.tolist(), strict=True) if not ok]
            exact = self.record.get("site") == "residual" and bad[0] > 0
            raise BadValue(
                f"activations hold NaN or infinite values in layer(s) {', '.join(map(str, bad))}: they come from layer "
                f"{bad[0]}{'' if exact else ' or from right before it'}; load the model in float32 (or bfloat16) and "
                "check its weights"
            )
        return self

    def save(self, path: str | Path) -> None:
        """Write the activations to a folder (safetensors and JSON), atomically.

        Raises:
            Incompatible: the folder holds something else or cannot be written.
        """
        record = {"groups": self.groups, "layers": self.layers, "record": self.record}
        save_result(path, KIND, record, {"values": self.values, "labels": self.labels})

    @classmethod
    def load(cls, path: str | Path) -> HeadActivations:
        """Return activations that `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, KIND, fields=_Saved, names=("values", "labels"))
        groups, layers = tuple(record["groups"]), tuple(record["layers"])
        return cls(tensors["values"], tensors["labels"], groups, layers, record["record"])
