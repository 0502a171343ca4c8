"""TfidfJudge: a small judge trained on judge data, for where no judge model is at hand; indicative only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from trimtab.datasets.questions import Question
from trimtab.devices import one_thread
from trimtab.errors import BadDataset
from trimtab.evaluate.judges.checking import Agreed, agreed, false_accepts
from trimtab.evaluate.judges.judge_data import FILES, Graded, divided_by_question, questions_of, read_judge_data
from trimtab.intervals import Estimate
from trimtab.protocols import Judge, Verdict


@dataclass(frozen=True)
class TfidfJudge(Judge):
    """Two logistic regressions on word and word-pair frequencies of question and answer.

    It knows words, not facts: read its figures as indicative, and beside its agreement with people on questions that
    it was not trained on.
    """

    true: Any
    """A fitted scikit-learn pipeline."""
    informative: Any
    people: dict[str, Agreed]
    """How far it agrees with the data's labels on held-out questions, for true and for informative."""
    majority: dict[str, float]
    """The share on which always saying what is commoner in the training part agrees with them."""
    accepted: dict[str, Any] = field(default_factory=dict)
    """What it calls true and informative of nonsense: see `false_accepts`."""
    name: ClassVar[str] = "TF-IDF"

    @classmethod
    def train(cls, folder: str | Path, *, seed: int = 0) -> TfidfJudge:
        """Return a judge trained on TruthfulQA's judge data.

        Args:
            folder: holds `finetune_truth.jsonl` and `finetune_info.jsonl`: lines of `{"prompt":
                "Q: ...\\nA: ...\\nTrue:" (or "Helpful:"), "completion": " yes" or " no"}`.
            seed: of the draw of the fifth of the questions that the agreement is measured on.

        Raises:
            BadDataset: a file cannot be read or holds something else; the message names file and line.
        """
        data = read_judge_data(folder)
        parts = {kind: _trained(rows, seed, Path(folder) / FILES[kind]) for kind, rows in data.items()}
        people = {kind: part.people for kind, part in parts.items()}
        majority = {kind: part.majority for kind, part in parts.items()}
        judge = cls(parts["true"].pipeline, parts["informative"].pipeline, people, majority)
        _, held = divided_by_question(data["true"], seed, str(folder))
        asked = questions_of(held)
        return replace(judge, accepted=false_accepts(judge, asked)) if asked else judge

    @property
    def agreement(self) -> dict[str, Estimate]:
        """Share of held-out answers on which it agrees with people, with 95 % intervals over questions."""
        return {kind: of.agreement for kind, of in self.people.items()}

    @property
    def record(self) -> dict[str, Any]:
        """What goes into results: that it is indicative, its held-out agreement, and what it makes of nonsense."""
        return {
            "name": "TF-IDF",
            "indicative": True,
            "agreement": {kind: value.as_dict() for kind, value in self.agreement.items()},
            "majority": self.majority,
            "people": {kind: of.as_dict() for kind, of in self.people.items()},
            "false_accepts": self.accepted,
        }

    def verdicts(self, question: Question, answers: Sequence[str]) -> list[Verdict]:
        """Return the verdicts: for each part whether "yes" is the likelier label."""
        texts = [f"Q: {question.question}\nA: {answer}" for answer in answers]
        both = zip(self.true.predict(texts), self.informative.predict(texts), strict=True)
        return [Verdict(float(true), float(informative)) for true, informative in both]


class _Trained(NamedTuple):
    pipeline: Any
    people: Agreed
    majority: float


@one_thread("sklearn")
def _trained(rows: list[Graded], seed: int, path: Path) -> _Trained:
    train, test = divided_by_question(rows, seed, str(path))
    try:
        pipeline = _pipeline().fit([r.text for r in train], [r.label for r in train])
    except ValueError as cause:  # no word twice, or one label only in the training part
        raise BadDataset(f"{path}: nothing can be learned from its {len(rows)} lines ({cause}); give more") from cause
    said = [bool(label) for label in pipeline.predict([r.text for r in test])]
    common = np.mean([r.label for r in train]) > 0.5
    majority = float(np.mean([r.label == common for r in test]))
    return _Trained(pipeline, agreed([r.question for r in test], said, [r.label for r in test]), majority)


def _pipeline() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, strip_accents="unicode")
    return make_pipeline(words, LogisticRegression(C=4.0, max_iter=1000))
