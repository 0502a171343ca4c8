"""LabelledActivations: what activations in memory and on disk have in common, for all that is fitted on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.errors import BadDataset, BadValue, ShapeError
from trimtab.intervals import number_held_out, seeded

if TYPE_CHECKING:
    from trimtab.activations.captured import HeadActivations


Acts = TypeVar("Acts", bound="LabelledActivations")


class Head(NamedTuple):
    """One attention head: decoder layer and head, both counted from 0."""

    layer: int
    head: int


class HeadExamples(NamedTuple):
    """One head's examples, ready for any scikit-learn estimator and its group-wise splitters."""

    X: Float[np.ndarray, "example d_head"]
    y: Bool[np.ndarray, " example"]
    groups: np.ndarray


class LabelledActivations(ABC):
    """Activations of every head for labelled statements, read one layer at a time."""

    labels: Bool[Tensor, " example"]
    """True for true (or positive) statements."""
    groups: tuple[str, ...]
    """The question of each example; splits and intervals go by it."""
    layers: tuple[int, ...]
    """The decoder layers that were captured (hybrid models skip some)."""
    record: dict[str, Any]
    """Model fingerprint, position, site."""

    @property
    @abstractmethod
    def n_heads(self) -> int:
        """Heads per layer."""

    @property
    @abstractmethod
    def d_head(self) -> int:
        """Width of a head."""

    @abstractmethod
    def values_of(self, layer: int, heads: slice = slice(None)) -> Float[Tensor, "example head d_head"]:
        """Return some heads' values in one layer; raises `BadValue` for a layer that was not captured."""

    @abstractmethod
    def layer(self, layer: int) -> HeadActivations:
        """Return one layer's activations, in memory; raises `BadValue` for a layer that was not captured."""

    @abstractmethod
    def _where(self: Acts, keep: Bool[Tensor, " example"], groups: tuple[str, ...]) -> Acts:
        """Return the examples where `keep` is true, which have these groups."""

    @abstractmethod
    def require_finite(self: Acts) -> Acts:
        """Return self; raises `BadValue` naming the layers if some values are NaN or infinite."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def geometry(self) -> tuple[int, int, int]:
        """Layers, heads per layer, width of a head."""
        return len(self.layers), self.n_heads, self.d_head

    def head(self, layer: int, head: int) -> HeadExamples:
        """Return `(X, y, groups)` of one head, as numpy arrays; raises `BadValue` for a head that is not there."""
        self._require(layer, head)
        x = self.values_of(layer, slice(head, head + 1))[:, 0]
        return HeadExamples(x.numpy(), self.labels.numpy(), np.asarray(self.groups))

    def select(self: Acts, keep: Bool[Tensor, " example"]) -> Acts:
        """Return only the examples where `keep` is true; raises `ShapeError` for a mask of another length."""
        if len(keep) != len(self):
            raise ShapeError(f"the mask has {len(keep)} entries for {len(self)} examples; give one for each")
        return self._where(keep, tuple(g for g, k in zip(self.groups, keep.tolist(), strict=True) if k))

    def split(self: Acts, *, test: float = 0.2, seed: int = 0) -> tuple[Acts, Acts]:
        """Return (rest, test) such that no question stands on both sides; `test` is a share of the questions.

        Raises:
            BadDataset: one side would be empty.
            BadValue: a seed that is no whole number of 0 or more.
        """
        questions = sorted(set(self.groups))
        n_test = number_held_out(test, len(questions), "")
        chosen = {questions[i] for i in seeded(seed).permutation(len(questions))[:n_test]}
        held = torch.tensor([g in chosen for g in self.groups])
        return self.select(~held), self.select(held)

    def require_both_labels(self: Acts) -> Acts:
        """Return self; raises `BadDataset` if there are no examples or all carry the same label."""
        if len(self) == 0:
            raise BadDataset("no examples: directions and probes need true and false statements")
        if bool(self.labels.all()) or not bool(self.labels.any()):
            only = "true" if bool(self.labels[0]) else "false"
            raise BadDataset(
                f"all {len(self)} statements are {only}: give more of the other kind, so that every part has some"
            )
        return self

    def _require(self, layer: int, head: int = 0) -> None:
        if layer not in self.layers or not 0 <= head < self.n_heads:
            raise BadValue(
                f"no head {head} in layer {layer}: these activations hold layers {', '.join(map(str, self.layers))} "
                f"with {self.n_heads} heads each, counted from 0"
            )
