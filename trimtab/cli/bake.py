"""`trimtab bake`: an edited model as a standard checkpoint."""

from pathlib import Path

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.options import AsJson, Editing, Loading, Out


@verb
def bake(
    editing: Editing = Editing(),
    out: Out = Path("runs/baked"),
    loading: Loading = Loading(),
    as_json: AsJson = False,
) -> None:
    """Write the edited model as a Hugging Face checkpoint that any engine can serve, and check it.

    A baked edit acts at all positions, the prompt's too; what that changes is printed.

    Example: trimtab bake --edit runs/shift --out runs/baked
    """
    from trimtab.cli.printing import print_json
    from trimtab.export.bake import KIND
    from trimtab.export.bake import bake as baked_into
    from trimtab.storage import check_writable

    edit = editing.open("trimtab bake")
    check_writable(out, KIND)
    baked = baked_into(*loading.open(), edit, out)  # pyright: ignore[reportArgumentType]
    if as_json:
        print_json({"out": str(out), **baked.as_dict()})
        return
    typer.echo(
        f"{out}: loads as {baked.architecture}; logits within {baked.difference:.2g} of the live edit at all "
        f"positions ({baked.relative:.1e} of its effect)\n"
        f"next token after 32 questions: KL from the unedited model {baked.kl_generated:.4f} nats edited live, where "
        f"answers are predicted; {baked.kl_all:.4f} baked, at all positions; {baked.kl_between:.4f} between the two; "
        f"the likeliest token is the same for {100 * baked.same_token:.0f} %"
    )
