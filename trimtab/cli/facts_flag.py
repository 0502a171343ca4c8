"""The facts that verbs write or trace: one by its prompt and subject, or `--facts`, from a file or by name."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trimtab.datasets.facts import FactSet

FactPrompt = Annotated[str | None, typer.Argument(help="One fact: a prompt with {} where its subject stands.")]
Subject = Annotated[str | None, typer.Option("--subject", help="The subject of that one fact.")]
FactsName = Annotated[
    str | None,
    typer.Option("--facts", metavar="FILE|atlas", help="Several: trimtab's .jsonl, CounterFact's or zsRE's .json."),
]


def named_facts(name: str, *of_one: str | None) -> "FactSet":
    """Return the facts of a file, or those that ship.

    Args:
        of_one: what was given of a single fact beside them.

    Raises:
        BadDataset: a single fact is given as well; there is no such file, or it cannot be used.
    """
    from trimtab.datasets.facts import atlas, facts_from_file
    from trimtab.errors import BadDataset

    if any(of_one):
        raise BadDataset("give one fact by PROMPT and its flags, or several by --facts, not both")
    return atlas() if name == "atlas" else facts_from_file(name)
