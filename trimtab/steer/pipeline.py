"""fit: from questions to a shift in one call, keeping for later what was used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.datasets.item_set import ItemSet
from trimtab.edits.disk import load_edit
from trimtab.edits.vectors import VectorEdit
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.evaluate.multiple_choice import MultipleChoice
from trimtab.probes.head_probes import HeadProbes
from trimtab.protocols import Edit, Meter
from trimtab.steer.agreement import Agreement, agreement
from trimtab.steer.directions import MassMean
from trimtab.steer.fitting import fit_residual_shift, fit_shift
from trimtab.steer.meters import Metric, judged_metric
from trimtab.steer.sites import Site, SiteProbes, read_sites
from trimtab.steer.strength import choose_strength
from trimtab.storage import RECORD, kind_of, write_json, written_folder

KIND = "fit"
VALIDATION = 0.4
"""The share of the given questions that ranks heads and chooses the strength."""


@dataclass(frozen=True)
class Fitted:
    """A shift, the probes that its places were chosen by, and the directions of all places."""

    shift: VectorEdit
    probes: HeadProbes
    directions: MassMean

    def save(self, path: str | Path) -> None:
        """Write all to a folder, atomically, as `shift/`, `probes/` and `directions/`.

        Raises:
            Incompatible: the folder holds something else or cannot be written.
        """
        with written_folder(path, KIND) as folder:
            self.shift.save(folder / "shift")
            self.probes.save(folder / "probes")
            self.directions.save(folder / "directions")
            write_json(folder / RECORD, {**self.shift.describe(), "kind": KIND})

    @classmethod
    def load(cls, path: str | Path) -> Fitted:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        path = Path(path)
        if not path.is_dir() or kind_of(path) != KIND:
            raise Incompatible(f"no fit at {path}: expected a folder written by `trimtab fit`")
        return cls(load_edit(path / "shift"), HeadProbes.load(path / "probes"), MassMean.load(path / "directions"))

    def against(
        self, other: Fitted, *, top_k: int | None = None, scores: tuple[MultipleChoice, MultipleChoice] | None = None
    ) -> Agreement:
        """Return how far another fit's directions and best sites are from these; `agreement` says what is refused.

        Args:
            top_k: how many of the best sites; as many as this shift has if not given.
            scores: multiple choice of both.
        """
        if self.shift.place != other.shift.place:
            raise BadValue("one fit shifts heads, the other the residual stream; compare two of one --site")
        k = self.shift.n_sites if top_k is None else top_k
        return agreement(self.directions, self.probes, other.directions, other.probes, top_k=k, scores=scores)


@dataclass(frozen=True)
class ShiftSpec:
    """Which shift `fit` makes.

    Raises:
        BadValue: a direction of heads for the residual stream.
    """

    site: Site = "heads"
    """`"heads"`: Inference-Time Intervention; `"residual"`: Contrastive Activation Addition."""
    top_k: int | None = None
    """Heads (16) or layers (1) to shift at most."""
    direction: str = "mass_mean"
    """Of head shifts, as in `fit_shift`."""
    strength: float | int | None = None
    """In sigmas (heads) or multiples of the mean difference (residual); chosen if not given."""

    def __post_init__(self) -> None:
        if self.site == "residual" and self.direction != "mass_mean":
            raise BadValue(f"direction {self.direction!r} is for head shifts; residual shifts use the mean difference")

    def made(self, found: SiteProbes) -> VectorEdit:
        """Return the shift of strength 1 on the sites that the probes read best."""
        if self.site == "residual":
            return fit_residual_shift(found.acts, found.probes, top_k=1 if self.top_k is None else self.top_k)
        top_k = min(16, found.probes.accuracy.numel()) if self.top_k is None else self.top_k
        return fit_shift(found.acts, found.probes, top_k=top_k, direction=self.direction)


def fit(
    model: Any,
    tokenizer: Any,
    questions: ItemSet[Any],
    spec: ShiftSpec | None = None,
    *,
    metric: str | Metric | Meter | None = None,
    kl_budget: float | int = 0.1,
    seed: int = 0,
) -> Fitted:
    """Return a shift fitted on the questions, and its probes.

    Three fifths of the questions fit probes and directions; the others rank heads (or layers) and choose, unless it
    is given, the strength. The shift's record keeps every question used under "questions", so that `unseen` can
    leave them out.

    Args:
        spec: the default shift of heads if not given.
        metric: what chooses the strength, as in `choose_strength` (`judged_metric` makes one of a judge). If not given:
            true_info by the exact judge, which knows only the answers that are listed, for models that give those, as
            the embedded one does; of contrast pairs, the probability of the positive side.
        kl_budget: nats per token that the chosen strength may cost on neutral text.
        seed: of the division of the questions.

    Raises:
        BadDataset, BadValue, UnsupportedModel: as the steps do.
    """
    spec, by = spec or ShiftSpec(), metric or judged_metric(questions, "true_info", None)
    train, validation = questions.split(test=VALIDATION, seed=seed)
    found = read_sites(model, tokenizer, train, validation, site=spec.site, seed=seed)
    shift = spec.made(found)
    if spec.strength is not None:
        shift = shift.scaled(spec.strength)
    else:
        shift = choose_strength(model, tokenizer, validation, shift, kl_budget=kl_budget, metric=by)
    made: Any = shift.with_record(data=data_record(questions), questions=[q.key for q in questions])
    return Fitted(made, found.probes, MassMean.of(found.acts))


def are_pairs(questions: ItemSet[Any]) -> bool:
    """Return whether these are contrast pairs rather than questions with answers."""
    return questions.measured_by == "pairs"


def unseen(questions: ItemSet[Any], edit: Edit) -> ItemSet[Any]:
    """Return the questions that the edit was not made with.

    Raises:
        BadDataset: it was made with all of them.
    """
    seen = set(edit.fitted_on)
    try:
        return questions.where(lambda q: q.key not in seen)
    except BadDataset as cause:
        raise BadDataset(
            f"the edit was fitted on all {len(questions)} questions of {questions.name}; measure it on others, or fit "
            "it on a part of them (trimtab fit --held-out)"
        ) from cause


def data_record(questions: ItemSet[Any]) -> dict[str, Any]:
    """Return name, size and hash of a set of questions, for records."""
    return {"name": questions.name, "n": len(questions), "fingerprint": questions.fingerprint}
