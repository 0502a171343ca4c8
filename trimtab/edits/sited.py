"""SiteEdit: what edits at some heads or layers of a running model have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from trimtab.edits.vector_record import UNDESCRIBED, load_vectors, plain_sites, ranks_of, save_vectors
from trimtab.errors import BadValue, ShapeError
from trimtab.models.identity import require_same_model
from trimtab.protocols import Cost, Edit, EnterAt, Positions

Own = TypeVar("Own", bound="SiteEdit")


@dataclass(frozen=True, repr=False)
class SiteEdit(Edit):
    """Acts at each of its sites, by a row of each of its tensors."""

    noun: ClassVar[str]
    """What messages call it."""
    place: ClassVar[str]
    """What a site is, `"head"` or `"layer"`; the field that lists the sites is its plural."""
    axes: ClassVar[Mapping[str, int]]
    """Tensor -> number of axes; each has one row for every site."""
    plain: ClassVar[Sequence[str]] = ()
    """Further fields, each a tuple of plain values, that are saved."""
    described_as: ClassVar[str]
    leaves_prompt_unedited: ClassVar[bool] = True

    _: KW_ONLY
    name: str = ""
    cost: Cost = field(default_factory=Cost)
    record: Mapping[str, Any] = field(default_factory=dict)
    """How it was made; `MadeFrom` lists what is read again."""

    def __post_init__(self) -> None:
        k, tensors = len(self.sites), self.tensors
        if any(t.ndim != n or len(t) != k for t, n in zip(tensors.values(), self.axes.values(), strict=True)):
            shapes = " and ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
            raise ShapeError(f"{k} {self.place}s came with {shapes}; expected one row each")
        if k == 0:
            raise BadValue(f"the {self.noun} needs one {self.place} or more, got none")
        if not all(bool(t.isfinite().all()) for t in tensors.values()):
            raise BadValue(f"the {self.noun}'s {' and '.join(tensors)} must be finite numbers; fit it again")
        if len(set(self.sites)) < k:
            raise BadValue(f"a {self.place} stands twice in the {self.noun}; give it once")

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} {self.place}(s), strength {self.strength:g})"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {name: getattr(self, name) for name in self.axes}

    @property
    def sites(self) -> tuple[Any, ...]:
        """Where it acts, best first."""
        return getattr(self, f"{self.place}s")

    @property
    def n_sites(self) -> int:
        """How many heads or layers it acts on."""
        return len(self.sites)

    @property
    def settings(self) -> dict[str, Any]:
        """Its further fields, as plain values."""
        return {name: list(getattr(self, name)) for name in self.plain}

    @property
    def fitted_on(self) -> Sequence[str]:
        """Keys of the questions that it was made from, those that ranked its sites included."""
        return self.record.get("questions", ())

    @property
    def validated_on(self) -> Sequence[str]:
        """Keys of the questions that ranked its sites."""
        return self.record.get("validation_questions", ())

    def scaled(self: Own, factor: float | int) -> Own:
        """Return it with its strength multiplied; raises `BadValue` if it is not finite."""
        factor = float(factor)
        if not abs(factor) < float("inf"):
            raise BadValue(f"strength must be a finite number, got {factor}")
        return replace(self, strength=self.strength * factor)  # pyright: ignore[reportCallIssue]

    def first(self: Own, k: int) -> Own:
        """Return it on its k best sites; raises `BadValue` if it has fewer, or k is below 1."""
        if 1 <= k <= len(self):
            return self.on(self.sites[:k])
        raise BadValue(f"first {k} {self.place}s asked for; the {self.noun} has {len(self)}")

    def on(self: Own, sites: Sequence[Any]) -> Own:
        """Return it on these of its sites, in this order; raises `BadValue` for one that it does not have."""
        ranks, record = ranks_of(self, sites)
        rows = {name: tensor[ranks] for name, tensor in self.tensors.items()}
        return replace(self, record=record, **rows, **{f"{self.place}s": tuple(sites)})

    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:
        """Yield the same model, edited at `positions` until the block ends.

        Raises:
            Incompatible: it was made for another checkpoint or geometry, or did not act.
            BadValue: `"generated"` where it has no meaning (see `add_to_heads`).
        """
        return self.prepared(model)(positions)

    def prepared(self, model: Any) -> EnterAt:
        """Return what enters it on a model again and again: it is checked here, its sites found once."""
        if "model" in self.record:
            require_same_model(self.record["model"], model, f"the {self.noun} {self.name!r}")
        if self.strength == 0:
            return lambda positions: nullcontext(model)  # noqa: ARG005
        acting = self._acting(model)

        @contextmanager
        def enter(positions: Positions) -> Iterator[Any]:
            with acting(positions):
                yield model

        return enter

    @abstractmethod
    def _acting(self, model: Any) -> Callable[[Positions], AbstractContextManager[None]]:
        """Return what acts at given positions."""

    def describe(self) -> dict[str, Any]:
        """Return sites, strength and how it was made, as plain values."""
        made = {k: v for k, v in self.record.items() if k not in UNDESCRIBED}
        named = {"kind": self.described_as, "name": self.name}
        return {**named, **plain_sites(self), **self.settings, "strength": self.strength, **made}

    def save(self, path: str | Path) -> None:
        """Write it to a folder; raises `Incompatible` if it holds something else or cannot be written."""
        save_vectors(self, path)

    @classmethod
    def load(cls: type[Own], path: str | Path) -> Own:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        return load_vectors(cls, path)
