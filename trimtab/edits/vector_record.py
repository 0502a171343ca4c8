"""What the record of an edit at some sites holds, and its form on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypeVar

from typing_extensions import TypedDict

from trimtab.activations.labelled import Head
from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.models.identity import Fingerprint, differing_weight
from trimtab.protocols import Cost, Edit
from trimtab.storage import load_result, save_result

if TYPE_CHECKING:
    from trimtab.edits.sited import SiteEdit

    Shift = TypeVar("Shift", bound=SiteEdit)

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


def plain_sites(shift: SiteEdit) -> dict[str, list[Any]]:
    """Return the heads or layers as plain values, by the name of their field."""
    return {f"{shift.place}s": [list(site) if shift.place == "head" else site for site in shift.sites]}


def site_name(site: Any) -> str:
    """Return how a site is written: a layer as `14`, a head as `14.0`."""
    return ".".join(map(str, site)) if isinstance(site, tuple) else str(site)


def ranks_of(shift: SiteEdit, sites: Sequence[Any]) -> tuple[list[int], dict[str, Any]]:
    """Return where sites stand in a shift, and the record of these; raises `BadValue` for one that it lacks."""
    missing = [site for site in sites if site not in shift.sites]
    if missing:
        raise BadValue(
            f"no {shift.place} {site_name(missing[0])} to shift; there are {shift.place}s "
            f"{site_name(min(shift.sites))} to {site_name(max(shift.sites))}"
        )
    ranks, record = [shift.sites.index(site) for site in sites], dict(shift.record)
    if "accuracy" in record:
        record["accuracy"] = [record["accuracy"][rank] for rank in ranks]
    return ranks, record


def save_vectors(shift: SiteEdit, path: str | Path) -> None:
    """Write a shift to a folder (safetensors and JSON), atomically; raises `Incompatible` where that cannot be."""
    made = {"strength": shift.strength, "name": shift.name, "seconds": shift.cost.seconds, "record": shift.record}
    save_result(path, shift.kind, {**plain_sites(shift), **shift.settings, **made}, shift.tensors)


def load_vectors(kind: type[Shift], path: str | Path) -> Shift:
    """Return the shift of a kind that a folder holds; raises `Incompatible` for anything else."""
    record, tensors = load_result(path, kind.kind, fields=_FIELDS[kind.place], names=tuple(kind.axes))
    size = sum(file.stat().st_size for file in Path(path).iterdir())
    numbers = tensors[next(iter(kind.axes))].numel()
    sites = tuple(Head(*site) if kind.place == "head" else site for site in record[f"{kind.place}s"])
    fields: dict[str, Any] = {f"{kind.place}s": sites, **{name: tensors[name] for name in kind.axes}}
    fields |= {name: record[name] for name in ("strength", "name", "record")}
    fields |= {name: tuple(record[name]) for name in kind.plain if name in record}
    try:
        return kind(**fields, cost=Cost(record["seconds"], numbers, size))
    except (BadValue, ShapeError) as cause:
        raise Incompatible(f"{path} holds a damaged {kind.noun} ({cause}); fit it again") from cause


def common_model(one: Edit, other: Edit) -> dict[str, Any] | None:
    """Return the fingerprint that two edits share, or the only one; raises `Incompatible` for different models."""
    ours, theirs = one.record.get("model"), other.record.get("model")
    if not ours or not theirs:
        return ours or theirs
    if ours["geometry"] != theirs["geometry"] or differing_weight(ours, theirs) is not None:
        raise Incompatible(
            f"cannot add {one.name} and {other.name}: they were made for different models "
            f"({ours['name'] or 'unnamed'} and {theirs['name'] or 'unnamed'}); fit both on the same one"
        )
    return ours
