"""fit: from questions to a shift in one call, keeping for later what was used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.activations.labelled import Head
from trimtab.datasets.item_set import ItemSet
from trimtab.edits.disk import load_edit
from trimtab.edits.vectors import VectorEdit
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.evaluate.multiple_choice import MultipleChoice
from trimtab.probes.head_probes import HeadProbes
from trimtab.protocols import Edit, Meter
from trimtab.steer.agreement import Agreement, agreement
from trimtab.steer.directions import MassMean
from trimtab.steer.effect import RankBy, SiteRanking, rank_sites
from trimtab.steer.fitting import fit_residual_shift, fit_shift
from trimtab.steer.meters import Metric, judged_metric
from trimtab.steer.outcome import REPEATS, Outcome, Sample, outcome_of, sample_answers
from trimtab.steer.places import Tries, choose_place
from trimtab.steer.screen import Screen, screen
from trimtab.steer.sites import Site, SiteProbes, read_sites
from trimtab.steer.strength import Sweep, choose_strength
from trimtab.storage import RECORD, kind_of, write_json, written_folder

KIND = "fit"
VALIDATION = 0.4
"""The share of the given questions that ranks heads and chooses the strength."""


@dataclass(frozen=True)
class Fitted:
    """A shift, the probes and directions of all places, and how it was found."""

    shift: VectorEdit
    probes: HeadProbes
    directions: MassMean
    ranking: SiteRanking | None = None
    """What shifting each place does; None where the places were named, or the probes alone chose."""
    screened: Screen | None = None
    """What the data looked like beforehand."""
    samples: tuple[Sample, ...] = ()
    """Answers to a few of the prompts, unedited and at the strengths that were tried of the chosen place."""

    @property
    def outcome(self) -> Outcome | None:
        """Whether it works; None where the strength was given, and nothing tried."""
        sweep = self.shift.record.get("sweep")
        return None if sweep is None else outcome_of(sweep)

    def save(self, path: str | Path) -> None:
        """Write all to a folder, atomically, as `shift/`, `probes/`, `directions/` and `ranking/`.

        Raises:
            Incompatible: the folder holds something else or cannot be written.
        """
        with written_folder(path, KIND) as folder:
            self.shift.save(folder / "shift")
            self.probes.save(folder / "probes")
            self.directions.save(folder / "directions")
            if self.ranking is not None:
                self.ranking.save(folder / "ranking")
            told = {name: of and of.as_dict() for name, of in (("screen", self.screened), ("outcome", self.outcome))}
            samples = [asdict(sample) for sample in self.samples]
            write_json(folder / RECORD, {**self.shift.describe(), **told, "samples": samples, "kind": KIND})

    @classmethod
    def load(cls, path: str | Path) -> Fitted:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        path = Path(path)
        if not path.is_dir() or kind_of(path) != KIND:
            raise Incompatible(f"no fit at {path}: expected a folder written by `trimtab fit`")
        parts = load_edit(path / "shift"), HeadProbes.load(path / "probes"), MassMean.load(path / "directions")
        return cls(*parts, SiteRanking.load(path / "ranking") if (path / "ranking").is_dir() else None)

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
        BadValue: a direction of heads for the residual stream; heads named for it; layers and heads both.
    """

    site: Site | None = None
    """`"heads"`: Inference-Time Intervention; `"residual"`: Contrastive Activation Addition. If not given, what is
    named (`layers`, `heads`); else residual for contrast pairs and heads for questions."""
    n_sites: int | None = None
    """Heads (16, or those that are named) or layers (1) to shift at most."""
    direction: str = "mass_mean"
    """Of head shifts, as in `fit_shift`."""
    strength: float | int | None = None
    """In sigmas (heads) or multiples of the mean difference (residual); chosen if not given."""
    layers: Sequence[int] | None = None
    """Layers to choose among; all if not given."""
    heads: Sequence[Head] | None = None
    """Heads to shift."""
    rank_by: RankBy | None = None
    """What ranks the places: `"effect"` (pairs, if not given) or the probes' `"accuracy"` (questions)."""
    texts: Sequence[str] | None = None
    """Neutral texts for the drift; some of trimtab's own if not given."""
    quick: bool = False
    """Whether the place that attribution puts first is taken without trying others, and no answers are generated."""

    def __post_init__(self) -> None:
        if self.heads is not None and (self.layers is not None or self.site == "residual"):
            raise BadValue("name heads (--heads) or layers (--layers) to shift, not both; heads are of --site heads")
        if self.for_site == "residual" and self.direction != "mass_mean":
            raise BadValue(f"direction {self.direction!r} is for head shifts; residual shifts use the mean difference")
        if self.rank_by not in (None, "effect", "accuracy"):
            raise BadValue(f"places are ranked by effect or accuracy, got {self.rank_by!r}")

    @property
    def for_site(self) -> Site | None:
        """The site that is given or follows from what is named."""
        return self.site or ("residual" if self.layers is not None else "heads" if self.heads is not None else None)

    def on(self, items: ItemSet[Any]) -> ShiftSpec:
        """Return the specification with what depends on the data filled in."""
        pairs = are_pairs(items)
        site = self.for_site or ("residual" if pairs else "heads")
        return replace(self, site=site, rank_by=self.rank_by or ("effect" if pairs else "accuracy"))

    def places(self, found: SiteProbes) -> list[Head]:
        """Return every place that may be shifted, in the order of the probes (a layer is its head 0).

        Raises:
            BadValue: a layer that the model lacks.
        """
        known = found.probes.layers
        missing = sorted(set(self.layers or ()) - set(known))
        if missing:
            raise BadValue(f"no layer {missing[0]} to shift; the model has layers {min(known)} to {max(known)}")
        if self.heads is not None:
            return [Head(*head) for head in self.heads]
        every = found.probes.top(found.probes.accuracy.numel())
        moving = MassMean.of(found.acts).values.any(dim=-1)  # not in a head that was pruned
        allowed = [at for at in every if self.layers is None or at.layer in self.layers]
        return [at for at in allowed if bool(moving[known.index(at.layer), at.head])]

    def count(self, places: Sequence[Head]) -> int:
        """Return how many of these places are to be shifted; raises `BadValue` for more than there are."""
        if self.n_sites is None:
            most = len(places) if self.heads is not None else 1 if self.site == "residual" else 16
            return min(most, len(places))
        if not 1 <= self.n_sites <= len(places):
            what = "layers" if self.site == "residual" else "heads"
            raise BadValue(f"top {self.n_sites} {what} asked for; the model has {len(places)}, choose 1 to that many")
        return self.n_sites

    def made(self, found: SiteProbes, places: Sequence[Head]) -> VectorEdit:
        """Return the shift of strength 1 on these places."""
        if self.site == "residual":
            return fit_residual_shift(found.acts, found.probes, layers=[place.layer for place in places])
        return fit_shift(found.acts, found.probes, heads=places, direction=self.direction)


