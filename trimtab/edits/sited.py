"""Edits of a running model: HookedEdit acts through hooks, SiteEdit at each of some heads or layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NotRequired, TypeVar

from torch import Tensor
from typing_extensions import TypedDict

from trimtab.activations.labelled import Head
from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.models.identity import Fingerprint, require_same_model
from trimtab.protocols import Cost, Edit, EnterAt, Positions
from trimtab.storage import load_result, save_result

Own = TypeVar("Own", bound="SiteEdit")
UNDESCRIBED = ("model", "sweep", "validation_questions", "questions")
"""What of the record is too long for a description."""


class MadeFrom(TypedDict):
    """What a shift's `record` holds where trimtab reads it again."""

    model: NotRequired[Fingerprint]
    accuracy: NotRequired[list[float]]
    """Of each site's probe on the validation questions, best first."""
    questions: NotRequired[list[str]]
    validation_questions: NotRequired[list[str]]
    named_heads: NotRequired[list[tuple[int, str, int]]]
    sweep: NotRequired[dict[str, Any]]


class _Saved(TypedDict):
    strength: float
    name: str
    seconds: float
    record: MadeFrom


class _SavedHeads(_Saved):
    heads: list[tuple[int, int]]


class _SavedLayers(_Saved):
    layers: list[int]
    components: NotRequired[list[str]]


_FIELDS = {"head": _SavedHeads, "layer": _SavedLayers}


def site_name(site: Any) -> str:
    """Return how a site is written: a layer as `14`, a head as `14.0`."""
    return ".".join(map(str, site)) if isinstance(site, tuple) else str(site)


@dataclass(frozen=True, repr=False)
class HookedEdit(Edit):
    """Changes activations of the very model that it is given, for as long as it is in place."""

    noun: ClassVar[str]
    """What messages call it."""
    leaves_prompt_unedited: ClassVar[bool] = True

    _: KW_ONLY
    name: str = ""
    cost: Cost = field(default_factory=Cost)
    record: Mapping[str, Any] = field(default_factory=dict)
    """How it was made; the model's fingerprint under `"model"`."""

    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:
        """Yield the same model, edited at `positions` until the block ends.

        Raises:
            Incompatible: it was made for another checkpoint or geometry, or did not act.
            BadValue: `"generated"` where it has no meaning (see `add_to_heads`); a layer that the model has not.
        """
        return self.prepared(model)(positions)

    def prepared(self, model: Any) -> EnterAt:
        """Return what enters it on a model again and again: it is checked here, its sites found once."""
        if "model" in self.record:
            require_same_model(self.record["model"], model, f"the {self.noun} {self.name!r}")
        if self.strength == 0:
            return lambda positions: nullcontext(model)  # noqa: ARG005
        return self._acting(model)

    @abstractmethod
    def _acting(self, model: Any) -> EnterAt:
        """Return what enters it, unless its strength is 0."""


@dataclass(frozen=True, repr=False)
class SiteEdit(HookedEdit):
    """Acts at each of its sites, by a row of each of its tensors."""

    place: ClassVar[str]
    """What a site is, `"head"` or `"layer"`; the field that lists the sites is its plural."""
    axes: ClassVar[Mapping[str, int]]
    """Tensor -> number of axes; each has one row for every site."""
    plain: ClassVar[Sequence[str]] = ()
    """Further fields, each a tuple of plain values, that are saved."""
    described_as: ClassVar[str]

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
        """Its heads or layers and its further fields, as plain values."""
        sites = [list(site) if self.place == "head" else site for site in self.sites]
        return {f"{self.place}s": sites, **{name: list(getattr(self, name)) for name in self.plain}}

    @property
    def unchanged_layers(self) -> int:
        """The layers below the first one that it acts in."""
        return min(site[0] if self.place == "head" else site for site in self.sites)

    @property
    def fitted_on(self) -> Sequence[str]:
        """Keys of the questions that it was made from, those that ranked its sites included."""
        return self.record.get("questions", ())

    @property
    def validated_on(self) -> Sequence[str]:
        """Keys of the questions that ranked its sites."""
        return self.record.get("validation_questions", ())

    def first(self: Own, k: int) -> Own:
        """Return it on its k best sites; raises `BadValue` if it has fewer, or k is below 1."""
        if 1 <= k <= len(self):
            return self.on(self.sites[:k])
        raise BadValue(f"first {k} {self.place}s asked for; the {self.noun} has {len(self)}")

    def on(self: Own, sites: Sequence[Any]) -> Own:
        """Return it on these of its sites, in this order; raises `BadValue` for one that it does not have."""
        missing = [site for site in sites if site not in self.sites]
        if missing:
            raise BadValue(
                f"no {self.place} {site_name(missing[0])} to shift; there are {self.place}s "
                f"{site_name(min(self.sites))} to {site_name(max(self.sites))}"
            )
        ranks, record = [self.sites.index(site) for site in sites], dict(self.record)
        if "accuracy" in record:
            record["accuracy"] = [record["accuracy"][rank] for rank in ranks]
        rows = {name: tensor[ranks] for name, tensor in self.tensors.items()}
        return replace(self, record=record, **rows, **{f"{self.place}s": tuple(sites)})

    def describe(self) -> dict[str, Any]:
        """Return sites, strength and how it was made, as plain values."""
        made = {k: v for k, v in self.record.items() if k not in UNDESCRIBED}
        named = {"kind": self.described_as, "name": self.name}
        return {**named, **self.settings, "strength": self.strength, **made}

    def save(self, path: str | Path) -> None:
        """Write it to a folder; raises `Incompatible` if it holds something else or cannot be written."""
        made = {"strength": self.strength, "name": self.name, "seconds": self.cost.seconds, "record": self.record}
        save_result(path, self.kind, {**self.settings, **made}, self.tensors)

    @classmethod
    def load(cls: type[Own], path: str | Path) -> Own:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, cls.kind, fields=_FIELDS[cls.place], names=tuple(cls.axes))
        size = sum(file.stat().st_size for file in Path(path).iterdir())
        numbers = tensors[next(iter(cls.axes))].numel()
        sites = tuple(Head(*site) if cls.place == "head" else site for site in record[f"{cls.place}s"])
        fields: dict[str, Any] = {f"{cls.place}s": sites, **{name: tensors[name] for name in cls.axes}}
        fields |= {name: record[name] for name in ("strength", "name", "record")}
        fields |= {name: tuple(record[name]) for name in cls.plain if name in record}
        try:
            return cls(**fields, cost=Cost(record["seconds"], numbers, size))
        except (BadValue, ShapeError) as cause:
            raise Incompatible(f"{path} holds a damaged {cls.noun} ({cause}); fit it again") from cause
