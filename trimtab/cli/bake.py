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
    from trimtab.cli.merge import write_checkpoint
    from trimtab.cli.setup import open_model, open_shift
    from trimtab.export.checkpoint import KIND
    from trimtab.storage import check_writable

    check_writable(out, KIND)
    edit = open_shift(shift, alpha)
    assert edit is not None
    loaded = open_model(model, dtype=dtype, device=device, quantization=quantization, revision=revision)
    write_checkpoint(loaded, edit, out, as_json=as_json)
