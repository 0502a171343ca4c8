"""`trimtab merge`: work a tuned edit into the weights and write a plain checkpoint."""

from pathlib import Path
from typing import Annotated

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
        typer.Option("--tolerance", help="Largest relative difference of logits.", show_default="by dtype"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the tuned model as a plain checkpoint: dequantised, merged, compared, reloaded, compared again.

    Give the model as it was tuned, with the same --quantization. The weights are written in --dtype.

    Example: trimtab merge --edit runs/qlora --quantization nf4-dq --out runs/merged
    """
    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import quiet

    quiet()  # before libraries are loaded that talk then

    from trimtab.export.merging import KIND
    from trimtab.peft.edit import TunedEdit
    from trimtab.storage import check_writable

    check_writable(out, KIND)
    tuned = TunedEdit.load(edit)
    opened = loading.open()
    merged = tuned.merge(opened.model, tolerance=tolerance, out=out, tokenizer=opened.tokenizer)
    result = {"out": str(out), **merged.trimtab_merge}
    if as_json:
        print_json(result)
        return
    error = result["relative_logit_difference"]
    typer.echo(f"{tuned.name} merged into {out}: logits differ by {error:.1e} (relative) from the tuned model's")
