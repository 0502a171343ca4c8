"""`trimtab trace`: which states of a model carry facts about a subject."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.facts_flag import FactPrompt, FactsName, Subject, named_facts
from trimtab.cli.options import AsJson, Limit, Loading, Output, Seed

if TYPE_CHECKING:
    from trimtab.datasets.facts import FactSet


@verb
def trace(
    prompt: FactPrompt = None,
    subject: Subject = None,
    answer: Annotated[
        str | None,
        typer.Option("--answer", help="Its true answer.", show_default="what the model says"),
    ] = None,
    facts: FactsName = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Of noise; the same ones for every state.")] = 10,
    noise: Annotated[
        float, typer.Option("--noise", min=0, help="In standard deviations of the subjects' embeddings.")
    ] = 3.0,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", min=1, help="Layers whose MLPs are restored together.", show_default="a sixth of the model's"
        ),
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Restore in every so many-th layer.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="Write a picture, token by layer (.png, .svg, .pdf).")] = None,
    loading: Loading = Loading(),
    output: Output = Output(Path("runs/trace")),
    limit: Limit = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Restore one state at a time in runs whose subject is corrupted, and say what that does for the answer.

    For layers' outputs, and the outputs of the MLPs and of the attentions in a window of layers. Facts to which the
    model gives another answer than the true one are skipped. Where to edit, tracing does not say (--layer auto does).

    Example: trimtab trace "The capital of {} is" --subject Turkey --plot turkey.png
    """
    from trimtab.cli.printing import print_json, print_table, remark, save_picture
    from trimtab.knowledge.traced import KIND
    from trimtab.knowledge.tracing import Tracing
    from trimtab.knowledge.tracing import trace as traced

    asked = _facts(prompt, subject, answer, facts)
    asked = asked if limit is None else asked[:limit]
    how = Tracing(samples=samples, noise=noise, window=window, every=every)
    out = output.checked(KIND)
    found = traced(*loading.open(), asked, how=how, seed=seed)
    found.save(out)
    if plot is not None:
        save_picture(found.plot(), plot)
        remark(f"picture: {plot}")
    if as_json:
        print_json({"out": str(out), **found.as_dict()})
        return
    print_table(found.headings, found.cells)
    typer.echo(
        f"{len(found.facts)} fact(s) traced, {len(found.skipped)} skipped; probability of the answer {found.clean:.3f} "
        f"clean, {found.corrupted:.3f} corrupted"
    )
    for key, why in list(found.skipped.items())[:3]:
        typer.echo(f"Skipped {key!r}: {why}")
    typer.echo(f"Written to {out}")


def _facts(prompt: str | None, subject: str | None, answer: str | None, facts: str | None) -> "FactSet":
    from trimtab.datasets.facts import Fact, FactSet
    from trimtab.errors import BadDataset

    if facts is not None:
        return named_facts(facts, prompt, subject, answer)
    if not (prompt and subject):
        raise BadDataset(
            'a fact needs a prompt and --subject, such as "The capital of {} is" --subject Chile; or give --facts FILE'
        )
    # a trace asks for no new answer
    return FactSet((Fact(subject, prompt, "?", answer or ""),), "one fact")
