"""`trimtab build-embedded`: train the model that ships with trimtab."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.options import AsJson, Output, Overwrite


def build_embedded(
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; the shipped recipe's if left out.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of weights and documents; the shipped one if left out.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; the GPU if there is one.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train the embedded model: minutes on a large GPU, hours on a CPU. Run it again to go on after an interruption.

    Example: trimtab build-embedded runs/embedded --steps 20
    """
    from dataclasses import replace

    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import quiet
    from trimtab.training.embedded_model import KIND, TrainingRecipe, quick
    from trimtab.training.embedded_model import build_embedded as build

    quiet()
    Output(out, overwrite).checked(KIND)
    recipe = TrainingRecipe()
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    record = build(out, recipe if steps is None else quick(recipe, steps), device=device)
    if as_json:
        print_json(record)
    else:
        typer.echo(
            f"{record['parameters']:,} parameters, {record['bytes'] / 1e6:.1f} MB, last loss {record['losses'][-1]}, "
            f"{record['seconds']} s on {record['device']}: {out}"
        )
