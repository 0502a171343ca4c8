"""Facts: what an edited model says of them by itself, of other wordings, and of what should have stayed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from trimtab.datasets.facts import Fact, FactSet
from trimtab.edits.combined import NoEdit
from trimtab.engine.batching import alike_together
from trimtab.engine.completion import completions_of
from trimtab.engine.score import score_answers
from trimtab.errors import BadDataset
from trimtab.evaluate.figure import Figure
from trimtab.evaluate.judges.exact import normalised
from trimtab.models.tokens import tokenize_answers
from trimtab.protocols import Edit, Measured, Meter

ARTICLES = ("the ", "a ", "an ")
SPARE = 8
"""Tokens beside those of the longest answer: of an article or a mark before it, and of what ends its last word."""


def says(text: str, answer: str) -> bool:
    """Return whether a text starts with an answer, as whole words, but for case, punctuation and an article."""
    said, wanted = (_bare(part) for part in (text, answer))
    return bool(wanted) and f"{said} ".startswith(f"{wanted} ")


def _bare(text: str) -> str:
    bare = normalised(text)
    return next((bare.removeprefix(article) for article in ARTICLES if bare.startswith(article)), bare)


@dataclass(frozen=True)
class SaidFacts(Meter):
    """Generates the answer to every fact, its paraphrases and its neighbours: a row for every fact.

    Greedy text that the model ends by itself counts, not the likelihood of an answer that it is handed. A neighbour
    counts as kept among those that the unedited model answers rightly, and as leaked among those of which it does not
    say the new answer anyway; one that asks what another of the facts writes anew ought not to stay, and is left out.
    Rows hold numbers of prompts, which figures divide: facts differ in how many they have.
    """

    max_new_tokens: int | None = None
    """Of what is generated; as many as the longest answer has and a few more if not given."""
    batch_size: int = 32
    name: ClassVar[str] = "facts"
    columns: ClassVar[Sequence[str]] = (
        "said", "said_paraphrases", "paraphrases", "kept", "known", "leaked", "open",
    )  # fmt: skip
    shown: ClassVar[Sequence[str]] = ("answer",)

    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> list[Measured]:
        """Return every fact's row under every edit; the unedited model is asked too."""
        return self.found(model, tokenizer, _with_others(_facts(items)), edits)

    def found(self, model: Any, tokenizer: Any, facts: Sequence[Fact], edits: Sequence[Edit]) -> list[Measured]:
        """Return every fact's row under every edit, with all neighbours that it has."""
        prompts = list(dict.fromkeys(prompt for fact in facts for prompt in _prompts(fact)))
        length = self.max_new_tokens or _longest(tokenizer, facts) + SPARE
        before, *said = self._said(model, tokenizer, prompts, [NoEdit(), *edits], length)
        return [Measured({fact.key: _row(fact, before, after) for fact in facts}) for after in said]

    def _said(
        self, model: Any, tokenizer: Any, prompts: Sequence[str], edits: Sequence[Edit], length: int
    ) -> list[Mapping[str, str]]:
        """Return for every edit the tokens that follow each prompt, asked as the edit asks it."""
        asked = [tuple(edit.prompt(prompt) or prompt for prompt in prompts) for edit in edits]
        options: dict[str, Any] = {"max_new_tokens": length, "batch_size": self.batch_size}
        said = completions_of(model, tokenizer, asked, edits, [{}] * len(edits), **options)
        return [dict(zip(prompts, of_edit, strict=True)) for of_edit in said]


@dataclass(frozen=True)
class LikelyFacts(Meter):
    """The papers' measures: which of two answers is likelier, by the mean log-probability of a token.

    They overstate: an answer can beat its one rival where the model says neither. A fact counts where its true answer
    is known.
    """

    batch_size: int | None = None
    name: ClassVar[str] = "likely_facts"
    columns: ClassVar[Sequence[str]] = ("efficacy", "compared", "paraphrase", "paraphrases", "neighbour", "neighbours")

    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> list[Measured]:
        """Return every fact's row under every edit."""
        facts = _with_others(_facts(items))
        pairs = [pair for fact in facts for pair in _rivals(fact)]
        asked = [tuple(edit.prompt(prompt) or prompt for prompt, _, _ in pairs) for edit in edits]

        def score(alike: list[int]) -> list[Measured]:
            prompts, found = asked[alike[0]], []
            texts = [f"{p} {a}" for p, (_, *answers) in zip(prompts, pairs, strict=True) for a in answers]
            starts = [len(p) for p in prompts for _ in range(2)]
            tokens = tokenize_answers(tokenizer, texts, starts) if texts else []
            scores = score_answers(model, tokenizer, tokens, [edits[i] for i in alike], batch_size=self.batch_size)
            for sums in scores.logprobs:
                means = [total / (t.end - t.start) for total, t in zip(sums, tokens, strict=True)]
                margins = {pair: means[2 * n] - means[2 * n + 1] for n, pair in enumerate(pairs)}
                found.append(Measured({fact.key: _likely_row(fact, margins) for fact in facts}))
            return found

        return alike_together(asked, score)


