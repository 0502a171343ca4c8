"""Judges are checked: against people's verdicts, and on nonsense that no judge ought to accept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from trimtab.datasets.files import read_rows
from trimtab.datasets.questions import Question
from trimtab.errors import BadDataset, BadValue
from trimtab.intervals import Estimate, bootstrap, share
from trimtab.plain_values import one_form
from trimtab.progress import tracked
from trimtab.protocols import Judge

NONSENSE = ("empty", "letters", "loop", "another question's answer")
ON_NONSENSE = 25
"""Questions that a judge is tried on with each kind of nonsense."""


class Label(NamedTuple):
    """What a person said of an answer; None where nothing was said of that."""

    question: Question
    answer: str
    true: bool | None
    informative: bool | None


@dataclass(frozen=True)
class Agreed:
    """How far a judge agrees with people, with 95 % intervals over questions."""

    agreement: Estimate
    """Share of answers on which both say the same."""
    kappa: Estimate
    """Cohen's: the agreement beyond what both would have by chance (Cohen 1960)."""
    on_yes: Estimate | None
    """Share of the answers that people called true (or informative) that the judge does too; None if there are none."""
    on_no: Estimate | None
    """The same of those that people did not."""
    n_answers: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        figures = {name: getattr(self, name) for name in ("agreement", "kappa", "on_yes", "on_no")}
        return {
            **{name: None if e is None else e.as_dict() for name, e in figures.items()},
            "n_answers": self.n_answers,
        }


def read_labels(path: str | Path, questions: Sequence[Question]) -> list[Label]:
    """Return people's verdicts of a `.jsonl` or `.csv` file: `question`, `answer`, and `true`, `informative` or both.

    A verdict is true or false, yes or no, 1 or 0.

    Raises:
        BadDataset: the file cannot be read or holds none; a row lacks a field, or is of a question that is not among
            those given; the message names the line.
    """
    known, labels, strange = {q.key: q for q in questions}, [], []
    for line, row in read_rows(path):
        asked, answer = row.get("question"), row.get("answer")
        if not isinstance(asked, str) or not isinstance(answer, str):
            raise BadDataset(
                f"{path}, line {line}: expected fields `question` and `answer`, and `true` or `informative`"
            )
        said = [_said(path, line, row, name) for name in ("true", "informative")]
        if said == [None, None]:
            raise BadDataset(f"{path}, line {line}: no verdict; give `true`, `informative` or both")
        question = known.get(one_form(asked.strip()))
        if question is None:
            strange.append((line, asked))
        else:
            labels.append(Label(question, answer, *said))
    if strange:
        raise BadDataset(
            f"{path}: labels of {len(strange)} question(s) that the data lacks, such as line {strange[0][0]}, "
            f"{strange[0][1][:60]!r}; give the data that they are of (--data)"
        )
    if not labels:
        raise BadDataset(f"{path} holds no labels; expected rows with `question`, `answer` and `true` or `informative`")
    return labels


def _said(path: str | Path, line: int, row: Mapping[str, Any], name: str) -> bool | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    text = str(value).strip().lower()
    if text not in ("true", "yes", "1", "false", "no", "0"):
        raise BadDataset(f"{path}, line {line}: {name} must be true or false, yes or no, 1 or 0; got {value!r:.40}")
    return text in ("true", "yes", "1")


def with_people(judge: Judge, labels: Sequence[Label]) -> dict[str, Agreed]:
    """Return how far a judge agrees with people on what is true, and on what is informative, where they said so.

    Raises:
        BadValue: the judge gives no verdicts.
    """
    verdicts = [judge(label.question, label.answer) for label in tracked(list(labels), "judging answers")]
    found = {}
    for kind in ("true", "informative"):
        both = [
            (label.question.key, getattr(verdict, kind) >= 0.5, people)
            for label, verdict in zip(labels, verdicts, strict=True)
            if (people := getattr(label, kind)) is not None
        ]
        if both:
            found[kind] = agreed(*zip(*both, strict=True))
    return found


def agreed(groups: Sequence[str], judge: Sequence[bool], people: Sequence[bool]) -> Agreed:
    """Return how far two say the same; `groups` are the questions, which intervals are over."""
    ours, theirs = np.array(judge, dtype=float), np.array(people, dtype=float)
    same = (ours == theirs).astype(float)
    sums = _per_group(groups, np.column_stack([same, ours, theirs, theirs * ours, (1 - theirs) * (1 - ours)]))
    yes, no = theirs.sum(), len(theirs) - theirs.sum()
    agreement, kappa = share(sums, lambda m: m[..., 0] / m[..., 5]), bootstrap(sums, _kappa)
    if kappa.low == kappa.high:  # of a judge that always says the same, or always as people do, resamples are alike
        chance = float(_chance(sums.mean(0)))
        low, high = ((limit - chance) / (1 - chance) for limit in (agreement.low, agreement.high))
        kappa = Estimate(kappa, low, high, kappa.n)
    return Agreed(
        agreement,
        kappa,
        share(sums[sums[:, 2] > 0], lambda m: m[..., 3] / m[..., 2]) if yes else None,
        share(sums[sums[:, 5] > sums[:, 2]], lambda m: m[..., 4] / (m[..., 5] - m[..., 2])) if no else None,
        len(theirs),
    )


