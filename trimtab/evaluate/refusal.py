"""Over-refusal: how often the edited model refuses prompts that it ought to answer."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.evaluate.counted import CountedAnswers
from trimtab.evaluate.figure import Figure
from trimtab.evaluate.wording import refuses
from trimtab.protocols import Meter


def refusal_meters(prompts: Sequence[str], max_new_tokens: int = 50) -> tuple[Meter, ...]:
    """Return the share of prompts, all of which ought to be answered, that the edited model refuses."""
    source = CountedAnswers(tuple(prompts), refuses, max_new_tokens)
    return (Figure(source, "over_refusal", "refusals", ("counted",), better="down", collateral=True),)
