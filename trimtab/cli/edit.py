"""`trimtab edit`: write facts into a model's weights, and say of each what it bought and what it broke."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.facts_flag import FactPrompt, FactsName, Subject, named_facts
from trimtab.cli.method_names import EDITORS
from trimtab.cli.options import AsJson, Limit, Loading, Output, Seed, one_of

if TYPE_CHECKING:
    from trimtab.datasets.facts import FactSet
    from trimtab.protocols import Method

OF_ONE_LAYER = ("ft-l", "grace")
"""Those that know no statistics and no earlier facts."""


@verb
def edit(
    prompt: FactPrompt = None,
    subject: Subject = None,
    new: Annotated[str | None, typer.Option("--new", help="Its new answer.")] = None,
    facts: FactsName = None,
    method: Annotated[str, typer.Option("--method", help=f"{', '.join(EDITORS)}.")] = "rome",
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", help="Layers to change, as 3 or 3,4,5; or auto.", show_default="from a tenth of the depth on"
        ),
    ] = None,
    statistics: Annotated[
        str,
        typer.Option(
            "--statistics",
            metavar="own|identity|DIR",
            help="Of old keys: of the model's own texts, none, or a folder of them.",
        ),
    ] = "own",
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Folder that keeps the former.", show_default="trimtab's in the user's cache"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Facts written at once, batch after batch.", show_default="all of them"),
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option("--after", metavar="DIR", help="An earlier edit to go on from; what is written holds both."),
    ] = None,
    loading: Loading = Loading(),
    output: Output = Output(Path("runs/edit")),
    limit: Limit = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write facts into the weights, and print per fact what the model said and says, paraphrases, neighbours and leak.

    All facts go into one edit. Of one fact given by flags, neighbours are facts that ship with trimtab.

    Example: trimtab edit "The capital of {} is" --subject Chile --new Paris --out runs/chile
    """
    from dataclasses import asdict, replace

    from trimtab.cli.printing import print_json, remark
    from trimtab.datasets.prose import neutral_texts
    from trimtab.edits.memory_edit import MemoryEdit
    from trimtab.edits.weight_edit import WeightEdit
    from trimtab.errors import BadValue
    from trimtab.evaluate.drift import NeutralTexts, drift_meters
    from trimtab.evaluate.factual import fact_meters
    from trimtab.evaluate.table import table
    from trimtab.knowledge.batches import InBatches

    one_of(method, "way of editing facts", list(EDITORS))
    if method in OF_ONE_LAYER and (batch is not None or after is not None):
        raise BadValue(f"{method} takes all facts at once, on the model as it is; leave out --batch and --after")
    asked = _facts(prompt, subject, new, facts)
    asked = asked if limit is None else asked[:limit]
    out = output.checked((MemoryEdit if method == "grace" else WeightEdit).kind)
    opened = loading.open()
    first = None if after is None else WeightEdit.load(after)
    made: Any = _method(method, layer, statistics, cache, opened, seed)
    made = made if first is None else replace(made, previous=first)
    made = made if batch is None else InBatches(editor=made, size=batch)
    remark(f"editing {len(asked)} fact(s) by {made.name}; statistics of a new model take minutes, and are kept")
    with nullcontext() if first is None else first.applied(opened.model):
        edited: Any = made.fit(opened.model, opened.tokenizer, asked, seed=seed)
    batches = edited.record.get("batches", [])
    edited = edited if first is None else (first + edited).compressed().with_record(batches=batches)
    meters = [*fact_meters(), *drift_meters(NeutralTexts(tuple(neutral_texts(32))))]
    measured = table(opened.model, opened.tokenizer, asked, [edited], meters=meters)
    row = measured.rows[0]
    edited = edited.with_record(measured=row.as_dict())
    edited.save(out)
    rows = [{"fact": fact.stated(), **details} for fact, details in zip(asked, row.details["facts"], strict=True)]
    if as_json:
        print_json(
            {"out": str(out), **row.as_dict(), "facts": rows, "norms": edited.norms, "cost": asdict(edited.cost)}
        )
    else:
        _show(edited, rows, measured, out)


