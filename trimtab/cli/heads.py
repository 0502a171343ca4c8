"""`trimtab heads`: what each head's probe reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli.options import AsJson

if TYPE_CHECKING:
    from trimtab.edits.vectors import VectorEdit
    from trimtab.probes.head_probes import HeadProbes

KINDS = ("fit", "demo run")
"""Results that hold probes and a shift."""


def heads(
    folder: Annotated[Path, typer.Argument(help="A folder that `trimtab fit` or `trimtab demo` wrote.")],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Another fit of this model, loaded in another way: how far do directions move?"
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many heads to list, best first.",
            show_default="20; against another fit, as many as shifted",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of all heads (.png, .svg, .pdf).")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how well the probe of each head (or layer) tells true from false, with intervals.

    Where places were ranked by effect, it stands beside (nats of margin per root of a nat of drift).
    With --against: the cosine between the two fits' directions of each head, how many of the best heads they share,
    and the difference in MC1 if `trimtab evaluate --keep` measured both.

    Example: trimtab heads runs/shift --plot heads.png
    """
    from trimtab.cli.against import print_against
    from trimtab.cli.printing import print_json, print_table, remark, save_picture
    from trimtab.probes.plots import heat_map

    if against is not None:
        print_against(folder, against, top=top, plot=plot, as_json=as_json)
        return
    from trimtab.steer.effect import SiteRanking

    probes, shift = _read(folder)
    effects: dict[tuple[int, int], float] = {}
    if (folder / "ranking").is_dir():
        effects = SiteRanking.load(folder / "ranking").effects
    rows = []
    for layer, head in probes.top(min(top or 20, probes.accuracy.numel())):
        at = (probes.layers.index(layer), head)
        numbers = {name: float(getattr(probes, name)[at]) for name in ("accuracy", "accuracy_low", "accuracy_high")}
        place = {"layer": layer, "head": head, "shifted": (layer, head) in shift.probed}
        effect = {"effect": effects[layer, head]} if (layer, head) in effects else {}
        rows.append({**place, **numbers, "auroc": float(probes.auroc[at]), **effect})
    if plot is not None:
        save_picture(heat_map(probes, marked=shift.probed), plot)
        remark(f"picture: {plot}")
    if as_json:
        print_json(rows)
        return
    asked = f", asked in {shift.asked_as} form" if shift.asked_as else ""
    headings = ("layer", "head", "accuracy", "95 % interval", "AUROC", "shifted", *["effect"] * bool(effects))
    cells = [
        (
            str(r["layer"]), str(r["head"]), f"{100 * r['accuracy']:.1f}",
            f"{100 * r['accuracy_low']:.1f}-{100 * r['accuracy_high']:.1f}", f"{r['auroc']:.3f}",
            "yes" if r["shifted"] else "", *([f"{r['effect']:.2f}" if "effect" in r else ""] if effects else ()),
        )
        for r in rows
    ]  # fmt: skip
    print_table(headings, cells, title=f"Probes of {folder}{asked}: accuracy (%) on statements they were not fitted on")


def _read(folder: Path) -> "tuple[HeadProbes, VectorEdit]":
    from trimtab.cli.setup import beside_results
    from trimtab.edits.disk import load_edit
    from trimtab.errors import Incompatible, nearest
    from trimtab.probes.head_probes import HeadProbes
    from trimtab.storage import kind_of

    if kind_of(folder) not in KINDS:
        known = nearest(str(folder), beside_results(folder, KINDS))
        raise Incompatible(f"no fit at {folder}: expected a folder written by `trimtab fit` or `trimtab demo`{known}")
    return HeadProbes.load(folder / "probes"), load_edit(folder / "shift")
