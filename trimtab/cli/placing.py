"""Where `trimtab fit` shifts, and how strongly: from flags to a `ShiftSpec`."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli.options import Asking, Texts, one_of

if TYPE_CHECKING:
    from trimtab.activations.labelled import Head
    from trimtab.steer.spec import ShiftSpec

_place = partial(typer.Option, rich_help_panel="The shift")


@dataclass(frozen=True)
class Placing:
    """Which shift is made."""

    site: Annotated[
        str | None,
        _place(
            "--site",
            help="heads: shift attention heads (ITI); residual: shift the residual stream (CAA).",
            show_default="heads; residual for contrast pairs",
        ),
    ] = None
    n_sites: Annotated[
        int | None,
        _place(
            "--n-sites", "--top-k", min=1, help="Heads or layers to shift at most.", show_default="16 heads, 1 layer"
        ),
    ] = None
    layers: Annotated[
        str | None,
        _place(
            "--layers",
            metavar="14|12-16|3,7",
            help="Layers to choose among.",
            show_default="all; of pairs all but the first quarter",
        ),
    ] = None
    heads: Annotated[
        str | None, _place("--heads", metavar="14.0,18.3", help="Heads to shift.", show_default="chosen")
    ] = None
    rank_by: Annotated[
        str | None,
        _place(
            "--rank-by",
            help="effect: what shifting a place does for what it costs; accuracy: what its probe reads.",
            show_default="accuracy; effect for contrast pairs",
        ),
    ] = None
    direction: Annotated[str, _place("--direction", help="mass_mean, probe, or random (the control).")] = "mass_mean"
    strength: Annotated[
        float | None,
        _place("--strength", "--alpha", help="Set the strength instead of choosing it.", show_default="chosen"),
    ] = None
    asking: Asking = "auto"
    texts: Texts = None
    quick: Annotated[
        bool, _place("--quick", help="Take the place that ranks first, without trying others or generating answers.")
    ] = False

    def spec(self) -> "ShiftSpec":
        """Return what is asked for.

        Raises:
            BadValue: a site, direction or ranking that there is not; layers or heads in another form.
        """
        from trimtab.datasets.prose import validation_texts
        from trimtab.steer.fitting import DIRECTIONS
        from trimtab.steer.spec import ShiftSpec

        return ShiftSpec(
            site=None if self.site is None else one_of(self.site, "site", ("heads", "residual")),
            n_sites=self.n_sites,
            direction=one_of(self.direction, "direction", tuple(DIRECTIONS)),
            strength=self.strength,
            layers=None if self.layers is None else layers_in(self.layers),
            heads=None if self.heads is None else heads_in(self.heads),
            rank_by=None if self.rank_by is None else one_of(self.rank_by, "ranking", ("effect", "accuracy")),
            texts=None if self.texts is None else validation_texts()[: self.texts],
            quick=self.quick,
            asking=self.asking,
        )


def layers_in(text: str) -> list[int]:
    """Return the layers of `14`, `12-16` or `3,7`; raises `BadValue` for anything else."""
    from trimtab.errors import BadValue

    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last if dash else first) + 1)
    except ValueError as cause:
        raise BadValue(f"--layers takes numbers and ranges, such as 14, 12-16 or 3,7; got {text!r}") from cause
    if not found:
        raise BadValue(f"--layers {text!r} names no layer; write a range from low to high, such as 12-16")
    return list(dict.fromkeys(found))


def heads_in(text: str) -> "list[Head]":
    """Return the heads of `14.0,18.3` (layer.head); raises `BadValue` for anything else."""
    from trimtab.activations.labelled import Head
    from trimtab.errors import BadValue

    try:
        return list(dict.fromkeys(Head(*map(int, part.split("."))) for part in text.split(",")))
    except (ValueError, TypeError) as cause:
        raise BadValue(f"--heads takes layer.head, such as 14.0,18.3; got {text!r}") from cause
