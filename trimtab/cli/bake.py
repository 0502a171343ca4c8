"""`trimtab bake`: an edited model as a standard checkpoint."""

from pathlib import Path

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
    from trimtab.cli.merge import write_checkpoint
    from trimtab.export.checkpoint import KIND
    from trimtab.storage import check_writable

    edit = editing.open("trimtab bake")
    check_writable(out, KIND)
    write_checkpoint(loading.open(), edit, out, as_json=as_json)
