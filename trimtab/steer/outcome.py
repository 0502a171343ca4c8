"""Outcome: what became of a fit, in a sentence with what to try next, and answers of several strengths beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp
from typing import Any, Literal

from trimtab.engine.conversation import answers
from trimtab.protocols import Edit

VISIBLE = 3.0
"""Nats of margin (a factor of 20 between the sides) from which on a shift of contrast pairs is said to work."""
REPEATS = 0.3
"""The share of repeated word triples from which on an answer is said to repeat itself."""


@dataclass(frozen=True)
class Sample:
    """Answers to a few prompts at one strength."""

    strength: float | int
    kl: float
    answers: tuple[str, ...]

    @property
    def repeats(self) -> float:
        """The share of word triples that stood in the answer before, of the answer where it is largest."""
        return max((repetition(text) for text in self.answers), default=0.0)


def repetition(text: str) -> float:
    """Return the share (0 to 1) of a text's word triples that it has had before."""
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def sample_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    shift: Edit,
    strengths: Mapping[float, float],
    *,
    tokens: int = 20,
) -> list[Sample]:
    """Return answers of the unedited model (strength 0), then of the shift at some strengths, weak first.

    `strengths` has the KL of each. Prompts are asked as `trimtab generate` asks them, in the chat template where there
    is one, and answered greedily.
    """
    found = []
    for strength, kl in {0.0: 0.0, **dict(sorted(strengths.items()))}.items():
        edit = shift.at_strength(strength) if strength else None
        said = answers(model, tokenizer, prompts, edit, settings={"max_new_tokens": tokens})
        found.append(Sample(strength, kl, tuple(said)))
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of a fit."""

    verdict: Literal["works", "works weakly", "does not work"]
    sentence: str

    def as_dict(self) -> dict[str, str]:
        """Return plain values for JSON."""
        return asdict(self)


def outcome_of(sweep: Mapping[str, Any], *, better: str = "up") -> Outcome:
    """Return what a sweep's record (of `choose_place` or `choose_strength`) says of the setting that it chose.

    It works where the score gained, beyond chance and more than twice what random directions of the same norm gain; of
    pairs' margins `VISIBLE` nats or more.
    """
    chosen, before = sweep["chosen"], sweep["trials"][0]["score"]
    sign, gained = (-1 if better == "down" else 1), sweep.get("gain")
    gain = sign * (chosen["score"] - before)
    control = next((t for t in sweep["trials"] if t.get("control") == "random directions"), None)
    by_chance = 0.0 if control is None else sign * (control["score"] - before)
    margin = sweep["metric"] == "pair_margin"
    figures = f"{sweep['metric']} {before:.3f} -> {chosen['score']:.3f}"
    if margin:
        figures = f"the positive sides became {_times(gain)} against the negative ones on held-out pairs"
    at = f"at a KL of {chosen['kl']:.2f}"
    if gain <= 0:
        return Outcome(
            "does not work",
            f"does not work within a KL of {sweep['kl_budget']:g}: no setting beats the unedited model ({figures}). "
            "Try a larger --kl-budget, the other --site, or more pairs; what a model cannot be steered to it may "
            "be tuned to (trimtab tune)",
        )
    weak = []
    if gained is not None and sign * gained["low" if sign > 0 else "high"] <= 0:
        weak.append(f"within chance of nothing on {gained['n']} items")
    if gain < 2 * by_chance:
        weak.append("random directions of the same norm gain half as much or more")
    if margin and gain < VISIBLE:
        weak.append("too little to show in most answers")
    if weak:
        return Outcome(
            "works weakly",
            f"works weakly: {figures} {at}; {', '.join(weak)}. Try more pairs, pairs that differ in the "
            "behaviour alone, or a larger --kl-budget",
        )
    return Outcome("works", f"works: {figures} {at}")


def _times(nats: float) -> str:
    if nats <= 0:
        return "no likelier"
    return f"{exp(nats):.1f} times likelier" if nats < 6.9 else "more than 1000 times likelier"
