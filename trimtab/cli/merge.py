"""`trimtab merge`: work a tuned edit into the weights and write a plain checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.options import AsJson, Loading, Out


@verb
def merge(
    edit: Annotated[
        Path, typer.Option("--edit", metavar="DIR", help="A folder of `trimtab tune`, or any PEFT adapter.")
    ],
    loading: Loading = Loading(),
    out: Out = Path("runs/merged"),
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance", help="Largest difference of logits, in shares of the effect.", show_default="by dtype"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the tuned model as a plain checkpoint: dequantised, merged, compared, reloaded, compared again.

    Give the model as it was tuned, with the same --quantization. The weights are written in --dtype.

    Example: trimtab merge --edit runs/qlora --quantization nf4-dq --out runs/merged
    """
    from trimtab.cli.setup import quiet

    quiet()  # before libraries are loaded that talk then

    from trimtab.export.checkpoint import KIND
    from trimtab.peft.edit import TunedEdit
    from trimtab.storage import check_writable

    check_writable(out, KIND)
    tuned = TunedEdit.load(edit)
    opened = loading.open()
    write_checkpoint(opened, tuned, out, tolerance=tolerance, as_json=as_json)


def write_checkpoint(loaded: Any, edit: Any, out: Path, *, tolerance: float | None = None, as_json: bool) -> None:
    """Write the model with the edit worked in, and print how well that was done."""
    from trimtab.cli.printing import print_json
    from trimtab.export import checkpoint

    found = checkpoint(loaded.model, loaded.tokenizer, edit, out, tolerance=tolerance)
    if as_json:
        print_json({"out": str(out), **found.as_dict()})
        return
    typer.echo(
        f"{out}: loads as {found.architecture}; logits within {found.difference:.2g} of the live edit's at all "
        f"positions ({found.relative:.1e} of its effect)\n"
        f"next token after 32 questions: KL from the unedited model {found.kl_generated:.4f} nats edited live, where "
        f"answers are predicted; {found.kl_all:.4f} baked, at all positions; {found.kl_between:.4f} between the two; "
        f"the likeliest token is the same for {100 * found.same_token:.0f} %"
    )
