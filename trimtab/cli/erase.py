"""`trimtab erase`: take out of a model what two kinds of texts differ in, and say what is left and what it cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.options import AsJson, Loading, Output, Seed, Texts, one_of

if TYPE_CHECKING:
    from trimtab.datasets.item_set import ItemSet
    from trimtab.steer.sites import Position

WAYS = ("leace", "ace", "ablate")
READ: Mapping[str, "Position"] = {"last": "last", "mean": "mean_answer"}


@verb
def erase(
    pairs: Annotated[
        Path | None, typer.Option("--pairs", metavar="FILE", help="Contrast pairs, .jsonl, .json or .csv.")
    ] = None,
    positive: Annotated[
        Path | None, typer.Option("--positive", metavar="FILE", help="Or texts that show the concept, one a line,")
    ] = None,
    negative: Annotated[
        Path | None, typer.Option("--negative", metavar="FILE", help="and texts that do not.")
    ] = None,
    how: Annotated[str, typer.Option("--how", help=f"{', '.join(WAYS)}.")] = "leace",
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            help="Where it is taken out, counted from 0: all, or as 3,4 or 5-10.",
            show_default="all; of ace one at 0.6 of the depth",
        ),
    ] = None,
    depth: Annotated[
        float | None,
        typer.Option("--depth", help="Where ablate reads its direction: a share of the depth.", show_default="tried"),
    ] = None,
    components: Annotated[
        str, typer.Option("--components", help="What ablate takes it out of: some of embedding,attention,mlp.")
    ] = "embedding,attention,mlp",
    read: Annotated[
        str | None,
        typer.Option("--read", help="Where texts are read: last (token) or mean.", show_default="mean of pairs"),
    ] = None,
    held_out: Annotated[
        float, typer.Option("--held-out", help="Share of the items that the result is measured on.")
    ] = 0.4,
    texts: Texts = 32,
    loading: Loading = Loading(),
    output: Output = Output(Path("runs/erased")),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Take out of a model what two kinds of texts differ in.

    leace: all that a linear classifier reads of it, layer by layer; ace: the same along the difference of means, set
    to what it is in the negative texts; ablate: one direction, out of everything that is written to the stream (which
    trimtab merge can write into the weights). Printed, on items that were held out: how well fresh probes still read
    it, how far pairs favour their positive side, and the drift on neutral text, beside random directions.

    Example: trimtab erase --model MODEL --pairs pairs.jsonl --how leace --layers 8-20 --out runs/erased
    """
    from dataclasses import replace

    from trimtab.cli.printing import print_json, remark
    from trimtab.edits import DirectionalAblation, Eraser, NoEdit
    from trimtab.errors import BadValue
    from trimtab.models.anatomy import decoder_layers
    from trimtab.steer import readable
    from trimtab.steer.depth_choice import choose_depth

    one_of(how, "way of erasing", WAYS)
    position = None if read is None else READ[one_of(read, "place to read texts", tuple(READ))]
    if how != "ablate" and (depth is not None or components != "embedding,attention,mlp"):
        raise BadValue("--depth and --components are of --how ablate; leave them out")
    items = _items(pairs, positive, negative)
    train, held = items.split(test=held_out, seed=seed)
    out = output.checked((DirectionalAblation if how == "ablate" else Eraser).kind)
    opened = loading.open()
    n_layers = len(decoder_layers(opened.model))
    method: Any = _method(how, _layers(layers, n_layers), position)
    tried: Any = ()
    if how == "ablate":
        method = replace(method, components=tuple(part.strip() for part in components.split(",")))
        if depth is None:
            remark("trying where to read the direction")
            depth, tried = choose_depth(opened.model, opened.tokenizer, method, train, seed=seed)
        method = replace(method, depths=(depth,))
    remark(f"erasing by {method.name}, fitted on {len(train)} items")
    edit = method.fit(opened.model, opened.tokenizer, train, seed=seed)
    edits = [NoEdit(), edit, edit.randomised(seed)]
    shown = sorted({min(edit.layers), sorted(edit.layers)[len(edit.layers) // 2], max(edit.layers), n_layers - 1})
    found = readable(opened.model, opened.tokenizer, held, edits, layers=shown, position=position, seed=seed)
    measured = _measured(opened, held, edits, texts or 32)
    rows = [
        {"edit": e.name, "read": dict(zip(shown, map(float, shares), strict=True)), **figures}
        for e, shares, figures in zip(edits, found, measured, strict=True)
    ]
    edit = edit.with_record(measured=rows, tried=[t.as_dict() for t in tried])
    edit.save(out)
    if as_json:
        print_json({"out": str(out), "rows": rows, "tried": edit.record["tried"], **edit.describe()})
    else:
        _show(edit, rows, [t.as_dict() for t in tried], found, held, out)


def _items(pairs: Path | None, positive: Path | None, negative: Path | None) -> "ItemSet[Any]":
    from trimtab.datasets import contrast_pairs, labelled_texts
    from trimtab.errors import BadDataset

    if pairs is not None and positive is None and negative is None:
        return contrast_pairs(pairs)
    if pairs is None and positive is not None and negative is not None:
        return labelled_texts(positive, negative)
    raise BadDataset("give the two kinds of texts by --pairs FILE, or by --positive FILE and --negative FILE")


def _layers(given: str | None, n: int) -> tuple[int, ...] | None:
    from trimtab.errors import BadValue

    if given is None:
        return None
    if given == "all":
        return tuple(range(n))
    try:
        ends = [[int(end) for end in part.split("-")] for part in given.split(",")]
        chosen = {layer for first, *last in ends for layer in range(first, (*last, first)[0] + 1)}
    except ValueError:
        chosen = set()
    if not chosen:
        raise BadValue(f"--layers is all, or numbers as 3,4 or 5-10; got {given!r}")
    beyond = [layer for layer in chosen if not 0 <= layer < n]
    if beyond:
        raise BadValue(f"no layer {max(beyond)}: the model has layers 0-{n - 1}")
    return tuple(sorted(chosen))


def _method(how: str, layers: tuple[int, ...] | None, position: Any) -> Any:
    from trimtab.steer import ACE, LEACE, Ablation

    return {"leace": LEACE, "ace": ACE, "ablate": Ablation}[how](layers=layers, position=position)


def _measured(opened: Any, held: Any, edits: list[Any], texts: int) -> list[dict[str, Any]]:
    """Return of every edit the margin of held-out pairs, if there are pairs, and CE and KL on neutral text."""
    from trimtab.datasets.prose import neutral_texts
    from trimtab.evaluate.contrast import pair_margin
    from trimtab.evaluate.drift import NeutralTexts, drift_meters
    from trimtab.evaluate.table import table

    meters = drift_meters(NeutralTexts(tuple(neutral_texts(texts))))
    if held.measured_by == "pairs":
        meters = (pair_margin(), *meters)
    found = table(opened.model, opened.tokenizer, held, edits, meters=meters)
    return [{name: None if e is None else float(e) for name, e in row.estimates.items()} for row in found.rows]


def _show(edit: Any, rows: list[Any], tried: list[Any], found: Any, held: Any, out: Path) -> None:
    from trimtab.cells import figure, number
    from trimtab.cli.printing import print_table

    if tried:
        cells = [[f"{t['depth']:g}", f"{t['left']:.3f}", number(t["kl"], "nats")] for t in tried]
        print_table(["direction read at depth", "what is left", "KL"], cells)
    shown = list(rows[0]["read"])
    figures = [name for name in ("pair_margin", "ce", "kl") if name in rows[0]]
    heads = {"pair_margin": "margin of pairs (nats)", "ce": "CE", "kl": "KL"}
    cells = [
        [
            row["edit"],
            *(figure(share, "share") for share in shares),
            *("-" if row[name] is None else number(row[name], "nats") for name in figures),
        ]
        for row, shares in zip(rows, found, strict=True)
    ]
    print_table(["", *(f"probe, layer {layer} (%)" for layer in shown), *(heads[name] for name in figures)], cells)
    statements = held.statements()
    share = sum(s.label for s in statements) / len(statements)
    typer.echo(
        f"fresh probes, on {len(held)} held-out items of {held.name}; always the commoner kind is right for "
        f"{100 * max(share, 1 - share):.0f} %"
    )
    first, last = min(edit.layers), max(edit.layers)
    typer.echo(f"{edit.name} in {len(edit.layers)} layers ({first} to {last}), {edit.cost.seconds:.1f} s")
    typer.echo(f"Written to {out}")