def fit(
    model: Any,
    tokenizer: Any,
    questions: ItemSet[Any],
    spec: ShiftSpec | None = None,
    *,
    metric: str | Metric | Meter | None = None,
    kl_budget: float | int | None = None,
    seed: int = 0,
) -> Fitted:
    """Return a shift fitted on the questions or contrast pairs, its probes, and what became of it.

    Three fifths of the items fit probes and directions; the others rank heads (or layers) and choose, unless it
    is given, the strength. The shift's record keeps every item used under "questions", so that `unseen` can
    leave them out.

    Args:
        spec: the default shift if not given: of the residual stream by effect for pairs, else of heads by accuracy.
        metric: what chooses the strength, as in `choose_strength` (`judged_metric` makes one of a judge). If not given:
            true_info by the exact judge, which knows only the answers that are listed, for models that give those, as
            the embedded one does; of contrast pairs, the margin of the positive side.
        kl_budget: nats per token that the chosen strength may cost on neutral text; 0.1 for what is ranked by accuracy,
            0.4 by effect, if not given.
        seed: of the division of the questions.

    Raises:
        BadDataset, BadValue, UnsupportedModel: as the steps do; fewer than four items.
    """
    if len(questions) < 4:
        raise BadDataset(
            f"{questions.name}: a shift needs four or more to fit and choose on, got {len(questions)}; thirty are good"
        )
    spec, by = (spec or ShiftSpec()).on(questions), metric or judged_metric(questions, "true_info", None)
    train, validation = questions.split(test=VALIDATION, seed=seed)
    assert spec.site is not None
    found = read_sites(model, tokenizer, train, validation, site=spec.site, seed=seed)
    places, ranking, samples = spec.places(found), None, ()
    k = spec.count(places)
    by_effect = spec.rank_by == "effect" and (len(places) > k or spec.strength is None)
    every = spec.made(found, places if by_effect else places[:k])
    if by_effect:
        ranking = rank_sites(model, tokenizer, validation, every, seed=seed)
        every = every.on(ranking.sites)
    screened = screen(found.acts, found.held, train.statements(), every.probed[0])
    if spec.strength is not None:
        shift = every.first(k).scaled(spec.strength)
    elif ranking is not None:
        tries = Tries(k, kl_budget or 0.4, 1 if spec.quick else Tries.n_places, spec.texts, seed=seed)
        shift = choose_place(model, tokenizer, validation, every, ranking, metric=by, tries=tries)
        prompts = [item.asked for item in validation if item.asked.strip()][:3]
        if prompts and not spec.quick:
            samples = tuple(sample_answers(model, tokenizer, prompts, shift, _strengths(shift)))
            shift = _without_loops(shift, samples)
    else:
        shift = choose_strength(
            model,
            tokenizer,
            validation,
            every.first(k),
            kl_budget=kl_budget or 0.1,
            metric=by,
            sweep=Sweep(texts=spec.texts),
        )
    made: Any = shift.with_record(data=data_record(questions), questions=[q.key for q in questions])
    return Fitted(made, found.probes, MassMean.of(found.acts), ranking, screened, samples)


def _strengths(shift: VectorEdit) -> dict[float, float]:
    """Return the strengths that were tried of the chosen sites, with the drift of each."""
    sweep = shift.record["sweep"]
    return {
        t["strength"]: t["kl"]
        for t in sweep["trials"][1:]
        if t["sites"] == sweep["chosen"]["sites"] and not t["control"]
    }


def _without_loops(shift: Any, samples: Sequence[Sample]) -> Any:
    """Return the shift at the strongest strength up to its own whose answers do not repeat themselves, if there is one.

    Where the unedited model's do too, it is no fault of the shift.
    """
    sweep, (unedited, *edited) = shift.record["sweep"], samples
    limit = max(REPEATS, unedited.repeats)
    fluent = [s.strength for s in edited if s.strength <= shift.strength and s.repeats <= limit]
    if not fluent or max(fluent) == shift.strength:
        return shift
    scored = [t for t in sweep["trials"] if t["strength"] == max(fluent) and t["score"] is not None]
    kept = {**sweep, "chosen": scored[0], "gain": None, "looped_at": shift.strength}
    return shift.at_strength(max(fluent)).with_record(sweep=kept)


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
