"""`trimtab reproduce`: a published protocol run whole, its printed figures beside ours."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.options import AsJson, Limit, Loading, Output, Overwrite, one_of

PROTOCOLS = ("iti-table-1", "iti-2fold")


@verb
def reproduce(
    protocol: Annotated[str, typer.Argument(help=f"{' or '.join(PROTOCOLS)}.")],
    loading: Loading = Loading(model="huggyllama/llama-7b"),
    data: Annotated[
        str, typer.Option("--data", metavar="FILE", help="TruthfulQA.csv, mc_task.json, or truthfulqa (the hub).")
    ] = "truthfulqa",
    out: Annotated[Path, typer.Option(help="Folder for NAME.json and NAME.md.")] = Path("runs/reproduce"),
    judge: Annotated[
        str,
        typer.Option(metavar="allenai|exact|tfidf:DIR|...", help="As of `trimtab evaluate`; allenai: its 7B judges."),
    ] = "allenai",
    n_sites: Annotated[int, typer.Option("--n-sites", "--top-k", min=1, help="Heads to shift.")] = 48,
    strength: Annotated[
        float, typer.Option("--strength", "--alpha", help="In sigmas of the protocol's own prompt bank.")
    ] = 15.0,
    texts: Annotated[
        Path | None, typer.Option(help="Neutral texts for CE and KL, one a line.", show_default="trimtab's own")
    ] = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Run a published protocol and print its figures beside ours, with the known deviations.

    Folds and runs that are done are kept in OUT/runs: the same command goes on from there after it was stopped.

    Figures were published for huggyllama/llama-7b, meta-llama/Llama-2-7b-chat-hf (13b, 70b),
    meta-llama/Meta-Llama-3-8B-Instruct, circulus/alpaca-7b and AlekseyKorshuk/vicuna-7b.

    Example: trimtab reproduce iti-2fold --model huggyllama/llama-7b --data TruthfulQA.csv
    """
    from trimtab.cli.judging import open_judge
    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import read_data
    from trimtab.datasets.lines import read_lines
    from trimtab.evaluate.defaults import answer_meters
    from trimtab.evaluate.judges.checking import judge_line
    from trimtab.peft.methods.full import FullFineTuning
    from trimtab.peft.recipe import Recipe
    from trimtab.protocols import as_judge
    from trimtab.published.reproduce import PublishedIti, iti_table_1, iti_two_fold
    from trimtab.storage import write_errors, write_json

    one_of(protocol, "protocol", PROTOCOLS)
    Output(out / f"{protocol}.json", overwrite).checked()
    judging = open_judge(judge, dtype=loading.dtype)
    questions = read_data(data, limit=limit)
    with write_errors(out):  # before hours of work, not after
        out.mkdir(parents=True, exist_ok=True)
    loaded = loading.open()
    meters = answer_meters(
        judge=judging,
        texts=None if texts is None else read_lines(texts, "neutral text"),
        convention="iti",
    )
    options = {"meters": meters, "numbers": PublishedIti(n_sites, strength), "keep": out / "runs"}
    if protocol == "iti-2fold":
        result = iti_two_fold(*loaded, questions, **options)
    else:
        sft = FullFineTuning(recipe=Recipe(objective="true_and_false"))
        result = iti_table_1(*loaded, questions, sft=sft, **options)
    text = f"{result.to_markdown()}\n{judge_line(as_judge(judging).describe())}\n"
    write_json(out / f"{protocol}.json", result.as_dict())
    (out / f"{protocol}.md").write_text(text, encoding="utf-8")
    print_json(result.as_dict()) if as_json else typer.echo(text)
