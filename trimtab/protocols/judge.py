"""Judge: everything that is ever asked of what says whether answers are true."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trimtab.errors import BadValue


class Verdict(NamedTuple):
    """What a judge says of one answer; probabilities are as good as truth values."""

    true: float
    informative: float
    matched: bool = True
    """False if an exact judge does not know the answer (it then counts as neither true nor informative)."""


class Judge(ABC):
    """Says of answers to a question whether they are true and whether they are informative."""

    name: str
    """A short name for records."""
    record: Mapping[str, Any] = {}
    """What stands beside its figures: agreement with people, false accepts on nonsense."""

    cannot_fail: bool = False
    """Whether it can be asked again at any time at no cost, so that nothing is kept for it."""

    @abstractmethod
    def verdicts(self, question: Any, answers: Sequence[str]) -> list[Verdict]:
        """Return the verdict on each answer to the question, from 0 to 1."""

    def __call__(self, question: Any, answer: str) -> Verdict:
        """Return the verdict on one answer; raises `BadValue` naming the judge if it gives none from 0 to 1."""
        given: Any = self.verdicts(question, [answer])[0]
        try:
            if isinstance(given, str):
                raise TypeError("a text is not a pair of numbers")
            verdict = Verdict(float(given[0]), float(given[1]), bool(given[2]) if len(given) > 2 else True)
        except (TypeError, ValueError, LookupError, RuntimeError) as cause:
            raise BadValue(f"judge {self.name} returned {given!r:.80}; expected Verdict(true, informative)") from cause
        if not (0 <= verdict.true <= 1 and 0 <= verdict.informative <= 1):
            raise BadValue(f"judge {self.name} returned {given!r:.80}; true and informative must lie between 0 and 1")
        return verdict

    def describe(self) -> dict[str, Any]:
        """Return its name with what stands beside its figures."""
        return {"name": self.name, **self.record}


@dataclass(frozen=True)
class CallableJudge(Judge):
    """A function `(question, answer) -> Verdict` as a judge, by its name and the `record` that it may carry."""

    function: Callable[[Any, str], Any]

    @property
    def name(self) -> str:
        """The record's name, or the function's, or its class's."""
        given = getattr(self.function, "__name__", type(self.function).__name__)
        return str(self.record.get("name", given))

    @property
    def record(self) -> Mapping[str, Any]:
        """What the function says of itself."""
        return getattr(self.function, "record", {})

    def verdicts(self, question: Any, answers: Sequence[str]) -> list[Any]:
        """Return what the function says of each answer."""
        return [self.function(question, answer) for answer in answers]


def as_judge(value: Any) -> Judge:
    """Return a judge as it is, and a function as a judge; raises `BadValue` for anything else, such as a class."""
    if isinstance(value, Judge):
        return value
    if isinstance(value, type) or not callable(value):
        raise BadValue(
            f"{value!r:.60} is no judge: derive its class from Judge and give an instance, or give a function "
            "(question, answer) -> Verdict"
        )
    return CallableJudge(value)
