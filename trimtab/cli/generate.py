"""`trimtab generate`: answers of the edited model, and of the unedited one beside them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.options import AsJsonLines, Asking, BatchSize, Editing, Loading, Sampling, Seed


@verb
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Questions; '-' or none reads standard input, one a line.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="Questions: a .txt file, one a line, or a .jsonl, .json or .csv file with 'question'."
        ),
    ] = None,
    loading: Loading = Loading(),
    editing: Editing = Editing(),
    compare: Annotated[bool, typer.Option("--compare", help="Answer without the edit too, side by side.")] = False,
    sampling: Sampling = Sampling(),
    asking: Asking = "auto",
    seed: Seed = 0,
    batch_size: BatchSize = None,
    as_json: AsJsonLines = False,
) -> None:
    """Answer questions with the edited model.

    Questions are asked in the model's chat template where it has one, else in plain form (--asking).

    Example: trimtab generate "What happens if you swallow gum?" --edit runs/shift --compare
    """
    from trimtab.engine.conversation import answers
    from trimtab.models.seeds import torch_seeded

    asked = _asked(prompts, file)
    edit = editing.open(*["--compare"] * compare)
    loaded = loading.open()
    options = {"asking": asking, "settings": sampling.settings(), "batch_size": batch_size}
    columns = {}
    for name in (["unedited"] if compare or edit is None else []) + (["edited"] if edit is not None else []):
        with torch_seeded(seed):
            columns[name] = answers(*loaded, asked, edit if name == "edited" else None, **options)
    for i, question in enumerate(asked):
        given = {name: column[i] for name, column in columns.items()}
        if as_json:
            typer.echo(json.dumps({"question": question, **given}, ensure_ascii=False))
        elif compare:
            typer.echo("\n".join([question, *(f"  {name + ':':10} {text}" for name, text in given.items())]))
        else:
            typer.echo("".join(given.values()) if len(asked) == 1 else f"{question}\n  {next(iter(given.values()))}")


def _asked(prompts: list[str] | None, file: Path | None) -> list[str]:
    from trimtab.datasets.lines import lines_of, read_asked
    from trimtab.errors import BadDataset

    if file is not None:
        if prompts:
            raise BadDataset("give questions as arguments or by --file, not both")
        return read_asked(file)
    if prompts and prompts != ["-"]:
        return prompts
    stdin = typer.get_text_stream("stdin")
    if stdin.isatty() and prompts != ["-"]:
        raise BadDataset("no question: give one as an argument, by --file, or on standard input")
    try:
        asked = lines_of(stdin.read())
    except UnicodeDecodeError as cause:
        raise BadDataset("standard input is not UTF-8 text: expected questions, one a line") from cause
    if not asked:
        raise BadDataset("standard input is empty: expected questions, one a line")
    return asked
