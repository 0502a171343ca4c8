"""ResidualShift: contrastive vectors added to the residual stream (Contrastive Activation Addition)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.edits.shifts import MadeFrom
from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.models.adding import add_to_residual
from trimtab.models.anatomy import base_of, decoder_layers
from trimtab.models.carriers import with_biases
from trimtab.models.identity import require_same_model
from trimtab.protocols import Cost, Edit, EnterAt, Positions
from trimtab.storage import load_result, save_result

KIND = "residual shift"


class _Saved(TypedDict):
    layers: list[int]
    strength: float
    name: str
    seconds: float
    record: MadeFrom


@dataclass(frozen=True)
class ResidualShift(Edit):
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
        with self.prepared(model)(positions):
            yield model

    def prepared(self, model: Any) -> EnterAt:
        """Return what enters the shift on this model, which is checked here, once.

        Raises:
            Incompatible: the shift was made for another checkpoint or geometry.
        """
        if "model" in self.record:
            require_same_model(self.record["model"], model, f"the shift {self.name!r}")
        return partial(self._placed, model)

    @contextlib.contextmanager
    def _placed(self, model: Any, positions: Positions) -> Iterator[Any]:
        if self.strength == 0:
            yield model
            return
        with add_to_residual(model, self.deltas, positions):
            yield model

    def prompt(self, question: str) -> str | None:  # noqa: ARG002
        """Return None: a shift leaves the prompt to the measurement."""
        return None

    def constants(self, model: Any) -> dict[str, Float[Tensor, " d_model"]]:
        """Return what the shift adds to the outputs of decoder layers, in double precision."""
        names = {module: name for name, module in base_of(model).named_modules()}
        layers = decoder_layers(model)
        return {names[layers[i]]: delta.double() for i, delta in self.deltas.items() if bool(delta.any())}

    def merged(self, model: Any) -> Any:
        """Return a model of a stock class whose biases carry the shift; raises `UnsupportedModel` if none can."""
        return with_biases(base_of(model), self.constants(model))

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
