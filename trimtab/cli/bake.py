"""`trimtab bake`: a steered model as a standard checkpoint."""

from pathlib import Path

from trimtab.cli.options import Alpha, AsJson, Device, Dtype, ModelName, Out, Quantization, Revision, ShiftFolder


def bake(
    shift: ShiftFolder,
    out: Out = Path("runs/baked"),
    model: ModelName = "embedded",
    alpha: Alpha = None,
    dtype: Dtype = None,
    device: Device = None,
    quantization: Quantization = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Write the shifted model as a Hugging Face checkpoint that any engine can serve, and check it.

    A baked shift acts at all positions, the prompt's too; what that changes is printed.

    Example: trimtab bake --shift runs/shift --out runs/baked
    """
    import typer

    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import open_model, open_shift
    from trimtab.export import bake as baked_into
    from trimtab.export.bake import KIND
    from trimtab.storage import check_writable

    check_writable(out, KIND)
    edit = open_shift(shift, alpha)
    assert edit is not None
    loaded = open_model(model, dtype=dtype, device=device, quantization=quantization, revision=revision)
    baked = baked_into(*loaded, edit, out)
    if as_json:
        print_json({"out": str(out), **baked.as_dict()})
        return
    typer.echo(
        f"{out}: loads as {baked.architecture}; logits within {baked.difference:.2g} of the live shift at all "
        f"positions ({baked.relative:.1e} of its effect)\n"
        f"next token after 32 questions: KL from the unedited model {baked.kl_generated:.4f} nats steered live, where "
        f"answers are predicted; {baked.kl_all:.4f} baked, at all positions; {baked.kl_between:.4f} between the two; "
        f"the likeliest token is the same for {100 * baked.same_token:.0f} %"
    )
