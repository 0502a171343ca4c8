"""fit: from questions to a shift in one call, keeping for later what was used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.datasets.given import Rows, as_items
from trimtab.datasets.item_set import ItemSet
from trimtab.edits.disk import load_edit
from trimtab.edits.vectors import VectorEdit
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.evaluate.multiple_choice import MultipleChoice
from trimtab.probes.head_probes import HeadProbes
from trimtab.protocols import Edit, Meter
from trimtab.steer.agreement import Agreement, agreement
from trimtab.steer.directions import MassMean
from trimtab.steer.effect import SiteRanking, rank_sites
from trimtab.steer.meters import Metric, judged_metric
from trimtab.steer.outcome import Outcome, outcome_of
from trimtab.steer.places import KL_BUDGET, Tries, choose_place
from trimtab.steer.reading import ReadAnswers, Reader, read_texts
from trimtab.steer.screen import Screen, screen
from trimtab.steer.sites import SiteProbes, read_sites
from trimtab.steer.spec import ShiftSpec, are_pairs
from trimtab.steer.strength import Sweep, choose_strength
from trimtab.storage import RECORD, kind_of, load_record, write_json, written_folder

KIND = "fit"
PROMPTS = 6
"""Prompts that are answered at each setting that is tried."""
VALIDATION = 0.4
"""The share of the given questions that ranks heads and chooses the strength."""


@dataclass(frozen=True, repr=False)
class Fitted:
    """A shift, the probes and directions of all places, and how it was found."""

    shift: VectorEdit
    probes: HeadProbes
    directions: MassMean
    ranking: SiteRanking | None = None
    """What shifting each place does; None where the places were named, or the probes alone chose."""
    screened: Screen | None = None
    """What the data looked like beforehand."""

    def __repr__(self) -> str:
        return f"Fitted({self.shift!r}, {self.outcome.sentence if self.outcome else 'strength as given'!r})"

    @property
    def outcome(self) -> Outcome | None:
        """Whether it works; None where the strength was given, and nothing tried."""
        sweep = self.shift.record.get("sweep")
        if sweep is None:
            return None
        return outcome_of(sweep, better=sweep.get("better", "up"), screened=self.screened)

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
            write_json(folder / RECORD, {**self.shift.describe(), **told, "kind": KIND})

    @classmethod
    def load(cls, path: str | Path) -> Fitted:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        path = Path(path)
        if not path.is_dir() or kind_of(path) != KIND:
            raise Incompatible(f"no fit at {path}: expected a folder written by `trimtab fit`")
        parts = load_edit(path / "shift"), HeadProbes.load(path / "probes"), MassMean.load(path / "directions")
        screened = load_record(path, KIND).get("screen") or {}
        ranking = SiteRanking.load(path / "ranking") if (path / "ranking").is_dir() else None
        return cls(*parts, ranking, Screen.from_dict(screened))

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


def fit(
    model: Any,
    tokenizer: Any,
    questions: Rows,
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
        questions: a set, or a list of mappings, or a `datasets.Dataset`.
        spec: the default shift if not given: of the residual stream by effect for pairs, else of heads by accuracy.
        metric: what chooses the strength, as in `choose_strength` (`judged_metric` makes one of a judge). If not given:
            true_info by the exact judge, which knows only the answers that are listed, for models that give those, as
            the embedded one does; of contrast pairs, how far answers read like the positive texts (`ReadAnswers`), or
            the margin of the positive side where there are no prompts, or `spec.quick`.
        kl_budget: nats per token that the chosen strength may cost on neutral text; 0.1 for what is ranked by accuracy,
            0.2 by effect, if not given.
        seed: of the division of the questions.

    Raises:
        BadDataset, BadValue, UnsupportedModel: as the steps do; fewer than four items.
    """
    items: ItemSet[Any] = as_items(questions)
    require_enough(items)
    spec, by = (spec or ShiftSpec()).on(items), metric or judged_metric(items, "true_info", None)
    spec.require_named(model)
    items = items.asked_as(spec.asking, tokenizer)
    train, validation = items.split(test=VALIDATION, seed=seed)
    found = read_sites(model, tokenizer, train, validation, spec.read, seed=seed)
    places, ranking = spec.places(found), None
    budget = kl_budget if kl_budget is not None else KL_BUDGET if spec.rank_by == "effect" else 0.1
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
        tries = Tries(k, budget, 1 if spec.quick else Tries.n_places, spec.texts, seed=seed)
        tried_on, prompted = validation, [i for i, item in enumerate(validation) if item.asked.strip()]
        if metric is None and are_pairs(items) and prompted and not spec.quick:
            by = ReadAnswers(_reader(model, tokenizer, found, train, validation))
            tried_on = validation.select(prompted[:PROMPTS])
        shift = choose_place(model, tokenizer, tried_on, every, ranking, metric=by, tries=tries)
    else:
        shift = choose_strength(
            model,
            tokenizer,
            validation,
            every.first(k),
            kl_budget=budget,
            metric=by,
            sweep=Sweep(texts=spec.texts),
        )
    made: Any = shift.with_record(data=data_record(items), questions=[q.key for q in items], asking=items.asking)
    return Fitted(made, found.probes, MassMean.of(found.acts), ranking, screened)


def require_enough(items: ItemSet[Any]) -> None:
    """Raise `BadDataset` for fewer items than a shift can be fitted and chosen on."""
    if len(items) < 4:
        raise BadDataset(
            f"{items.name}: a shift needs four or more questions or pairs to fit and choose on, got {len(items)}; "
            "thirty are good"
        )


def _reader(model: Any, tokenizer: Any, found: SiteProbes, train: ItemSet[Any], held: ItemSet[Any]) -> Reader:
    """Return what reads answers; activations that were captured for the shift serve it where they are of its kind."""
    read = found.acts.record["site"], found.acts.record["position"]
    if read == ("residual", "mean_answer"):
        return Reader.of(found.acts, found.held)
    return Reader.of(*(read_texts(model, tokenizer, part.statements()) for part in (train, held)))


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
