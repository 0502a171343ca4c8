"""`trimtab combine`: what tuning added to weights, added up, taken away and merged into one edit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.options import AsJson, EditClasses, Loading, Output, Seed, one_of

if TYPE_CHECKING:
    from trimtab.edits.weight_edit import WeightEdit
    from trimtab.knowledge.merge_rules import MergeRule

RULES = ("sum", "ties", "dare")


@verb
def combine(
    add: Annotated[
        list[str],
        typer.Option(
            "--add", metavar="DIR[:WEIGHT]", help="A tuned edit, an adapter, or a checkpoint of the same base; repeat."
        ),
    ] = [],  # noqa: B006 - typer copies it
    subtract: Annotated[
        list[str], typer.Option("--subtract", metavar="DIR[:WEIGHT]", help="The same, to be taken away.")
    ] = [],  # noqa: B006
    method: Annotated[str, typer.Option("--method", help=f"{', '.join(RULES)}.")] = "sum",
    density: Annotated[
        float | None,
        typer.Option(
            "--density", help="Share of each part's entries that stays.", show_default="0.2 for ties, 0.1 for dare"
        ),
    ] = None,
    trim: Annotated[
        str, typer.Option("--trim", help="What the share of ties is of: each tensor, or the whole vector.")
    ] = "tensor",
    scale: Annotated[float, typer.Option("--scale", help="Strength of the result.")] = 1.0,
    loading: Loading = Loading(),
    output: Output = Output(Path("runs/combined")),
    edit_class: EditClasses = [],  # noqa: B006
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Add what several tunings changed in the weights, take others away, and write the result as one edit.

    --model is the base that all of them were tuned from. Only --subtract makes a model forget; a good and a bad adapter
    give their contrast; DIR:0.5 alone is half the way from the base to the tuned model.

    Example: trimtab combine --model MODEL --add runs/a --add runs/b:0.5 --subtract runs/c --out runs/combined
    """
    import math

    from trimtab.cli.printing import print_json
    from trimtab.edits.weight_edit import WeightEdit
    from trimtab.errors import BadValue
    from trimtab.knowledge.arithmetic import combined, cosine

    rule = _rule(method, density, trim, seed)
    out = output.checked(WeightEdit.kind)
    if not add and not subtract:
        raise BadValue("nothing to combine: name what to add (--add DIR) or to take away (--subtract DIR)")
    if not (math.isfinite(scale) and scale):
        raise BadValue(f"--scale must be a finite number other than 0, got {scale}")
    opened = loading.open()
    parts = [(*_vector(spec, opened, loading, edit_class), sign) for spec, sign in _signed(add, subtract)]
    vectors, weights = [vector for vector, _, _ in parts], [weight * sign for _, weight, sign in parts]
    made: Any = combined(opened.model, vectors, weights, rule=rule).scaled(scale)
    drift = _drift(opened, made)
    made = made.with_record(measured={"kl": drift})
    made.save(out)
    rows = [
        {"part": v.name, "weight": w, "norm": _norm(v), "cosine": cosine(opened.model, v, made)}
        for v, w in zip(vectors, weights, strict=True)
    ]
    if as_json:
        print_json({"out": str(out), "parts": rows, "norm": _norm(made), "kl": drift, **made.describe()})
    else:
        _show(rows, made, drift, out)


def _rule(method: str, density: float | None, trim: str, seed: int) -> "MergeRule | None":
    from trimtab.errors import BadValue
    from trimtab.knowledge.merge_rules import DARE, TIES

    one_of(method, "way of combining", RULES)
    one_of(trim, "way of trimming", ("tensor", "vector"))
    given: dict[str, Any] = {} if density is None else {"density": density}
    if method == "sum" and given:
        raise BadValue("--density is the share that --method ties or dare keeps; a sum keeps everything")
    if method != "ties" and trim != "tensor":
        raise BadValue("--trim says what the share of --method ties is of; leave it out")
    if method == "dare":
        return DARE(seed=seed, **given)
    return None if method == "sum" else TIES(trim="vector" if trim == "vector" else "tensor", **given)


def _signed(add: list[str], subtract: list[str]) -> list[tuple[str, int]]:
    return [*((spec, 1) for spec in add), *((spec, -1) for spec in subtract)]


def _vector(spec: str, opened: Any, loading: Loading, classes: list[str]) -> "tuple[WeightEdit, float]":
    """Return the task vector of an edit's folder or of a checkpoint, and its weight."""
    import math
    from dataclasses import replace

    from trimtab.cli.setup import open_edit
    from trimtab.cli.user_code import with_strength
    from trimtab.errors import BadValue, Incompatible
    from trimtab.knowledge.arithmetic import task_vector, task_vector_between

    folder, weight = with_strength(spec)
    weight = 1.0 if weight is None else weight
    if not math.isfinite(weight):
        raise BadValue(f"the weight of {folder} must be a finite number, got {weight}")
    if not (folder / "config.json").is_file():
        found = task_vector(opened.model, open_edit([str(folder)], classes=classes))
        return replace(found, name=folder.name), weight
    tuned = replace(loading, model=str(folder), revision=None).open()
    if tuned.tokenizer.get_vocab() != opened.tokenizer.get_vocab():
        raise Incompatible(
            f"{folder} has another vocabulary than {loading.model}: its embeddings are of other tokens; name a "
            "checkpoint that was tuned from this very model"
        )
    return task_vector_between(opened.model, tuned.model, name=folder.name), weight


def _drift(opened: Any, made: "WeightEdit") -> float:
    from trimtab.datasets.prose import neutral_texts
    from trimtab.evaluate.drift import drift

    return float(drift(opened.model, opened.tokenizer, made, texts=neutral_texts(32)).kl)


def _norm(edit: "WeightEdit") -> float:
    return sum(norm**2 for norm in edit.norms.values()) ** 0.5


def _show(rows: list[dict[str, Any]], made: Any, drift: float, out: Path) -> None:
    from trimtab.cli.printing import print_table

    cells = [[r["part"], f"{r['weight']:+g}", f"{r['norm']:.3g}", f"{r['cosine']:+.2f}"] for r in rows]
    print_table(["", "weight", "norm", "cosine with the result"], cells)
    whole = len(made.changes) - sum(isinstance(rank, int) for rank in made.describe()["ranks"].values())
    kept = f", {whole} of them whole" if whole else ", all of low rank"
    typer.echo(f"{len(made.changes)} weights changed{kept}, by a norm of {_norm(made):.3g}")
    typer.echo(f"KL on neutral text {drift:.3f} nats per token")
    typer.echo(f"Written to {out}")