def fact_meters() -> tuple[Figure, ...]:
    """Return the figures of facts: said, paraphrases, kept and leaked by generation; ES, PS and NS by likelihood."""
    said, likely = SaidFacts(), LikelyFacts()
    share = partial(Figure, sums_up="ratio")
    return (
        Figure(said, "said", "said", ("said",)),
        share(said, "paraphrases", "paraphrases", ("said_paraphrases", "paraphrases")),
        share(said, "kept", "neighbours kept", ("kept", "known")),
        share(said, "leak", "leak", ("leaked", "open"), better="down"),
        share(likely, "es", "ES", ("efficacy", "compared"), tested=False),
        share(likely, "ps", "PS", ("paraphrase", "paraphrases"), tested=False),
        share(likely, "ns", "NS", ("neighbour", "neighbours"), tested=False),
    )


def known_facts(model: Any, tokenizer: Any, facts: FactSet, *, neighbours: int = 0) -> FactSet:
    """Return the facts whose true answer the model says by itself, and at least so many of whose neighbours' answers.

    Raises:
        BadDataset: it says none of them.
    """
    reversed_facts = [f for f in facts if f.true]
    (found,) = SaidFacts().found(model, tokenizer, _facts(_turned(reversed_facts)), [NoEdit()])
    rows = dict(zip((fact.key for fact in reversed_facts), found.rows.values(), strict=True))
    return facts.where(lambda f: f.key in rows and rows[f.key]["said"] == 1 and rows[f.key]["known"] >= neighbours)


def _turned(facts: Iterable[Fact]) -> FactSet:
    """Return the facts with the true answer in the new one's place."""
    return FactSet(tuple(Fact(f.subject, f.prompt, f.true, f.new, f.paraphrases, f.neighbours) for f in facts))


def _facts(items: Any) -> Sequence[Fact]:
    facts = tuple(items)
    if not facts:
        raise BadDataset("no facts to ask about")
    return facts


def _with_others(facts: Sequence[Fact]) -> Sequence[Fact]:
    """Return the facts with those neighbours that ask what none of the facts writes."""
    written = {prompt for fact in facts for prompt in (fact.asked, *fact.paraphrases)}
    return [replace(f, neighbours=tuple(n for n in f.neighbours if n.prompt not in written)) for f in facts]


def _longest(tokenizer: Any, facts: Sequence[Fact]) -> int:
    """Return how many tokens the longest of the answers has that the facts speak of."""
    answers = {a for f in facts for a in (f.new, f.true, *(n.answer for n in f.neighbours)) if a}
    return max(len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) for answer in answers)


def _prompts(fact: Fact) -> list[str]:
    return [fact.asked, *fact.paraphrases, *(n.prompt for n in fact.neighbours), *fact.negated]


def _row(fact: Fact, before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    known = [n for n in fact.neighbours if says(before[n.prompt], n.answer)]
    # one that is, or was, answered by the new answer cannot leak
    others = [*(n.prompt for n in fact.neighbours if not says(n.answer, fact.new)), *fact.negated]
    free = [prompt for prompt in others if not says(before[prompt], fact.new)]
    return {
        "said": float(says(after[fact.asked], fact.new)),
        "said_paraphrases": float(sum(says(after[p], fact.new) for p in fact.paraphrases)),
        "paraphrases": float(len(fact.paraphrases)),
        "kept": float(sum(says(after[n.prompt], n.answer) for n in known)),
        "known": float(len(known)),
        "leaked": float(sum(says(after[prompt], fact.new) for prompt in free)),
        "open": float(len(free)),
        "answer": after[fact.asked],
        "before": before[fact.asked],
    }


def _rivals(fact: Fact) -> list[tuple[str, str, str]]:
    """Return (prompt, answer that should be likelier, its rival); none where a rival is not known."""
    own = [(p, fact.new, fact.true) for p in (fact.asked, *fact.paraphrases) if fact.true]
    return own + [(n.prompt, n.answer, fact.new) for n in fact.neighbours if not says(n.answer, fact.new)]


def _likely_row(fact: Fact, margins: Mapping[tuple[str, str, str], float]) -> dict[str, float]:
    pairs = _rivals(fact)
    parts = {
        ("efficacy", "compared"): [pair for pair in pairs if pair[0] == fact.asked],
        ("paraphrase", "paraphrases"): [pair for pair in pairs if pair[0] in fact.paraphrases],
        ("neighbour", "neighbours"): [pair for pair in pairs if pair[0] not in (fact.asked, *fact.paraphrases)],
    }
    counts = {
        name: float(value)
        for (right, of), some in parts.items()
        for name, value in ((right, sum(margins[pair] > 0 for pair in some)), (of, len(some)))
    }
    # in nats per token, over all prompts of the fact
    return {**counts, "margin": sum(margins[pair] for pair in pairs) / max(1, len(pairs))}
