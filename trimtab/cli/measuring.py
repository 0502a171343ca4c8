"""The meters that options ask for: those that speak of the data, and the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trimtab.protocols import Meter

PANEL = "What is broken"
OwnMeters = Annotated[
    list[str],
    typer.Option("--meter", metavar="FILE.py:NAME", help="A meter of your own, measured too; may be repeated."),
]


def own_meters(specs: Sequence[str]) -> "tuple[Meter, ...]":
    """Return the meters that FILE.py:NAME name: instances, or classes that need nothing.

    Raises:
        BadValue: no such file or name, or what stands there is no meter.
    """
    from trimtab.cli.user_code import open_instance
    from trimtab.protocols import as_meter

    return tuple(as_meter(open_instance(spec, "meter")) for spec in specs)


@dataclass(frozen=True)
class Broken:
    """What else is measured to see what an edit broke."""

    capability: Annotated[
        list[str],
        typer.Option("--capability", metavar="own|FILE", rich_help_panel=PANEL,
                     help="Choices with one right answer: own for the hundred that ship, or a file of your own, MMLU's "
                     "or ARC's form; may be repeated."),
    ] = field(default_factory=list)  # fmt: skip
    off_target: Annotated[
        list[str],
        typer.Option("--off-target", metavar="FILE", rich_help_panel=PANEL,
                     help="Contrast pairs of another behaviour, which ought to stay as it was; may be repeated."),
    ] = field(default_factory=list)  # fmt: skip
    refusals: Annotated[
        str | None,
        typer.Option("--refusals", metavar="FILE", rich_help_panel=PANEL,
                     help="Prompts that ought to be answered, one a line or in a column `prompt`: the share refused."),
    ] = None  # fmt: skip

    def meters(self, max_new_tokens: int = 50) -> "tuple[Meter, ...]":
        """Return the meters; raises `BadDataset` for a file that cannot be read or holds something else."""
        from trimtab.datasets.choices import capability, choices
        from trimtab.datasets.files import contrast_pairs
        from trimtab.datasets.lines import read_asked
        from trimtab.evaluate.counted import refusal_meters
        from trimtab.evaluate.elsewhere import capability_meters, off_target_meters

        easy = [capability_meters(capability() if name == "own" else choices(name)) for name in self.capability]
        others = [off_target_meters(contrast_pairs(name)) for name in self.off_target]
        refused = [] if self.refusals is None else [refusal_meters(read_asked(self.refusals), max_new_tokens)]
        return tuple(meter for several in (*easy, *others, *refused) for meter in several)


FEW_TEXTS = 32
"""Neutral texts that drift is measured on beside contrast pairs, of which there are few: as exact as those figures."""


def meters_for(
    items: Any,
    judge: Any = None,
    *,
    convention: Any = None,
    batch_size: int | None = None,
    choices_only: bool = False,
    n_texts: int | None = None,
    wording: bool = False,
    learnt_from: Any = None,
) -> "tuple[Meter, ...]":
    """Return what `trimtab evaluate` measures of questions, contrast pairs or facts; no drift on 0 neutral texts.

    Args:
        learnt_from: other pairs of the same behaviour, which say how answers to the items' prompts read.
    """
    from trimtab.datasets.prose import neutral_texts
    from trimtab.evaluate.contrast import ScoredTexts, contrast_meters, pair_margin
    from trimtab.evaluate.defaults import answer_form
    from trimtab.evaluate.drift import NeutralTexts, drift_meters
    from trimtab.evaluate.factual import fact_meters
    from trimtab.evaluate.generation import JudgedAnswers, judged_meters, strict_meters
    from trimtab.evaluate.multiple_choice import choice_meters
    from trimtab.evaluate.wording import wording_meters
    from trimtab.steer.reading import reading_meters

    n_texts = FEW_TEXTS if n_texts is None and items.measured_by == "pairs" else n_texts
    texts = None if n_texts is None else neutral_texts()[:n_texts]
    few = NeutralTexts(texts, batch_size=batch_size or NeutralTexts.batch_size)
    drift = () if n_texts == 0 else drift_meters(few)
    if items.measured_by == "facts":
        return (*fact_meters(), *drift)
    if items.measured_by == "pairs":
        scores = () if judge is None else (ScoredTexts(judge, batch_size=batch_size),)
        read = ()
        if learnt_from is not None and all(item.asked.strip() for item in items):
            read = reading_meters(learnt_from)
        return (*scores, *read, *contrast_meters(batch_size), pair_margin(batch_size), *drift)
    answering: dict[str, Any] = {"judge": judge, "convention": answer_form(convention), "batch_size": batch_size}
    said, read = (), ()
    if not choices_only:
        said, source = judged_meters(**answering), JudgedAnswers(**answering)
        read = (*strict_meters(source), *wording_meters(source)) if wording else ()
    return (*said, *choice_meters(convention, batch_size), *read, *drift)
