"""ResidualShift: contrastive vectors added to the residual stream (Contrastive Activation Addition)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.activations import HeadActivations
from trimtab.edits import Cost, Positions, stopwatch
from trimtab.errors import BadDataset, BadValue, Incompatible, ShapeError
from trimtab.models.fingerprint import require_same_model
from trimtab.models.hooks import add_to_residual
from trimtab.probes import HeadProbes
from trimtab.steer.shifts import MadeFrom
from trimtab.storage import load_result, save_result

KIND = "residual shift"


class _Saved(TypedDict):
    layers: list[int]
    strength: float
    name: str
    seconds: float
    record: MadeFrom


@dataclass(frozen=True)
class ResidualShift:
    """Adds `strength * vector` to the residual stream after each chosen layer (Rimsky et al. 2023, section 3).

    An Edit. `shift.scaled(2)` has twice the strength; negative strengths push the other way.
    """

    layers: tuple[int, ...]
    """Decoder layers after which it acts, best first, so that `first(k)` is the shift on the k best."""
    vectors: Float[Tensor, "k d_model"]
    """Mean difference between positive and negative activations, not normalised."""
    strength: float | int = 1.0
    """The multiplier."""
    name: str = "CAA"
    cost: Cost = field(default_factory=Cost)
    record: dict[str, Any] = field(default_factory=dict)
    """The model's fingerprint under "model", how the shift was fitted, and the sweep that chose its strength."""
    leaves_prompt_unedited: bool = True

    def __post_init__(self) -> None:
        k = len(self.layers)
        if self.vectors.shape[0] != k or k == 0:
            raise ShapeError(f"{k} layers came with vectors {tuple(self.vectors.shape)}; expected one row each")
        if len(set(self.layers)) < k:
            raise BadValue("a layer stands twice in the shift; give each layer once")
        if not bool(self.vectors.isfinite().all()):
            raise BadValue("the shift's vectors must be finite numbers; fit it again")

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def deltas(self) -> dict[int, Float[Tensor, " d_model"]]:
        """What is added after each layer."""
        return dict(zip(self.layers, self.strength * self.vectors, strict=True))

    @property
    def unchanged_layers(self) -> int:
        """The layers below the first one that the shift acts on."""
        return min(self.layers)

    def scaled(self, factor: float | int) -> ResidualShift:
        """Return the shift with its strength multiplied; raises `BadValue` if it is not finite."""
        factor = float(factor)
        if not abs(factor) < float("inf"):
            raise BadValue(f"strength must be a finite number, got {factor}")
        return replace(self, strength=self.strength * factor)

    def first(self, k: int) -> ResidualShift:
        """Return the shift on its k best layers; raises `BadValue` if it has fewer, or k is below 1."""
        if not 1 <= k <= len(self.layers):
            raise BadValue(f"first {k} layers asked for; the shift has {len(self.layers)}")
        return replace(self, layers=self.layers[:k], vectors=self.vectors[:k])

    def renamed(self, name: str) -> ResidualShift:
        """Return the shift under another name for tables."""
        return replace(self, name=name)

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Positions = "generated") -> Iterator[Any]:
        """Yield the same model, steered at `positions` until the block ends.

        Raises:
            Incompatible: the shift was made for another checkpoint or geometry, or did not act.
            BadValue: `"generated"` where it has no meaning (see `add_to_heads`).
        """
        if "model" in self.record:
            require_same_model(self.record["model"], model, f"the shift {self.name!r}")
        if self.strength == 0:
            yield model
            return
        with add_to_residual(model, self.deltas, positions):
            yield model

    def prompt(self, question: str) -> str | None:  # noqa: ARG002
        """Return None: a shift leaves the prompt to the measurement."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return layers, strength and how the shift was made, as plain values."""
        made = {
            k: v for k, v in self.record.items() if k not in ("model", "sweep", "validation_questions", "questions")
        }
        return {"kind": KIND, "name": self.name, "layers": list(self.layers), "strength": self.strength, **made}

    def save(self, path: str | Path) -> None:
        """Write the shift to a folder (safetensors and JSON), atomically.

        Raises:
            Incompatible: the folder holds something else or cannot be written.
        """
        record = {
            "layers": list(self.layers),
            "strength": self.strength,
            "name": self.name,
            "seconds": self.cost.seconds,
            "record": self.record,
        }
        save_result(path, KIND, record, {"vectors": self.vectors})

    @classmethod
    def load(cls, path: str | Path) -> ResidualShift:
        """Return a shift that `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, KIND, fields=_Saved, names=("vectors",))
        size = sum(file.stat().st_size for file in Path(path).iterdir())
        cost = Cost(record["seconds"], tensors["vectors"].numel(), size)
        layers = tuple(record["layers"])
        try:
            return cls(layers, tensors["vectors"], record["strength"], record["name"], cost, record["record"])
        except (BadValue, ShapeError) as cause:
            raise Incompatible(f"{path} holds a damaged shift ({cause}); fit it again") from cause


def fit_residual_shift(acts: HeadActivations, probes: HeadProbes, *, top_k: int = 1) -> ResidualShift:
    """Return a shift of strength 1 on the layers whose residual streams the probes read best.

    A layer's vector is the mean over questions of mean(positive) - mean(negative): over contrast pairs, the mean
    difference of Rimsky et al. (2023, section 3).

    Args:
        acts: training activations captured with `site="residual"`, example layer 1 d_model.
        probes: their accuracies rank the layers. The paper chooses the layer by the effect of steering it, as
            `choose_strength` does among the first k.
        top_k: number of layers.

    Raises:
        BadDataset, BadValue: one class only; a question without both classes; NaN; activations of heads; more
            layers asked for than there are.
        ShapeError: activations and probes of different geometry.
    """
    if acts.record.get("site", "residual") != "residual":
        raise BadValue("a residual shift needs activations captured with site='residual', got site='heads'")
    acts.require_both_labels().require_finite()
    if (probes.layers, tuple(probes.coef.shape)) != (acts.layers, tuple(acts.values.shape[1:])):
        raise ShapeError(
            f"activations {tuple(acts.values.shape[1:])} and probes {tuple(probes.coef.shape)} differ (layer 1 "
            "d_model); make both on the same model with site='residual'"
        )
    if not 1 <= top_k <= len(acts.layers):
        raise BadValue(f"top {top_k} layers asked for; the model has {len(acts.layers)}, choose 1 to that many")
    with stopwatch() as seconds:
        layers = tuple(place.layer for place in probes.top(top_k))
        difference = _mean_over_questions(acts)
        vectors = difference[[acts.layers.index(layer) for layer in layers]].float()
    record: dict[str, Any] = {
        **({"model": acts.record["model"]} if "model" in acts.record else {}),
        "position": acts.record.get("position"),
        "n_statements": len(acts),
        "accuracy": [float(probes.accuracy[acts.layers.index(layer), 0]) for layer in layers],
        "validation_questions": list(probes.validation_questions),
        "questions": sorted({*acts.groups, *probes.validation_questions}),
    }
    return ResidualShift(layers, vectors, 1.0, "CAA", Cost(seconds[0], vectors.numel(), 0), record)


def _mean_over_questions(acts: HeadActivations) -> Float[Tensor, "layer d_model"]:
    numbers = {group: i for i, group in enumerate(dict.fromkeys(acts.groups))}
    index = torch.tensor([numbers[g] for g in acts.groups])
    x = acts.values[:, :, 0].double()
    means = []
    for label in (True, False):
        chosen = acts.labels == label
        count = torch.bincount(index[chosen], minlength=len(numbers))
        if not bool(count.all()):
            group = list(numbers)[int((count == 0).nonzero()[0])]
            raise BadDataset(f"{group[:60]!r} has only {'negative' if label else 'positive'} texts; give both kinds")
        total = torch.zeros(len(numbers), *x.shape[1:], dtype=x.dtype).index_add_(0, index[chosen], x[chosen])
        means.append(total / count[:, None, None])
    return (means[0] - means[1]).mean(0)
