"""TfidfJudge: a small judge trained on judge data, for where no judge model is at hand; indicative only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from trimtab.datasets.files import read_rows
from trimtab.datasets.questions import Question
from trimtab.errors import BadDataset
from trimtab.intervals import Estimate, share
from trimtab.protocols import Judge, Verdict

FILES = {"true": "finetune_truth.jsonl", "informative": "finetune_info.jsonl"}
HELD_OUT = 0.2


class Graded(NamedTuple):
    """One line of judge data: a question with an answer, and what a person said of it."""

    text: str
    question: str
    label: bool


@dataclass(frozen=True)
class TfidfJudge(Judge):
    """Two logistic regressions on word and word-pair frequencies of question and answer.

    It knows words, not facts: read its figures as indicative, and beside its agreement with people on questions that
    it was not trained on.
    """

    true: Any
    """A fitted scikit-learn pipeline."""
    informative: Any
    agreement: dict[str, Estimate]
    """Share of held-out answers on which it agrees with the data's labels, for true and for informative, with 95 %
    intervals over questions."""
    majority: dict[str, float]
    """The same for always saying what is commoner in the training part."""
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
        missing = [name for name in FILES.values() if not (Path(folder) / name).is_file()]
        if missing:
            raise BadDataset(f"no {' and no '.join(missing)} in {folder}: expected TruthfulQA's judge data there")
        parts = {kind: _trained(Path(folder) / name, seed) for kind, name in FILES.items()}
        agreement = {kind: part.agreement for kind, part in parts.items()}
        majority = {kind: part.majority for kind, part in parts.items()}
        return cls(parts["true"].pipeline, parts["informative"].pipeline, agreement, majority)

    @property
    def record(self) -> dict[str, Any]:
        """What goes into results: that it is indicative, and its held-out agreement."""
        agreement = {kind: value.as_dict() for kind, value in self.agreement.items()}
        return {"name": "TF-IDF", "indicative": True, "agreement": agreement, "majority": self.majority}

    def verdicts(self, question: Question, answers: Sequence[str]) -> list[Verdict]:
        """Return the verdicts: for each part whether "yes" is the likelier label."""
        texts = [f"Q: {question.question}\nA: {answer}" for answer in answers]
        both = zip(self.true.predict(texts), self.informative.predict(texts), strict=True)
        return [Verdict(float(true), float(informative)) for true, informative in both]


class _Trained(NamedTuple):
    pipeline: Any
    agreement: Estimate
    majority: float


def _trained(path: Path, seed: int) -> _Trained:
    rows = _read(path)
    questions = sorted({row.question for row in rows})
    if len(questions) < 5 or len({row.label for row in rows}) < 2:
        raise BadDataset(f"{path}: a judge needs five questions or more and both labels; got {len(questions)}")
    order = np.random.default_rng(seed).permutation(len(questions))
    held = {questions[i] for i in order[: max(1, round(HELD_OUT * len(questions)))]}
    train, test = ([r for r in rows if (r.question in held) == side] for side in (False, True))
    try:
        pipeline = _pipeline().fit([r.text for r in train], [r.label for r in train])
    except ValueError as cause:  # no word twice, or one label only in the training part
        raise BadDataset(f"{path}: nothing can be learned from its {len(rows)} lines ({cause}); give more") from cause
    right = pipeline.predict([r.text for r in test]) == np.array([r.label for r in test])
    common = np.mean([r.label for r in train]) > 0.5
    majority = float(np.mean([r.label == common for r in test]))
    return _Trained(pipeline, _clustered([r.question for r in test], right), majority)


def _pipeline() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, strip_accents="unicode")
    return make_pipeline(words, LogisticRegression(C=4.0, max_iter=1000))


def _clustered(questions: list[str], right: np.ndarray) -> Estimate:
    names, index = np.unique(questions, return_inverse=True)
    sums = np.zeros((len(names), 2))
    np.add.at(sums, index, np.column_stack([right, np.ones(len(right))]))
    return share(sums, lambda means: means[..., 0] / means[..., 1])


def _read(path: Path) -> list[Graded]:
    rows = []
    for line, row in read_rows(path):
        prompt, label = row.get("prompt"), str(row.get("completion", "")).strip()
        text = prompt.rsplit("\n", 1)[0] if isinstance(prompt, str) else ""
        if not text.startswith("Q:") or "\nA:" not in text or label not in ("yes", "no"):
            raise BadDataset(
                f"{path}, line {line}: expected a prompt 'Q: ...', 'A: ...', 'True:' and a completion yes or no"
            )
        rows.append(Graded(text, text.split("\nA:")[0], label == "yes"))
    if not rows:
        raise BadDataset(f"{path} is empty; expected judge data")
    return rows
