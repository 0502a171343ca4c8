"""Behaviours that ship with trimtab: contrast pairs written for this project, and a property that is counted."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from trimtab.datasets.pairs import ContrastPair, PairSet
from trimtab.errors import BadDataset, nearest

BEHAVIOURS = ("cheerful", "casual", "unsure")
"""Cheerful in place of grumpy, casual in place of formal, admitting not to know in place of guessing."""


@dataclass(frozen=True, repr=False)
class Behaviour:
    """A behaviour: pairs to fit on, prompts to try it on, and what is counted in the answers, so that none judges."""

    pairs: PairSet
    """The prompts of the pairs are all different, and neither side is the longer one as a rule."""
    prompts: tuple[str, ...]
    """Questions that are in no pair and call for neither side."""
    counted: str
    """What `count` counts, in words."""
    rule: Literal["words", "phrases"]
    """Different words per ten different words, or whether a phrase stands in the text."""
    unit: str
    """Of `count`."""
    marks: re.Pattern[str]
    """Words or phrases of the behaviour."""
    opposite: re.Pattern[str] | None = None
    """Those of its opposite."""

    def __repr__(self) -> str:
        return f"Behaviour({self.name!r}, {len(self.pairs)} pairs, {len(self.prompts)} prompts)"

    @property
    def name(self) -> str:
        """The name of its pairs."""
        return self.pairs.name

    def count(self, text: str) -> float:
        """Return how much of the behaviour a text shows, as `counted` says; 0 of an empty one.

        A word counts once, so that a text which repeats itself gains nothing.
        """
        text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        found = {m[0] for m in self.marks.finditer(text)}
        if self.rule == "phrases":
            return float(bool(found))
        other = {m[0] for m in self.opposite.finditer(text)} if self.opposite else set()
        return 10 * (len(found) - len(other)) / max(1, len(set(re.findall(r"[\w']+", text))))


def behaviour(name: str) -> Behaviour:
    """Return the behaviour of this name: `"cheerful"`, `"casual"` or `"unsure"`.

    Each has more than 120 pairs and 24 prompts, written for this project (MIT, as the rest of it).

    Raises:
        BadDataset: an unknown name.
    """
    if name not in BEHAVIOURS:
        raise BadDataset(f"no behaviour {name!r} ships{nearest(name, BEHAVIOURS)}")
    plain = json.loads(files("trimtab.datasets").joinpath(f"data/{name}.json").read_text(encoding="utf-8"))
    pairs = tuple(ContrastPair(prompt, (one,), (other,)) for prompt, one, other in plain["pairs"])
    return Behaviour(
        PairSet(pairs, name),
        tuple(plain["prompts"]),
        plain["counted"],
        plain["rule"],
        plain["unit"],
        _any_of(plain["for"]),
        _any_of(plain["against"]) if plain["against"] else None,
    )


def _any_of(patterns: list[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b")
