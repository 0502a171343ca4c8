"""`trimtab bake`, also called `trimtab merge`: an edited model as a standard checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.options import AsJson, Editing, Loading, Output


@verb
def bake(
    editing: Editing = Editing(),
    output: Output = Output(Path("runs/baked")),
    loading: Loading = Loading(),
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance", help="Largest difference of logits, in shares of the effect.", show_default="by dtype"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the edited model as a Hugging Face checkpoint that any engine can serve, and check it.

    A baked edit acts at all positions, the prompt's too; what that changes is printed. Give the model of a tuned edit
    as it was tuned, with the same --quantization. The weights are dequantised, and written in --dtype.

    Where --out ends in .gguf, the model is a GGUF file and the edit a shift of heads, the copy of the file that is
    written runs steered in llama.cpp and Ollama; nothing in it is quantised again.

    Example: trimtab bake --edit runs/shift --out runs/baked

    Example: trimtab bake --model model.gguf --edit runs/shift --out steered.gguf
    """
    from trimtab.cli.printing import print_json
    from trimtab.export.checkpoint import KIND, checkpoint

    if output.out.suffix == ".gguf":
        _bake_gguf(editing, output.checked(), loading, as_json)
        return
    out = output.checked(KIND)
    edit = editing.open("trimtab bake")
    assert edit is not None
    found = checkpoint(*loading.open(), edit, out, tolerance=tolerance)
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


def _bake_gguf(editing: Editing, out: Path, loading: Loading, as_json: bool) -> None:
    from trimtab.cli.printing import print_json
    from trimtab.errors import BadValue
    from trimtab.export.gguf_biases import gguf_with_biases
    from trimtab.models.load.checkpoints import gguf_source

    found = gguf_source(loading.model, revision=loading.revision, gguf_file=loading.gguf_file)
    if found is None:
        raise BadValue(f"--out {out} is a copy of a GGUF file, and {loading.model} is none; give one with --model")
    file, licence = found
    edit = editing.open("trimtab bake")
    assert edit is not None
    norms = gguf_with_biases(file, loading.open().model, edit, out)
    if as_json:
        print_json({"out": str(out), "of": str(file), "norms": norms})
        return
    layers = ", ".join(f"{layer} ({norm:.2f})" for layer, norm in sorted(norms.items()))
    typer.echo(f"{out}: {file.name} with biases behind attention in layers (norms) {layers}; all else is copied")
    if licence:
        typer.echo(f"It holds {licence}: what that asks of copies holds for this one too.")
