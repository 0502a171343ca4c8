"""Reader: how far a generated answer reads like the positive texts, to the unedited model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.activations.captured import HeadActivations
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.questions import Statement
from trimtab.engine.capture import capture_heads
from trimtab.steer.screen import item_differences


@dataclass(frozen=True)
class Reader:
    """A direction of one layer's residual stream, averaged over an answer, on which held-out negative texts are at 0
    and positive ones at 1."""

    layer: int
    direction: Float[Tensor, " d_model"]
    ends: tuple[float, float]
    """Where the means of held-out negative and positive texts lie."""
    separation: float
    """d' of the held-out texts."""

    @classmethod
    def fit(cls, model: Any, tokenizer: Any, train: ItemSet[Any], held: ItemSet[Any]) -> Reader:
        """Return the reader of the layer that tells the held-out texts apart best."""
        acts, others = (_read(model, tokenizer, part.statements()) for part in (train, held))
        directions = item_differences(acts).mean(0)[:, 0]
        along = torch.einsum("nld,ld->nl", others.values[:, :, 0].double(), directions)
        true, false = along[others.labels], along[~others.labels]
        spread = ((true.var(0, correction=0) + false.var(0, correction=0)) / 2).sqrt().clamp_min(1e-12)
        separation = (true.mean(0) - false.mean(0)) / spread
        best = int(separation.argmax())
        ends = float(false[:, best].mean()), float(true[:, best].mean())
        return cls(acts.layers[best], directions[best], ends, float(separation[best]))

    def read(self, model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Return for each answer where it lies: about 0 as the negative texts, about 1 as the positive ones."""
        said = [(i, a) for i, a in enumerate(answers) if a.strip()]
        statements = [Statement(prompts[i], a, True, str(i)) for i, a in said]
        found = [0.0] * len(answers)  # an empty answer shows nothing
        if statements:
            x = _read(model, tokenizer, statements).values_of(self.layer)[:, 0].double() @ self.direction
            for (i, _), value in zip(said, x.tolist(), strict=True):
                found[i] = (value - self.ends[0]) / (self.ends[1] - self.ends[0])
        return found


def _read(model: Any, tokenizer: Any, statements: Sequence[Statement]) -> HeadActivations:
    return capture_heads(model, tokenizer, statements, position="mean_answer", site="residual")
