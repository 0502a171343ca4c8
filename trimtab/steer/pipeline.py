"""fit: from questions to a shift in one call, keeping for later what was used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trimtab.datasets.item_set import ItemSet
from trimtab.edits.disk import load_shift
from trimtab.edits.residual import ResidualShift
from trimtab.edits.shifts import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.evaluate.contrast import contrast, require_prompts, score_texts
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.judges.verdicts import judge_record
from trimtab.probes.head_probes import HeadProbes
from trimtab.probes.logistic import fit_logistic
from trimtab.protocols import Edit
from trimtab.steer.directions import MassMean
from trimtab.steer.head_shifts import Direction, fit_shift
from trimtab.steer.residual_shifts import fit_residual_shift
from trimtab.steer.strength import Metric, choose_strength
from trimtab.storage import RECORD, kind_of, write_json, written_folder

KIND = "fit"
VALIDATION = 0.4
"""The share of the given questions that ranks heads and chooses the strength."""


@dataclass(frozen=True)
class Fitted:
    """A shift, the probes that its places were chosen by, and the directions of all places."""

    shift: HeadShift | ResidualShift
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
        return cls(load_shift(path / "shift"), HeadProbes.load(path / "probes"), MassMean.load(path / "directions"))


def fit(
    model: Any,
    tokenizer: Any,
    questions: ItemSet[Any],
    *,
    site: Literal["heads", "residual"] = "heads",
    top_k: int | None = None,
    direction: Direction = "mass_mean",
    strength: float | int | None = None,
    metric: Literal["true_info", "mc1"] = "true_info",
    judge: Callable[[Any, str], Any] | None = None,
    kl_budget: float | int = 0.1,
    seed: int = 0,
) -> Fitted:
    """Return a shift fitted on the questions, and its probes.

    Three fifths of the questions fit probes and directions; the others rank heads (or layers) and choose, unless it
    is given, the strength: by `metric`, or by the probability of the positive side for contrast pairs. The shift's
    record keeps every question used under "questions", so that `unseen` can leave them out.

    Args:
        site: `"heads"`: Inference-Time Intervention; `"residual"`: Contrastive Activation Addition.
        top_k: heads (16) or layers (1) to shift at most.
        direction: of head shifts, as in `fit_shift`.
        strength: in sigmas (heads) or multiples of the mean difference (residual), instead of a sweep.
        metric: `"true_info"` of generated answers by the judge, or `"mc1"`, which needs none.
        judge: of answers; if not given, the exact one, which knows only the answers that are listed: for models that
            give those, as the embedded one does. Of contrast pairs, a scorer of generated continuations (see
            `score_texts`), whose mean then chooses the strength.
        kl_budget: nats per token that the chosen strength may cost on neutral text.
        seed: of the division of the questions.

    Raises:
        BadValue: a judge where the strength is given or is chosen by MC1.
        BadDataset, BadValue, UnsupportedModel: as the steps do.
    """
    if judge is not None:
        require_something_to_judge(questions, metric, strength)
    by = _score_of_pairs(questions, judge) if are_pairs(questions) else metric
    train, validation = questions.split(test=VALIDATION, seed=seed)
    acts, held = (capture_heads(model, tokenizer, part.statements(), site=site) for part in (train, validation))
    probes = fit_logistic(acts, validation=held, seed=seed)
    if site == "heads":
        n_heads = probes.accuracy.numel()
        shift: Any = fit_shift(acts, probes, top_k=min(16, n_heads) if top_k is None else top_k, direction=direction)
    elif direction != "mass_mean":
        raise BadValue(f"direction {direction!r} is for head shifts; residual shifts use the mean difference")
    else:
        shift = fit_residual_shift(acts, probes, top_k=1 if top_k is None else top_k)
    if strength is not None:
        chosen: Any = shift.scaled(strength)
    else:
        chosen = choose_strength(
            model, tokenizer, validation, shift, kl_budget=kl_budget, metric=by, judge=judge or exact_judge
        )
    record = {**chosen.record, "data": data_record(questions), "questions": [q.key for q in questions]}
    return Fitted(replace(chosen, record=record), probes, MassMean.of(acts))


def require_something_to_judge(questions: ItemSet[Any], metric: str, strength: float | int | None) -> None:
    """Raise `BadValue` if the strength is chosen without generated answers, or is not chosen at all."""
    if strength is not None:
        raise BadValue(f"the strength is given as {strength}, so there is nothing to judge; leave one of the two out")
    if metric == "mc1" and not are_pairs(questions):
        raise BadValue("mc1 scores the listed answers, so there is nothing to judge; leave the judge or mc1 out")


def _score_of_pairs(pairs: ItemSet[Any], scorer: Callable[[Any, str], Any] | None) -> Metric:
    if scorer is None:
        return pair_probability
    require_prompts(pairs)
    return TextScore(scorer)


@dataclass(frozen=True)
class TextScore:
    """The mean score of generated continuations of the pairs' prompts, as a metric for `choose_strength`."""

    scorer: Callable[[Any, str], float]

    @property
    def record(self) -> dict[str, Any]:
        """What goes into results: the scorer's name, and what it says of itself."""
        return judge_record(self.scorer)

    def __call__(self, model: Any, tokenizer: Any, pairs: Any, edit: Edit) -> float:
        """Return the mean score, from 0 to 1."""
        return float(score_texts(model, tokenizer, pairs, edit, scorer=self.scorer).score)


def pair_probability(model: Any, tokenizer: Any, pairs: Any, edit: Edit) -> float:
    """Return the mean probability of the pairs' positive sides, as a metric for `choose_strength`."""
    return float(contrast(model, tokenizer, pairs, edit).probability)


def are_pairs(questions: ItemSet[Any]) -> bool:
    """Return whether these are contrast pairs rather than questions with answers."""
    return questions.measured_by == "pairs"


def unseen(questions: ItemSet[Any], edit: Edit) -> ItemSet[Any]:
    """Return the questions that the edit was not made with.

    Raises:
        BadDataset: it was made with all of them.
    """
    seen = {*edit.fitted_on, *edit.record.get("questions", ())}
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
