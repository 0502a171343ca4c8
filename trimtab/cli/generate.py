"""`trimtab generate`: answers with a shift, and without it beside them."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.options import (
    Alpha,
    BatchSize,
    Device,
    Dtype,
    MaybeShiftFolder,
    ModelName,
    Quantization,
    Revision,
    Seed,
)

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")]
DoSample = Annotated[bool, typer.Option("--do-sample", help="Sample instead of taking the likeliest token.")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Of sampling.", show_default="the model's")]
TopP = Annotated[float | None, typer.Option("--top-p", min=0, max=1, help="Of sampling.", show_default="the model's")]
TopK = Annotated[int | None, typer.Option("--top-k", min=1, help="Of sampling.", show_default="the model's")]
Plain = Annotated[bool, typer.Option("--plain", help="Ask as 'Q: ... A:' although the model has a chat template.")]


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Questions; '-' or none reads standard input, one a line.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Questions: a text file, one a line, or a .jsonl file with 'question'."),
    ] = None,
    model: ModelName = "embedded",
    shift: MaybeShiftFolder = None,
    alpha: Alpha = None,
    compare: Annotated[bool, typer.Option("--compare", help="Answer without the shift too, side by side.")] = False,
    max_new_tokens: MaxNewTokens = 50,
    do_sample: DoSample = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    plain: Plain = False,
    dtype: Dtype = None,
    device: Device = None,
    quantization: Quantization = None,
    revision: Revision = None,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead (JSONL).")] = False,
) -> None:
    """Answer questions with the shifted model.

    The model's chat template is used where it has one, else the plain form.

    Example: trimtab generate "What happens if you swallow gum?" --shift runs/shift --compare
    """
    import json

    from trimtab.cli.setup import open_model, open_shift
    from trimtab.engine.conversation import answers
    from trimtab.models.seeds import seeded

    asked = _questions(prompts, file)
    edit = open_shift(shift, alpha)
    require_shift(edit, compare=compare, alpha=alpha)
    loaded = open_model(model, dtype=dtype, device=device, quantization=quantization, revision=revision)
    settings = sampling(max_new_tokens, do_sample, temperature, top_p, top_k)
    columns = {}
    for name, one in {**({"unedited": None} if compare or edit is None else {}), "shifted": edit}.items():
        if name == "shifted" and one is None:
            continue
        with seeded(seed):
            columns[name] = answers(
                *loaded, asked, one, template=False if plain else None, settings=settings, batch_size=batch_size
            )
    for i, question in enumerate(asked):
        given = {name: column[i] for name, column in columns.items()}
        if as_json:
            typer.echo(json.dumps({"question": question, **given}, ensure_ascii=False))
        elif compare:
            typer.echo("\n".join([question, *(f"  {name + ':':10} {text}" for name, text in given.items())]))
        else:
            typer.echo("".join(given.values()) if len(asked) == 1 else f"{question}\n  {next(iter(given.values()))}")


def sampling(
    max_new_tokens: int, do_sample: bool, temperature: float | None, top_p: float | None, top_k: int | None
) -> dict[str, float | int | bool]:
    """Return the options for `generate`; any option of sampling switches it on."""
    from trimtab.errors import BadValue

    if temperature is not None and not temperature > 0:
        raise BadValue(f"--temperature must be above 0, got {temperature:g}; leave it out for the likeliest tokens")
    chosen = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given = {name: value for name, value in chosen.items() if value is not None}
    return {"max_new_tokens": max_new_tokens, "do_sample": do_sample or bool(given), **given}


def require_shift(edit: object, *, alpha: float | None, compare: bool = False) -> None:
    """Refuse options that say something of a shift where there is none."""
    from trimtab.errors import BadValue

    if edit is None and (compare or alpha is not None):
        raise BadValue(f"{'--compare' if compare else '--alpha'} needs a shift: give --shift DIR")


def _questions(prompts: list[str] | None, file: Path | None) -> list[str]:
    from trimtab.errors import BadDataset

    if file is not None:
        if prompts:
            raise BadDataset("give questions as arguments or by --file, not both")
        return _from_file(file)
    if prompts and prompts != ["-"]:
        return prompts
    stdin = typer.get_text_stream("stdin")
    if stdin.isatty() and prompts != ["-"]:
        raise BadDataset("no question: give one as an argument, by --file, or on standard input")
    try:
        asked = [line.strip() for line in stdin if line.strip()]
    except UnicodeDecodeError as cause:
        raise BadDataset("standard input is not UTF-8 text: expected questions, one a line") from cause
    if not asked:
        raise BadDataset("standard input is empty: expected questions, one a line")
    return asked


def _from_file(path: Path) -> list[str]:
    from trimtab.datasets.files import read_rows
    from trimtab.errors import BadDataset

    if path.suffix == ".jsonl":
        rows = [(line, row.get("question") or row.get("prompt")) for line, row in read_rows(path)]
        bad = next((line for line, text in rows if not isinstance(text, str)), None)
        if bad is not None:
            raise BadDataset(f"{path}, line {bad}: field 'question' is missing or no text")
        asked = [str(text) for _, text in rows]
    else:
        try:
            asked = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError as cause:
            raise BadDataset(f"{path} cannot be read ({cause.strerror}); expected questions, one a line") from cause
        except UnicodeDecodeError as cause:
            raise BadDataset(f"{path} is not UTF-8 text; expected questions, one a line") from cause
    if not asked:
        raise BadDataset(f"{path} holds no question; expected one a line")
    return asked
