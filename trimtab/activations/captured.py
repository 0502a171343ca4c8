"""Captured activations of attention heads, as pure tensors with labels, and their place on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.errors import BadDataset, BadValue, ShapeError
from trimtab.intervals import number_held_out, seeded
from trimtab.storage import load_result, save_result


class Head(NamedTuple):
    """One attention head: decoder layer and head, both counted from 0."""

    layer: int
    head: int


class HeadExamples(NamedTuple):
    """One head's examples, ready for any scikit-learn estimator and its group-wise splitters."""

    X: Float[np.ndarray, "example d_head"]
    y: Bool[np.ndarray, " example"]
    groups: np.ndarray


class _Saved(TypedDict):
    groups: list[str]
    layers: list[int]
    record: dict[str, Any]


@dataclass(frozen=True)
class HeadActivations:
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

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_heads(self) -> int:
        """Heads per layer."""
        return self.values.shape[2]

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.values.shape[3]

    @property
    def geometry(self) -> tuple[int, int, int]:
        """Layers, heads per layer, width of a head."""
        return len(self.layers), self.n_heads, self.d_head

    def layer(self, layer: int) -> HeadActivations:
        """Return one layer's activations; nothing is copied. Raises `BadValue` for a layer that was not captured."""
        require_head(layer, 0, self.layers, self.n_heads)
        i = self.layers.index(layer)
        return replace(self, values=self.values[:, i : i + 1], layers=(layer,))

    def head(self, layer: int, head: int) -> HeadExamples:
        """Return `(X, y, groups)` of one head, as numpy arrays; raises `BadValue` for a head that is not there."""
        require_head(layer, head, self.layers, self.n_heads)
        x = self.values[:, self.layers.index(layer), head]
        return HeadExamples(x.numpy(), self.labels.numpy(), np.asarray(self.groups))

    def select(self, keep: Bool[Tensor, " example"]) -> HeadActivations:
        """Return only the examples where `keep` is true; raises `ShapeError` for a mask of another length."""
        if len(keep) != len(self):
            raise ShapeError(f"the mask has {len(keep)} entries for {len(self)} examples; give one for each")
        groups = tuple(g for g, k in zip(self.groups, keep.tolist(), strict=True) if k)
        return replace(self, values=self.values[keep], labels=self.labels[keep], groups=groups)

    def split(self, *, test: float = 0.2, seed: int = 0) -> tuple[HeadActivations, HeadActivations]:
        """Return (rest, test) such that no question stands on both sides; `test` is a share of the questions.

        Raises:
            BadDataset: one side would be empty.
            BadValue: a seed that is no whole number of 0 or more.
        """
        mask = held_out(self.groups, test, seed)
        return self.select(~mask), self.select(mask)

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

    def require_both_labels(self) -> HeadActivations:
        """Return self; raises `BadDataset` if there are no examples or all carry the same label."""
        require_both_labels(self.labels)
        return self

    def save(self, path: str | Path) -> None:
        """Write the activations to a folder (safetensors and JSON), atomically.

        Raises:
            Incompatible: the folder holds something else or cannot be written.
        """
        record = {"groups": self.groups, "layers": self.layers, "record": self.record}
        save_result(path, "activations", record, {"values": self.values, "labels": self.labels})

    @classmethod
    def load(cls, path: str | Path) -> HeadActivations:
        """Return activations that `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, "activations", fields=_Saved, names=("values", "labels"))
        return cls(
            values=tensors["values"],
            labels=tensors["labels"],
            groups=tuple(record["groups"]),
            layers=tuple(record["layers"]),
            record=record["record"],
        )


def require_head(layer: int, head: int, layers: tuple[int, ...], n_heads: int) -> None:
    """Raise `BadValue` for a layer or head that is not among these."""
    if layer not in layers or not 0 <= head < n_heads:
        raise BadValue(
            f"no head {head} in layer {layer}: these activations hold layers {', '.join(map(str, layers))} "
            f"with {n_heads} heads each, counted from 0"
        )


def held_out(groups: Sequence[str], test: float, seed: int) -> Bool[Tensor, " example"]:
    """Return the mask of a share of the questions, drawn by `seed`; raises `BadDataset` if one side were empty."""
    questions = sorted(set(groups))
    n_test = number_held_out(test, len(questions), "")
    order = seeded(seed).permutation(len(questions))
    held = {questions[i] for i in order[:n_test]}
    return torch.tensor([g in held for g in groups])


def require_both_labels(labels: Bool[Tensor, " example"]) -> None:
    """Raise `BadDataset` if there are no examples or all carry the same label."""
    if len(labels) == 0:
        raise BadDataset("no examples: directions and probes need true and false statements")
    if bool(labels.all()) or not bool(labels.any()):
        only = "true" if bool(labels[0]) else "false"
        raise BadDataset(f"all {len(labels)} statements are {only}: add statements of the other kind")
