"""Outcome: what became of a fit, in a sentence with what to try next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import exp, inf
from typing import Any, Literal

from trimtab.steer.screen import Screen

VISIBLE, BARELY = {"reading": 0.25, "pair_margin": 3.0}, {"reading": 0.1}
"""What a score must gain for a shift to be said to work, and to work at all: of answers, a share of the way that was
left to the positive texts; of pairs, nats (3: the positive side became 20 times likelier)."""
REPEATS = 0.1
"""How much more of their word triples answers may repeat than the unedited model's do."""
UNLIKELY = 1.0
"""How many nats per token less likely than its own answers the edited model's may be to the unedited one."""
AT_RANDOM = "random directions"
"""What a record calls the control of the same norm."""

ENOUGH = 12
"""Items that directions come from (three fifths of all), from which on it is told that they share none: of fewer, sides
that differ plainly are often taken for such that do not."""
OWN_REPEATS = 0.5
"""Where an unedited model repeats more of them than this, it does not answer what it is asked."""


def is_repetitive(share: float, own: float) -> bool:
    """Return whether answers repeat much more of their word triples than the unedited model's own do."""
    return share > own + REPEATS


def is_unlikely(surprisal: float, own: float) -> bool:
    """Return whether answers are much less likely to the unedited model than its own are, in nats per token.

    Empty ones have no surprisal (infinity): where its own are such, nothing is to be said.
    """
    return surprisal > own + UNLIKELY


def repetition(text: str) -> float:
    """Return the share (0 to 1) of a text's word triples that it has had before."""
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of a fit."""

    verdict: Literal["works", "works weakly", "does not work"]
    sentence: str

    def as_dict(self) -> dict[str, str]:
        """Return plain values for JSON."""
        return asdict(self)


def outcome_of(sweep: Mapping[str, Any], *, better: str = "up", screened: Screen | None = None) -> Outcome:
    """Return what a sweep's record (of `choose_place` or `choose_strength`) says of what it chose.

    It works where the score gained as much as `VISIBLE` asks for, beyond chance, and more than twice what random
    directions gain at the budget's drift, where the record has that control. It does not where the two sides of what
    it was fitted on, `ENOUGH` items or more, differ in no common direction (`Screen.consistent`): sides dealt at random
    lean somewhere too, and a model can be moved there, but not to a behaviour. Of fewer items it works weakly at best,
    and so does a shift whose answers repeat themselves or are unlikely to the unedited model.
    """
    chosen, before, metric = sweep["chosen"], sweep["trials"][0]["score"], sweep["metric"]
    sign, gained = (-1 if better == "down" else 1), sweep.get("gain")
    gain = sign * (chosen["score"] - before)
    control = next((t for t in sweep["trials"] if t.get("control") == AT_RANDOM), None)
    by_chance = 0.0 if control is None else sign * (control["score"] - before)
    figures = f"{metric} {before:.3f} -> {chosen['score']:.3f}"
    if metric == "pair_margin":
        figures = f"the positive sides became {_times(gain)} against the negative ones on held-out pairs"
    shown = gain
    if metric == "reading":
        shown = gain / max(1 - before, 0.25)  # of answers that read like the positive texts already little is asked
        figures = f"answers moved {100 * shown:.0f} % of the way that was left to the positive texts"
    figures += f" at a KL of {chosen['kl']:.2f}"
    weak = []
    if gained is not None and sign * gained["low" if sign > 0 else "high"] <= 0:
        weak.append(f"within chance of nothing on {gained['n']} items")
    if by_chance > 0 and gain < 2 * by_chance:
        weak.append(f"{AT_RANDOM} of the same norm gain half as much or more")
    repeats, surprisal = (sweep.get(name, {"before": 0.0, "after": 0.0}) for name in ("repeats", "surprisal"))
    nats = {when: inf if value is None else value for when, value in surprisal.items()}
    share, was = (f"{100 * repeats[when]:.0f} %" for when in ("after", "before"))
    advice = "more pairs, pairs that differ in the behaviour alone, or a larger --kl-budget"
    if repeats["before"] > OWN_REPEATS:
        weak.append(f"the unedited model's own answers repeat themselves ({was} of word triples)")
        advice = "another form of asking (--asking primer shows a model that is no chat model what an answer is)"
    elif is_repetitive(repeats["after"], repeats["before"]):
        weak.append(f"its answers repeat themselves ({share} of word triples, {was} unedited)")
        advice = (
            "a smaller --kl-budget, or pairs that differ in the behaviour alone; sampled answers (--do-sample "
            "--temperature 0.7) loop less than the greedy ones that were read"
        )
    elif is_unlikely(nats["after"], nats["before"]):
        weak.append(
            f"the unedited model finds its answers unlikely ({nats['after']:.1f} nats per token, "
            f"{nats['before']:.1f} its own): they may be debris"
            if nats["after"] < inf
            else "its answers are empty"
        )
        advice = "later layers (--layers), a smaller --kl-budget, or pairs that differ in the behaviour alone"
    if screened is not None and not screened.consistent:
        weak.insert(
            0, f"the two sides do not differ in a common direction ({screened.n} items, layer {screened.place[0]})"
        )
        if screened.n >= ENOUGH:
            if repeats["before"] <= OWN_REPEATS:
                advice = (
                    "items of which every positive (true) text shows one behaviour and no negative (false) one "
                    "does, in a language that the model knows"
                )
            return Outcome("does not work", f"does not work: {'; '.join([*weak, figures])}. Try {advice}")
    if shown <= BARELY.get(metric, 0):
        why = "no setting beats the unedited model" if gain <= 0 else "what was tried hardly shows"
        return Outcome(
            "does not work",
            f"does not work within a KL of {sweep['kl_budget']:g}: {'; '.join([f'{why} ({figures})', *weak])}. Try "
            f"{advice}, or the other --site; what a model cannot be steered to it may be tuned to (trimtab tune)",
        )
    if shown < VISIBLE.get(metric, 0):
        weak.append("too little to show in most answers")
    if weak:
        return Outcome("works weakly", f"works weakly: {figures}; {', '.join(weak)}. Try {advice}")
    return Outcome("works", f"works: {figures}")


def _times(nats: float) -> str:
    if nats <= 0:
        return "no likelier"
    return f"{exp(nats):.1f} times likelier" if nats < 6.9 else "more than 1000 times likelier"
