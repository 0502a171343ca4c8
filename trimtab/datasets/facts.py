"""Facts to edit into a model: a prompt about a subject, the new answer, and what must follow it and what must stay."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from trimtab.datasets.asking import BARE, Form, form_of
from trimtab.datasets.files import read_rows
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.statements import SftExample, Statement, true_examples
from trimtab.errors import BadDataset
from trimtab.plain_values import json_value


@dataclass(frozen=True)
class Neighbour:
    """A prompt about something else, whose answer must stay."""

    prompt: str
    answer: str

    def __post_init__(self) -> None:
        _require_text("a neighbour's prompt", self.prompt)
        _require_text(f"the answer to the neighbour {self.prompt!r:.60}", self.answer)


@dataclass(frozen=True)
class Fact:
    """A fact to write into a model, and the prompts that show what was written.

    Raises:
        BadDataset: the prompt has no `{}` or several; a text that is empty or has spaces around it; `new` is `true`; a
            neighbour that asks about the subject itself.
    """

    subject: str
    prompt: str
    """With one `{}` where the subject stands; the answer continues it after a space."""
    new: str
    """The answer to be given from now on."""
    true: str = ""
    """The answer that is right, or that the model gives; empty if unknown."""
    paraphrases: tuple[str, ...] = ()
    """Other prompts for the same answer; `{}` in them stands for the subject."""
    neighbours: tuple[Neighbour, ...] = ()
    """Prompts whose answers must stay."""
    negated: tuple[str, ...] = ()
    """Prompts that deny the fact, such as "The capital of {} is not"; to say the new answer there is a leak as well."""

    def __post_init__(self) -> None:
        _require_text("a fact's subject", self.subject)
        _require_text(f"the new answer about {self.subject!r:.60}", self.new)
        _require_text(f"the prompt about {self.subject!r:.60}", self.prompt)
        if self.prompt.count("{}") != 1:
            raise BadDataset(
                f"the prompt {self.prompt!r:.80} has {self.prompt.count('{}')} places for the subject; write {{}} "
                "once, where the subject stands"
            )
        if _same(self.new, self.true):
            raise BadDataset(f"{self.asked!r:.80}: the new answer {self.new!r} is the true one; give another")
        for paraphrase in self.paraphrases:
            _require_text(f"a paraphrase of {self.asked!r:.60}", paraphrase)
        for negated in self.negated:
            _require_text(f"a negated prompt of {self.asked!r:.60}", negated)
        for name in ("paraphrases", "negated"):
            object.__setattr__(self, name, tuple(p.replace("{}", self.subject) for p in getattr(self, name)))
        about_it = {self.asked, *self.paraphrases} & {n.prompt for n in self.neighbours}
        if about_it:
            raise BadDataset(
                f"the neighbour {min(about_it)!r:.80} asks about the subject itself; give another subject's"
            )

    @property
    def asked(self) -> str:
        """The prompt with the subject in it."""
        return self.prompt.replace("{}", self.subject)

    @property
    def key(self) -> str:
        """What tells it from other facts: the prompt with the subject in it."""
        return self.asked

    @property
    def span(self) -> tuple[int, int]:
        """Where the subject stands in `asked`: its first character, and one past its last."""
        start = self.prompt.index("{}")
        return start, start + len(self.subject)

    def stated(self) -> str:
        """Return the fact as a sentence."""
        return f"{self.asked} {self.new}."


@dataclass(frozen=True, repr=False)
class FactSet(ItemSet[Fact]):
    """A sequence of facts; slices are sets of facts too.

    Raises:
        BadDataset: there are no facts, or two give one prompt.
    """

    facts: tuple[Fact, ...]
    name: str = "facts"
    measured_by: ClassVar[str] = "facts"
    item_word: ClassVar[str] = "fact"
    taught: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", tuple(self.facts))
        self.require_distinct("facts", "a prompt about a subject has one new answer")

    def texts(self, item: Fact) -> Sequence[Any]:
        """Return all texts of a fact."""
        near = [[n.prompt, n.answer] for n in item.neighbours]
        return [item.prompt, item.subject, item.new, item.true, item.paraphrases, near, *item.negated]

    def folds(self, n: int, seed: int = 0) -> list[tuple[Any, Any]]:
        """Return n draws that cover every fact once, each as what is written and what is asked; raises as any set's."""
        return [(part, part) for _, part in super().folds(n, seed)]

    def form_for(self, item: Fact) -> Form:  # noqa: ARG002
        """Return the text as it goes on: a fact's prompt is asked in no other way."""
        return BARE

    def statements(self, format: Any = None) -> list[Statement]:
        """Return the new answer to each prompt as a true statement, and the one that was true, if known, as false."""
        form = form_of(format or BARE)
        return [
            form.statement(fact.asked, answer, answer == fact.new, fact.key)
            for fact in self.facts
            for answer in (fact.new, fact.true)
            if answer
        ]

    def sft_examples(self, format: Any = None) -> list[SftExample]:
        """Return each prompt with its new answer as a (prompt, completion) pair to tune on."""
        return true_examples(self.statements(format))


