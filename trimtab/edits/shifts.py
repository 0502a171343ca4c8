"""HeadShift: vectors added to chosen heads while the model runs (Inference-Time Intervention)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NotRequired

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.activations.labelled import Head
from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.models.adding import add_to_heads
from trimtab.models.anatomy import base_of
from trimtab.models.carriers import through_projections, with_biases
from trimtab.models.heads import HeadSite, find_heads
from trimtab.models.identity import Fingerprint, differing_weight, require_same_model
from trimtab.protocols import Cost, Edit, EnterAt, Positions
from trimtab.storage import load_result, save_result


class MadeFrom(TypedDict):
    """What a shift's `record` holds where trimtab reads it again."""

    model: NotRequired[Fingerprint]
    accuracy: NotRequired[list[float]]
    questions: NotRequired[list[str]]
    validation_questions: NotRequired[list[str]]
    named_heads: NotRequired[list[tuple[int, str, int]]]
    sweep: NotRequired[dict[str, Any]]


class _Saved(TypedDict):
    heads: list[tuple[int, int]]
    strength: float
    name: str
    seconds: float
    record: MadeFrom


@dataclass(frozen=True)
class HeadShift(Edit):
    """Adds `strength * sigma * direction` to each chosen head's activation (Li et al. 2023, eq. 3).

    An Edit. `shift.scaled(8)` has eight times the strength; negative strengths push the other way; the sum of two
    shifts is a shift.
    """

    heads: tuple[Head, ...]
    """Best first, so that `first(k)` is the shift on the k best heads."""
    directions: Float[Tensor, "k d_head"]
    """Unit vectors."""
    sigma: Float[Tensor, " k"]
    """Standard deviation (ddof 0) of the activations along each direction."""
    strength: float | int = 1.0
    """alpha in the paper."""
    name: str = "ITI"
    cost: Cost = field(default_factory=Cost)
    record: dict[str, Any] = field(default_factory=dict)
    """The model's fingerprint under "model", how the shift was fitted, and the sweep that chose its strength."""
    leaves_prompt_unedited: bool = True

    def __post_init__(self) -> None:
        k = len(self.heads)
        if self.directions.shape[0] != k or self.sigma.shape != (k,):
            raise ShapeError(
                f"{k} heads came with directions {tuple(self.directions.shape)} and sigma {tuple(self.sigma.shape)}; "
                "expected one row each"
            )
        if k == 0:
            raise BadValue("a shift needs one head or more, got none")
        if not all(bool(x.isfinite().all()) for x in (self.directions, self.sigma)):
            raise BadValue("the shift's directions and sigma must be finite numbers; fit it again")
        if len(set(self.heads)) < k:
            raise BadValue("a head stands twice in the shift; give each head once (the sum of two shifts adds them up)")

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def deltas(self) -> dict[Head, Float[Tensor, " d_head"]]:
        """What is added to each head."""
        rows = self.strength * self.sigma[:, None] * self.directions
        return dict(zip(self.heads, rows, strict=True))

    @property
    def unchanged_layers(self) -> int:
        """The layers below the first one that has a head in the shift."""
        return min(head.layer for head in self.heads)

    def scaled(self, factor: float | int) -> HeadShift:
        """Return the shift with its strength multiplied; raises `BadValue` if it is not finite."""
        factor = float(factor)
        if not abs(factor) < float("inf"):
            raise BadValue(f"strength must be a finite number, got {factor}")
        return replace(self, strength=self.strength * factor)

    def first(self, k: int) -> HeadShift:
        """Return the shift on its k best heads; raises `BadValue` if it has fewer, or k is below 1."""
        if not 1 <= k <= len(self.heads):
            raise BadValue(f"first {k} heads asked for; the shift has {len(self.heads)}")
        record = dict(self.record)
        if "accuracy" in record:
            record["accuracy"] = record["accuracy"][:k]
        return replace(self, heads=self.heads[:k], directions=self.directions[:k], sigma=self.sigma[:k], record=record)

    def renamed(self, name: str) -> HeadShift:
        """Return the shift under another name for tables."""
        return replace(self, name=name)

    def __add__(self, other: HeadShift) -> HeadShift:
        """Return the shift that adds both; a head in both gets the sum of the two vectors.

        Raises:
            Incompatible: they were made for different models.
        """
        if not isinstance(other, HeadShift):
            return NotImplemented
        model = _common_model(self, other)
        total = dict(self.deltas)
        for head, delta in other.deltas.items():
            total[head] = total[head] + delta if head in total else delta
        vectors = torch.stack(list(total.values()))
        norms = vectors.norm(dim=1)
        unit = torch.nn.functional.normalize(vectors, dim=1)
        cost = Cost(
            self.cost.seconds + other.cost.seconds,
            vectors.numel(),
            self.cost.bytes_on_disk + other.cost.bytes_on_disk,
        )
        record = {
            **({"model": model} if model else {}),
            "sum_of": [self.describe(), other.describe()],
            "questions": sorted({*self.record.get("questions", ()), *other.record.get("questions", ())}),
        }
        return HeadShift(tuple(total), unit, norms, 1.0, f"{self.name} + {other.name}", cost, record)

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
        """Return what enters the shift on this model; the model is checked here and its heads found, once.

        Raises:
            Incompatible: the shift was made for another checkpoint or geometry.
        """
        if "model" in self.record:
            require_same_model(self.record["model"], model, f"the shift {self.name!r}")
        if self.strength == 0:
            return lambda _: contextlib.nullcontext(model)
        return partial(self._placed, model, self._sites(model))

    def _sites(self, model: Any) -> Sequence[HeadSite]:
        named = {layer: (name, n_heads) for layer, name, n_heads in self.record.get("named_heads", ())}
        return find_heads(model, named or None)

    @contextlib.contextmanager
    def _placed(self, model: Any, heads: Sequence[HeadSite], positions: Positions) -> Iterator[Any]:
        with add_to_heads(model, self.deltas, positions, heads=heads):
            yield model

    def prompt(self, question: str) -> str | None:  # noqa: ARG002
        """Return None: a shift leaves the prompt to the measurement."""
        return None

    def constants(self, model: Any) -> dict[str, Float[Tensor, " d_model"]]:
        """Return what the shift adds after each attention output projection: W_O times it, in double precision."""
        moved = {head: delta for head, delta in self.deltas.items() if bool(delta.any())}
        return through_projections(self._sites(base_of(model)), moved)

    def merged(self, model: Any) -> Any:
        """Return a model of a stock class whose biases carry the shift; raises `UnsupportedModel` if none can."""
        return with_biases(base_of(model), self.constants(model))

    def describe(self) -> dict[str, Any]:
        """Return heads, strength and how the shift was made, as plain values."""
        return {
            "kind": "head shift",
            "name": self.name,
            "heads": [list(head) for head in self.heads],
            "strength": self.strength,
            **{
                k: v for k, v in self.record.items() if k not in ("model", "sweep", "validation_questions", "questions")
            },
        }

    def save(self, path: str | Path) -> None:
        """Write the shift to a folder (safetensors and JSON), atomically.

        Raises:
            Incompatible: the folder holds something else or cannot be written.
        """
        record = {
            "heads": [list(h) for h in self.heads],
            "strength": self.strength,
            "name": self.name,
            "seconds": self.cost.seconds,
            "record": self.record,
        }
        save_result(path, "shift", record, {"directions": self.directions, "sigma": self.sigma})

    @classmethod
    def load(cls, path: str | Path) -> HeadShift:
        """Return a shift that `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, "shift", fields=_Saved, names=("directions", "sigma"))
        size = sum(file.stat().st_size for file in Path(path).iterdir())
        try:
            return cls(
                heads=tuple(Head(*h) for h in record["heads"]),
                directions=tensors["directions"],
                sigma=tensors["sigma"],
                strength=record["strength"],
                name=record["name"],
                cost=Cost(record["seconds"], tensors["directions"].numel(), size),
                record=record["record"],
            )
        except (BadValue, ShapeError) as cause:
            raise Incompatible(f"{path} holds a damaged shift ({cause}); fit it again") from cause


def _common_model(one: HeadShift, other: HeadShift) -> dict[str, Any] | None:
    ours, theirs = one.record.get("model"), other.record.get("model")
    if not ours or not theirs:
        return ours or theirs
    if ours["geometry"] != theirs["geometry"] or differing_weight(ours, theirs) is not None:
        raise Incompatible(
            f"cannot add {one.name} and {other.name}: they were made for different models "
            f"({ours['name'] or 'unnamed'} and {theirs['name'] or 'unnamed'}); fit both on the same one"
        )
    return ours
