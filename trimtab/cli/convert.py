"""`trimtab convert`: ITI's activation files in, a file for lm-evaluation-harness out."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.options import AsJson, EditClasses, Loading, Output, Strength

convert = typer.Typer(no_args_is_help=True, help="Take ITI's activation files in, and hand edits to lm-eval.")


@convert.command("from-iti")
@verb
def from_iti(
    folder: Annotated[Path, typer.Argument(help="A folder with ITI's .npy files: head-wise activations and labels.")],
    n_heads: Annotated[int, typer.Option("--heads", min=1, help="Attention heads in each layer.")],
    output: Output = Output(Path("runs/activations")),
    data: Annotated[
        str | None, typer.Option(help="The questions they were made of, in order (mc_task.json), to group by question.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read the activations that honest_llama wrote (*_head_wise.npy, *_labels.npy) into trimtab's form.

    Example: trimtab convert from-iti features --heads 32 --data mc_task.json --out runs/activations
    """
    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import read_data
    from trimtab.datasets.iti_files import KIND, activations_from_iti

    out = output.checked(KIND)
    acts = activations_from_iti(folder, n_heads=n_heads, questions=None if data is None else read_data(data))
    acts.save(out)
    shape = dict(zip(("examples", "layers", "heads", "d_head"), acts.values.shape, strict=True))
    if as_json:
        print_json({"out": str(out), **shape, "groups": len(set(acts.groups))})
    else:
        counts = ", ".join(f"{n} {name}" for name, n in shape.items())
        typer.echo(f"{out}: {counts}, {len(set(acts.groups))} groups")


@convert.command("to-lm-eval")
@verb
def to_lm_eval(
    edit: Annotated[
        list[str], typer.Argument(metavar="DIR[:STRENGTH]", help="A folder of `trimtab fit`; several are a stack.")
    ],
    output: Output = Output(Path("steered.pt")),
    strength: Strength = None,
    edit_class: EditClasses = [],  # noqa: B006 - typer copies it
    loading: Loading = Loading(),
    as_json: AsJson = False,
) -> None:
    """Write an edit for lm-evaluation-harness: lm_eval --model steered --model_args pretrained=...,steer_path=FILE.

    Its loader takes .pt files only, which are pickles; this one holds plain tensors, and trimtab never reads any.

    Example: trimtab convert to-lm-eval runs/shift --out steered.pt
    """
    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import open_edit
    from trimtab.export.lm_eval import to_lm_eval as written

    out = output.checked()
    opened = open_edit(edit, strength=strength, classes=edit_class)
    hooks = written(loading.open().model, opened, out)  # pyright: ignore[reportArgumentType]
    if as_json:
        print_json({"out": str(out), "hookpoints": hooks})
    else:
        typer.echo(f"{out}: the edit at all positions, at {len(hooks)} hook points ({', '.join(hooks)})")
