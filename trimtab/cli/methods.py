"""`trimtab methods`: the ways of tuning, and what each can do."""

from typing import Annotated

import typer

from trimtab.cli.method_names import TUNING
from trimtab.cli.options import AsJson, ModelName


def methods(
    model: ModelName = "embedded",
    as_json: AsJson = False,
    count: Annotated[bool, typer.Option("--count/--no-count", help="Count trainable parameters on the model.")] = True,
) -> None:
    """List the tuning methods: family, what each can do, and how many numbers it would train on a model.

    Only the model's config is read, not its weights.

    Example: trimtab methods --model embedded
    """
    from dataclasses import asdict

    from trimtab.cli.printing import print_json, print_table
    from trimtab.cli.setup import quiet
    from trimtab.errors import BadValue, UnsupportedModel
    from trimtab.models.load.checkpoints import load_config

    quiet()
    config = load_config(model) if count else None
    rows = []
    for name, named in TUNING.items():
        method = named.made({}, name)
        try:
            n = None if config is None else method.parameter_count(config)
        except (BadValue, UnsupportedModel):  # a model that the method's defaults do not fit
            n = None
        rows.append({"name": name, **asdict(method.capabilities), "trainable_parameters": n})
    if as_json:
        print_json(rows)
        return
    yes = {True: "yes", False: "no"}
    print_table(
        ["method", "family", "mergeable", "4-bit", "packing", "checkpointing", "sharding", f"parameters ({model})"],
        [
            [
                row["name"],
                row["family"],
                *(yes[row[key]] for key in ("mergeable", "four_bit", "packing", "checkpointing", "sharding")),
                "-" if row["trainable_parameters"] is None else f"{row['trainable_parameters']:,}",
            ]
            for row in rows
        ],
    )