def _facts(prompt: str | None, subject: str | None, new: str | None, facts: str | None) -> "FactSet":
    from trimtab.datasets.facts import Fact, FactSet, Neighbour, atlas
    from trimtab.errors import BadDataset

    if facts is not None:
        return named_facts(facts, prompt, subject, new)
    if not (prompt and subject and new):
        raise BadDataset(
            'a fact needs a prompt, --subject and --new, such as "The capital of {} is" --subject Chile --new Paris; '
            "or give --facts FILE"
        )
    alike = [fact for fact in atlas() if fact.subject != subject]
    # first those that are asked in the very same words
    alike.sort(key=lambda fact: fact.prompt != prompt)
    near = tuple(Neighbour(fact.asked, fact.true) for fact in alike if subject not in fact.asked)[:12]
    same = [(fact.subject, p) for fact in alike if fact.prompt == prompt for p in fact.paraphrases]
    others = tuple(dict.fromkeys(text.replace(other, "{}", 1) for other, text in same if other in text))
    return FactSet((Fact(subject, prompt, new, paraphrases=others, neighbours=near),), "one fact")


def _method(name: str, layer: str | None, statistics: str, cache: Path | None, opened: Any, seed: int) -> "Method":
    from trimtab.errors import BadValue
    from trimtab.knowledge.editors import ROME
    from trimtab.knowledge.layer_choice import choose_layer
    from trimtab.knowledge.moments import KeyStatistics, usual_cache

    given: dict[str, Any] = {"cache": cache or usual_cache(), "moment": statistics}
    if statistics not in ("own", "identity"):
        given["moment"] = KeyStatistics.load(statistics)
    if layer == "auto":
        n = 1 if name in OF_ONE_LAYER else len(EDITORS[name].type(**given).sites(opened.model))
        first = choose_layer(opened.model, opened.tokenizer, ROME(**given), seed=seed).layer
        layers: tuple[int, ...] | None = tuple(range(first, first + n))
    else:
        try:
            layers = None if layer is None else tuple(int(part) for part in layer.split(","))
        except ValueError as cause:
            raise BadValue(f"--layer is a number, several with commas, or auto; got {layer!r}") from cause
    if name in OF_ONE_LAYER:
        if layers and len(layers) > 1:
            raise BadValue(f"{name} takes one layer, got --layer {layer}")
        return EDITORS[name].type(layer=layers[0] if layers else None)
    return EDITORS[name].type(layers=layers, **given)


def _show(edited: Any, rows: list[dict[str, Any]], measured: Any, out: Path) -> None:
    from trimtab.cells import number
    from trimtab.cli.printing import print_table

    def of(row: dict[str, Any], part: str, whole: str) -> str:
        return f"{row[part]:.0f} of {row[whole]:.0f}"

    cells = [
        [
            row["fact"],
            _short(row["before"]),
            _short(row["answer"]) + ("" if row["said"] else " (not taken)"),
            of(row, "said_paraphrases", "paraphrases"),
            of(row, "kept", "known"),
            of(row, "leaked", "open"),
        ]
        for row in rows
    ]
    print_table(["", "said before", "says now", "paraphrases", "neighbours kept", "leak"], cells)
    if len(rows) > 1:
        print_table(measured.headings, measured.cells)
    drifted = measured.rows[0].estimates["kl"]
    typer.echo(f"KL on neutral text {number(drifted, 'nats')} nats per token; {edited.cost.seconds:.1f} s")
    for step in edited.record.get("batches", []):
        typer.echo(f"norm after {step['facts']} fact(s): {_norms(step['norms'])}")
    typer.echo(f"norm of the change: {_norms(edited.norms)}")
    typer.echo(f"Written to {out}")


def _norms(norms: Any) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in norms.items())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 30 else f"{line[:29]}…"
