"""Eraser: what a linear classifier reads of a concept, taken out of the residual stream while a model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.edits.sited import SiteEdit
from trimtab.models.adding import Affine, changed_residual
from trimtab.protocols import EnterAt


@dataclass(frozen=True, repr=False)
class Eraser(SiteEdit):
    """Changes the stream after each layer by `x -> x - strength * left right (x - centre)`.

    LEACE (Belrose et al. 2023) and affine concept editing (Marshall et al. 2024) are of this form.
    """

    kind: ClassVar[str] = "eraser"
    noun: ClassVar[str] = "eraser"
    described_as: ClassVar[str] = "eraser"
    place: ClassVar[str] = "layer"
    axes: ClassVar[Mapping[str, int]] = {"left": 3, "right": 3, "centre": 2}

    layers: tuple[int, ...]
    """Decoder layers after which it acts."""
    left: Float[Tensor, "k d_model rank"]
    right: Float[Tensor, "k rank d_model"]
    centre: Float[Tensor, "k d_model"]
    """What stays as it is."""
    strength: float | int = 1.0
    """1 erases all of it, 0 nothing."""
    _: KW_ONLY
    name: str = "LEACE"

    @property
    def changes(self) -> dict[int, Affine]:
        """The change at each layer."""
        rows = zip(self.strength * self.left, self.right, self.centre, strict=True)
        return {layer: Affine(*row) for layer, row in zip(self.layers, rows, strict=True)}

    def randomised(self, seed: int) -> Eraser:
        """Return an eraser of as many directions at the same layers and centres, drawn at random: a control."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.linalg.qr(torch.randn(self.left.shape, generator=generator, dtype=torch.float64))[0]
        record = {**self.record, "direction": "random", "seed": seed}
        left, right = drawn.to(self.left), drawn.mT.to(self.right).contiguous()
        return replace(self, left=left, right=right, name="Random erasure", record=record)

    def _acting(self, model: Any) -> EnterAt:
        return partial(changed_residual, model, self.changes)
