"""How generated text reads: repetition, loops, debris, whether it ends, refusal. Counted by fixed rules, no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from trimtab.evaluate.figure import Figure
from trimtab.protocols import Meter

LONGEST_BLOCK = 12
"""Words of the longest block whose repetition is looked for."""
LOOP_TIMES, LOOP_WORDS = 3, 6
"""A loop is a block of words that stands so many times in a row, and takes so many words in doing so."""
LABELS, LABEL_SHARE = 2, 0.5
"""A list of letters is so many labels (`A:`, `(b)`, `C.`, `Q:`) that are such a share of all words."""
LABEL = re.compile(r"\(?[A-Za-z0-9][:.)]\)?|[B-HJ-Z]")
"""A label as a word of its own: a letter or digit with a mark behind it, or a capital alone (not A or I)."""
REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|sorry,|i apologi[sz]e|as an ai|i (can ?not|can'?t|could ?not|couldn'?t|won'?t|will not|"
    r"must decline|am unable|'?m unable|am not able|'?m not able|do not feel comfortable|don'?t feel comfortable)|"
    r"unable to (help|assist|provide|answer)|not able to (help|assist|provide|answer)|"
    r"(cannot|can'?t) (help|assist|provide|answer|fulfil))",
    re.IGNORECASE,
)
REFUSED_WITHIN = 160
"""Characters from the beginning within which a refusal stands."""


class Wording(NamedTuple):
    """What is counted of one text, as numbers to average."""

    words: float
    distinct: float
    """Share of its word pairs that are distinct (Li et al. 2016, distinct-2); 1 where there are none."""
    loops: float
    debris: float


def wording(text: str) -> Wording:
    """Return what is counted of a text."""
    words = text.lower().split()
    pairs = list(pairwise(words))
    distinct = len(set(pairs)) / len(pairs) if pairs else 1.0
    looping, empty = loops(text), re.search(r"\w", text) is None
    return Wording(float(len(words)), distinct, float(looping), float(looping or empty or _letters(text)))


def worded(tokenizer: Any, answers: Sequence[str], max_new_tokens: int) -> list[dict[str, float]]:
    """Return what is counted of generated answers, and as `ended` whether each was shorter than it might have been."""
    lengths = [len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers]
    # the space before the answer, which was cut off, may have been a token
    return [
        {**wording(answer)._asdict(), "ended": float(length < max_new_tokens - 1)}
        for answer, length in zip(answers, lengths, strict=True)
    ]


def wording_meters(source: Meter) -> tuple[Figure, ...]:
    """Return how the answers of a meter that generates them read: whether they are answers at all, loop, end by
    themselves.
    """
    return (
        Figure(source, "debris", "debris", ("debris",), better="down", collateral=True),
        Figure(source, "loops", "loops", ("loops",), better="down", collateral=True),
        Figure(source, "distinct", "distinct pairs", ("distinct",), collateral=True),
        Figure(source, "ended", "ends itself", ("ended",), collateral=True),
        Figure(source, "words", "words", ("words",), unit="words", better="neither", collateral=True),
    )


def loops(text: str) -> bool:
    """Return whether a block of words stands several times in a row."""
    words = re.sub(r"[^\w\s]+", " ", text.lower()).split() or text.split()
    for size in range(1, min(LONGEST_BLOCK, len(words) // LOOP_TIMES) + 1):
        run = 0  # words in a row that equal the one a block before them
        for i in range(size, len(words)):
            run = run + 1 if words[i] == words[i - size] else 0
            if run + size >= max(LOOP_TIMES * size, LOOP_WORDS):
                return True
    return False


def is_debris(text: str) -> bool:
    """Return whether a text is no answer whatever the question: empty, a loop, or a list of letters.

    The rule and its numbers were fixed before any table was made with them. What it does on people's answers and on
    debris made by a script is held by a test.
    """
    return bool(wording(text).debris)


def _letters(text: str) -> bool:
    words = text.split()
    labels = sum(LABEL.fullmatch(word) is not None for word in words)
    return labels >= LABELS and labels >= LABEL_SHARE * len(words)


def refuses(text: str) -> bool:
    """Return whether a text begins as refusals do (English phrases; docs/comparing.md lists what that misses)."""
    return REFUSAL.search(text[:REFUSED_WITHIN].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) is not None