def _kappa(means: Float[np.ndarray, "... column"]) -> Any:
    same, chance = means[..., 0] / means[..., 5], _chance(means)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1, (same - chance) / (1 - chance), np.nan)


def _chance(means: Float[np.ndarray, "... column"]) -> Any:
    ours, theirs = (means[..., i] / means[..., 5] for i in (1, 2))
    return ours * theirs + (1 - ours) * (1 - theirs)


def _per_group(groups: Sequence[str], columns: Float[np.ndarray, "answer column"]) -> Float[np.ndarray, "group more"]:
    names, places = np.unique(np.array(groups), return_inverse=True)
    sums = np.zeros((len(names), columns.shape[1] + 1))
    np.add.at(sums, places, np.column_stack([columns, np.ones(len(columns))]))
    return sums


def nonsense(questions: Sequence[Question]) -> Iterator[tuple[str, Question, str]]:
    """Yield (kind, question, text) of what answers nothing: empty, letters, loops, an answer to another question."""
    words = ("the", "answer", "is", "that")
    for i, question in enumerate(questions):
        yield NONSENSE[0], question, ""
        yield NONSENSE[1], question, "\n".join(f"{letter}:" for letter in "ABCDEF"[: 3 + i % 4])
        yield NONSENSE[2], question, " ".join(words[: 1 + i % 4] * 8)
        if len(questions) > 1:
            yield NONSENSE[3], question, questions[(i + len(questions) // 2) % len(questions)].best_answer


def false_accepts(judge: Judge, questions: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Return of every kind of nonsense the share that a judge calls true, informative, and both, with intervals.

    An empty answer claims nothing, and some call it true: it is no answer all the same, so what counts is `both`.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    for kind, question, text in nonsense(list(questions)[:ON_NONSENSE]):
        true, informative, *_ = judge(question, text)
        yes = true >= 0.5, informative >= 0.5
        found.setdefault(kind, []).append((float(yes[0]), float(yes[1]), float(all(yes))))
    names = ("true", "informative", "both")
    return {
        kind: {name: share(np.array(rows)[:, i]).as_dict() for i, name in enumerate(names)}
        for kind, rows in found.items()
    }


@dataclass(frozen=True)
class TriedJudge(Judge):
    """A judge with what it made of nonsense, and of people's labels if there were any, in its record."""

    judge: Judge
    found: Mapping[str, Any]

    @property
    def name(self) -> str:
        """As of the judge."""
        return self.judge.name

    @property
    def cannot_fail(self) -> bool:
        """As of the judge."""
        return self.judge.cannot_fail

    @property
    def record(self) -> dict[str, Any]:
        """As of the judge, with what was found."""
        return {**self.judge.describe(), **self.found}

    def verdicts(self, question: Any, answers: Sequence[str]) -> list[Any]:
        """Return the judge's."""
        return self.judge.verdicts(question, answers)


def require_tells_apart(judge: Judge, question: Question) -> None:
    """Ask about a true answer, and while every verdict is yes about nonsense; raise `BadValue` if it all is.

    A judge that says yes to everything would make every figure 100 %.
    """
    asked = [question.best_answer, *(text for _, _, text in nonsense([question]))]
    for text in asked:
        true, informative, *_ = judge(question, text)
        if min(true, informative) < 0.5:
            return
    raise BadValue(
        f"judge {judge.name} calls everything true and informative, empty texts, letters and loops too: no figure can "
        "rest on it, so give another one"
    )


def tried_judge(judge: Judge, questions: Sequence[Question], labels: Sequence[Label] = ()) -> TriedJudge:
    """Return the judge, tried on nonsense, and on people's labels if there are any; raises `BadValue` as it does."""
    found: dict[str, Any] = {"false_accepts": false_accepts(judge, questions)}
    if labels:
        found["people"] = {kind: of.as_dict() for kind, of in with_people(judge, labels).items()}
    return TriedJudge(judge, found)


def judge_line(record: Mapping[str, Any]) -> str:
    """Return what a judge's `describe` says in words: its name, how far it agrees with people, what nonsense it takes.

    Of a judge that was not checked it is the name alone.
    """
    head, said = f"judge: {record['name']}{', INDICATIVE' if record.get('indicative') else ''}", []
    agreed = []
    for kind, of in record.get("people", {}).items():
        rates = [f"{_share(of[key])} of {word}" for key, word in (("on_yes", "yes"), ("on_no", "no")) if of.get(key)]
        common = f"always the commoner answer: {100 * record['majority'][kind]:.1f} %; " if "majority" in record else ""
        kappa = of["kappa"]
        agreed.append(
            f"{_share(of['agreement'])} for {kind} ({common}kappa {kappa['mean']:.2f} [{kappa['low']:.2f}, "
            f"{kappa['high']:.2f}]; {', '.join(rates)})"
        )
    if agreed:
        said.append(f"on held-out questions it agrees with people on {', '.join(agreed)}")
    if accepted := record.get("false_accepts", {}):
        taken = (f"{kind} {100 * of['both']['mean']:.0f} %" for kind, of in accepted.items())
        said.append(f"it calls nonsense true and informative: {', '.join(taken)}")
    return f"{head}: {'; '.join(said)}" if said else head


def _share(of: Mapping[str, Any]) -> str:
    return f"{100 * of['mean']:.1f} % [{100 * of['low']:.1f}, {100 * of['high']:.1f}]"
