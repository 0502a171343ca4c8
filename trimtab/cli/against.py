"""What `trimtab heads --against` prints, and the multiple choice that `trimtab evaluate --keep` leaves for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from trimtab.datasets.questions import QuestionSet
    from trimtab.evaluate.multiple_choice import MultipleChoice
    from trimtab.protocols import Edit
    from trimtab.steer.agreement import Agreement
    from trimtab.steer.pipeline import Fitted

KEPT = "multiple_choice.json"
Both = tuple["Fitted", "Fitted"]


def keepable(folders: Sequence[str], questions: "QuestionSet") -> Path:
    """Return the folder in which multiple choice is kept.

    Raises:
        BadValue, BadDataset: `trimtab fit` did not write it, or the questions have no multiple choice.
    """
    from trimtab.errors import BadDataset, BadValue
    from trimtab.steer.pipeline import KIND
    from trimtab.steer.spec import are_pairs
    from trimtab.storage import kind_of

    if len(folders) != 1 or kind_of(Path(folders[0])) != KIND:
        raise BadValue("--keep needs a shift folder that `trimtab fit` wrote: give --edit DIR")
    if are_pairs(questions):
        raise BadDataset(f"{questions.name} holds contrast pairs, which have no multiple choice; leave --keep out")
    return Path(folders[0])


def keep_choices(folder: Path, scores: "MultipleChoice", alpha: float) -> None:
    """Write multiple choice, measured at strength alpha, into a folder that `trimtab fit` wrote."""
    from trimtab.storage import write_json

    write_json(folder / KEPT, {"alpha": alpha, **scores.as_dict()})


def print_against(one: Path, other: Path, *, top: int | None, plot: Path | None, as_json: bool) -> None:
    """Print how far the directions of one fit are from those of another, of the same model loaded in another way."""
    from trimtab.cli.printing import print_json, remark, save_picture
    from trimtab.probes.plots import head_map
    from trimtab.steer.pipeline import Fitted

    _refuse_demo_runs(one, other)
    both = first, second = Fitted.load(one), Fitted.load(other)
    found = first.against(second, top_k=top, scores=_scores(one, other))
    if plot is not None:
        look = {"marked": found.top, "title": "Agreement of directions per head", "label": "cosine", "lowest": -1}
        save_picture(head_map(found.cosine, first.probes.layers, **look), plot)
        remark(f"picture: {plot}")
    if as_json:
        print_json({"loads": [_load(fit) for fit in both], "layers": list(first.probes.layers), **found.as_dict()})
    else:
        _print(found, both, (one, other))


def places(edit: "Edit") -> list[tuple[int, int]]:
    """Return the heads that an edit's description names, or head 0 of each of its layers (the residual stream)."""
    described = edit.describe()
    return [tuple(head) for head in described.get("heads", [])] or [(layer, 0) for layer in described.get("layers", [])]


def _refuse_demo_runs(*folders: Path) -> None:
    from trimtab.errors import Incompatible
    from trimtab.storage import kind_of

    for folder in folders:
        if kind_of(folder) == "demo run":
            raise Incompatible(
                f"{folder} is a demo run, which keeps the directions of the shifted heads only; fit the model in both "
                "ways with `trimtab fit` and compare those two folders"
            )


def _print(found: "Agreement", both: Both, folders: tuple[Path, Path]) -> None:
    from trimtab.cli.printing import print_table

    first, second = (fit.probes for fit in both)
    rows = []
    for head in dict.fromkeys((*found.top, *found.other_top)):
        at = (first.layers.index(head.layer), head.head)
        accuracies = (f"{100 * float(p.accuracy[at]):.1f}" for p in (first, second))
        ranks = (str(top.index(head) + 1) if head in top else "" for top in (found.top, found.other_top))
        rows.append([str(head.layer), str(head.head), f"{float(found.cosine[at]):.4f}", *accuracies, *ranks])
    headings = ("layer", "head", "cosine", "accuracy", "other accuracy", "rank", "other rank")
    print_table(headings, rows, title=f"{folders[0]} ({_load(both[0])}) against {folders[1]} ({_load(both[1])})")
    flat, k = found.cosine.flatten(), len(found.top)
    overlap = f"an overlap of {found.overlap:.2f} (by chance {found.chance_overlap:.2f})"
    typer.echo(f"best {k}: {len(found.shared)} in both, {overlap}")
    typer.echo(f"cosine over all {flat.numel()}: median {float(flat.median()):.4f}, lowest {float(flat.min()):.4f}")
    if found.mc1 is None:
        missing = [str(folder) for folder in folders if not (folder / KEPT).is_file()]
        typer.echo(f"MC1: not measured for {' and '.join(missing)} (trimtab evaluate --edit DIR --keep)")
    else:
        points = [f"{100 * x:+.1f}" for x in (found.mc1, found.mc1.low, found.mc1.high)]
        typer.echo(
            f"MC1: {points[0]} points [{points[1]}, {points[2]}] over {found.mc1.n} questions, the other minus this"
        )


def _load(fit: "Fitted") -> str:
    model: dict[str, Any] = fit.directions.model or {}
    return model.get("quantization") or model.get("dtype", "")


def _scores(one: Path, other: Path) -> "tuple[MultipleChoice, MultipleChoice] | None":
    if not all((folder / KEPT).is_file() for folder in (one, other)):
        return None
    return _kept(one), _kept(other)


def _kept(folder: Path) -> "MultipleChoice":
    from trimtab.errors import Incompatible
    from trimtab.evaluate.multiple_choice import MultipleChoice
    from trimtab.plain_values import json_value

    try:
        return MultipleChoice.from_dict(json_value((folder / KEPT).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise Incompatible(
            f"{folder / KEPT} cannot be read; write it again with trimtab evaluate --edit {folder} --keep"
        ) from cause