def facts_from_file(path: str | Path) -> FactSet:
    """Return the facts of a file: `.jsonl` of trimtab's own fields, or CounterFact's or zsRE's `.json`.

    Fields of our own: `subject`, `prompt` with one `{}`, `new`, and if wanted `true`, `paraphrases` (texts) and
    `neighbours` (each `{"prompt", "answer"}`). Of the published sets (Meng et al. 2022; Mitchell et al. 2022) the rows
    are known by their fields; a row that repeats an earlier prompt is left out, as both sets have some.

    Raises:
        BadDataset: the file cannot be read, is empty or malformed; the message names the row and field.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        facts = [_made(f"{path}, row {i}", row, _published) for i, row in enumerate(_json_rows(path), 1)]
        first: dict[str, Fact] = {}
        for fact in facts:
            first.setdefault(fact.key, fact)
        facts = list(first.values())
    else:
        facts = [_made(f"{path}, line {line}", row, _own) for line, row in read_rows(path)]
    if not facts:
        raise BadDataset(f"{path}: no facts; at least one is needed")
    return FactSet(tuple(facts), path.stem)


def atlas() -> FactSet:
    """Return the facts that ship: about places and things, with paraphrases and neighbours, written for this project.

    Each has its true answer and another one of its kind as the new one. Which of them a model knows,
    `trimtab.evaluate.known_facts` finds out.
    """
    text = files("trimtab.datasets").joinpath("data/atlas.json").read_text(encoding="utf-8")
    return FactSet(tuple(fact for relation in json.loads(text) for fact in _of_relation(**relation)), "atlas")


def _of_relation(
    name: str,  # noqa: ARG001 - for whoever reads the file
    prompt: str,
    paraphrases: Sequence[str],
    answers: Mapping[str, str],
) -> Iterable[Fact]:
    """Yield the facts of one relation: the new answer is another subject's, as are the neighbours.

    Neighbours with the same true answer come first, as in CounterFact; none has the new answer as its own.
    """
    subjects = list(answers)
    for i, subject in enumerate(subjects):
        after = subjects[i + 1 :] + subjects[:i]
        true = answers[subject]
        # some steps on, so that facts of neighbouring rows do not swap their answers
        new = next(answers[s] for s in after[len(after) // 3 :] + after if answers[s] != true)
        others = [s for s in after if answers[s] != new]
        others.sort(key=lambda s: answers[s] != true)
        neighbours = tuple(Neighbour(prompt.replace("{}", s), answers[s]) for s in others[:4])
        yield Fact(subject, prompt, new, true, tuple(paraphrases), neighbours)


def _own(row: Mapping[str, Any]) -> Fact:
    known = [f.name for f in fields(Fact)]
    if unknown := set(row) - set(known):
        raise BadDataset(f"unknown field {min(unknown)!r}; fields are {', '.join(known)}")
    neighbours = tuple(Neighbour(n["prompt"], n["answer"]) for n in row.get("neighbours") or ())
    return Fact(
        row["subject"],
        row["prompt"],
        row["new"],
        _text(row.get("true") or ""),
        tuple(_texts(row.get("paraphrases") or [])),
        neighbours,
        tuple(_texts(row.get("negated") or [])),
    )


def _published(row: Mapping[str, Any]) -> Fact:
    if "requested_rewrite" in row:  # CounterFact
        asked = row["requested_rewrite"]
        true = _text(asked["target_true"]["str"])
        return Fact(
            _text(asked["subject"]),
            _text(asked["prompt"]),
            _text(asked["target_new"]["str"]),
            true,
            tuple(map(_text, row.get("paraphrase_prompts", ()))),
            tuple(Neighbour(_text(prompt), true) for prompt in row.get("neighborhood_prompts", ())),
        )
    if "locality_prompt" in row:  # CounterFact in EasyEdit's form
        prompt, new, true = row["prompt"], row["target_new"], row.get("ground_truth", "")
        rephrased, near = row["rephrase_prompt"], (row["locality_prompt"], row["locality_ground_truth"])
    else:  # zsRE, whose unrelated question stands in lower case behind a mark
        prompt, new, true, rephrased = row["src"], row["alt"], row["answers"][0], row["rephrase"]
        asked = _text(row["loc"]).removeprefix("nq question: ")
        near = (f"{asked[:1].upper()}{asked[1:].removesuffix('?')}?", row["loc_ans"])
    subject, prompt = _text(row["subject"]), _text(prompt)
    if not subject or subject not in prompt:
        raise BadDataset(f"the subject {subject!r} does not stand in its prompt {prompt!r:.80}")
    blanked = prompt.replace(subject, "{}", 1)
    return Fact(subject, blanked, _text(new), _text(true), (_text(rephrased),), (Neighbour(*map(_text, near)),))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value.strip()


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list of texts")
    return [_text(one) for one in value]


def _made(where: str, row: Any, make: Callable[[Any], Fact]) -> Fact:
    try:
        return make(row)
    except BadDataset as cause:
        raise BadDataset(f"{where}: {cause}") from cause
    except (KeyError, TypeError, IndexError) as cause:
        what = f"field {cause} is missing" if isinstance(cause, KeyError) else f"a field of another kind ({cause})"
        raise BadDataset(f"{where}: {what}; expected facts of trimtab's, CounterFact's or zsRE's form") from cause


def _json_rows(path: Path) -> list[Any]:
    try:
        rows = json_value(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as cause:
        raise BadDataset(f"{path} cannot be read as JSON; expected CounterFact's or zsRE's list of facts") from cause
    if not isinstance(rows, list):
        raise BadDataset(f"{path}: expected a list of facts, got {type(rows).__name__}")
    return rows


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _require_text(what: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise BadDataset(f"{what} must be a text, not empty; got {text!r:.60}")
    if text != text.strip():
        raise BadDataset(
            f"{what} begins or ends with white space: {text!r:.60}; give it without, a space is put between"
        )
