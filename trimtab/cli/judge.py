"""`trimtab judge`: train a judge of one's own, and check any judge against people and on nonsense."""

from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.judging import Judging
from trimtab.cli.options import AsJson, Data, Limit, Loading, Output, Seed

judge = typer.Typer(no_args_is_help=True, help="Train a judge of answers, and check any judge.")


@judge.command("check")
@verb
def check(
    judging: Judging = Judging(),
    data: Data = "folklore",
    labels: Annotated[
        Path | None,
        typer.Option(help="People's verdicts, .jsonl or .csv: question, answer, and true, informative or both.",
                     show_default="nonsense only"),
    ] = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Try a judge on nonsense, and on people's verdicts if there are any: agreement, rates, Cohen's kappa.

    Example: trimtab judge check --judge tfidf:judge_data --labels verdicts.csv --data TruthfulQA.csv
    """
    from trimtab.cli.judging import open_judge
    from trimtab.cli.printing import print_json, print_table
    from trimtab.cli.setup import read_data
    from trimtab.evaluate.judges.checking import judge_line, read_labels, tried_judge

    questions = read_data(data, limit=limit)
    people = [] if labels is None else read_labels(labels, questions)
    found = tried_judge(open_judge(judging.judge, judging.judge_model, judging.judge_key), questions, people)
    record = found.describe()
    if as_json:
        print_json(record)
        return
    kinds = ("true", "informative", "both")
    accepted = record["false_accepts"]
    rows = [[kind, *(f"{100 * of[name]['mean']:.0f}" for name in kinds)] for kind, of in accepted.items()]
    print_table(["", *kinds], rows, title="Nonsense that it calls so (%)")
    typer.echo(judge_line(record))


@judge.command("train")
@verb
def train(
    data: Annotated[Path, typer.Option("--data", help="Folder with finetune_truth.jsonl, finetune_info.jsonl.")],
    loading: Loading = Loading(),
    output: Output = Output(Path("runs/judge")),
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the data.")] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Examples in a step.")] = 128,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Peak.")] = 2e-4,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model to say whether answers are true and whether they are informative, as people did.

    Two checkpoints are written, and how far they agree with people on answers and questions that they were not
    trained on. Use them with --judge trained:DIR. It wants a GPU.

    Example: trimtab judge train --data judge_data --model HuggingFaceTB/SmolLM2-135M-Instruct --out runs/judge
    """
    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import quiet
    from trimtab.evaluate.judges.checking import false_accepts, judge_line
    from trimtab.evaluate.judges.judge_data import judge_parts, questions_of, read_judge_data
    from trimtab.evaluate.judges.local import JUDGE_KIND, LocalJudge
    from trimtab.export.checkpoint import checkpoint
    from trimtab.peft.methods.full import FullFineTuning
    from trimtab.peft.recipe import Recipe
    from trimtab.peft.tuned_judge import tune_judge
    from trimtab.storage import RECORD, versions, write_json, written_folder

    quiet()
    out = output.checked(JUDGE_KIND)
    rows = {kind: lines if limit is None else lines[:limit] for kind, lines in read_judge_data(data).items()}
    method = FullFineTuning(recipe=Recipe(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate))
    model, tokenizer = loading.open()
    name = f"{Path(loading.model).name}, tuned on {data.name}"
    record: dict[str, Any] = {"name": name, "recipe": method.recipe.as_dict(), "seed": seed}
    record |= {"people": {}, "people_on_other_answers": {}}
    with written_folder(out, JUDGE_KIND) as folder:
        for kind, part in (("true", "truth"), ("informative", "informative")):
            made = tune_judge(model, tokenizer, rows[kind], kind, method=method, seed=seed)
            checkpoint(model, tokenizer, made.edit, folder / part)
            record["people"][kind] = made.questions.as_dict()
            record["people_on_other_answers"][kind] = made.answers.as_dict()
        asked = questions_of(judge_parts(rows["true"], seed, str(data)).questions)
        trained = LocalJudge.load(folder / "truth", folder / "informative")
        record["false_accepts"] = false_accepts(trained, asked) if asked else {}
        write_json(folder / RECORD, {"kind": JUDGE_KIND, "versions": versions(), **record})
    if as_json:
        print_json({"out": str(out), **record})
        return
    typer.echo(judge_line(record))
    for kind, of in record["people_on_other_answers"].items():
        agreed = of["agreement"]
        shown = f"{100 * agreed['mean']:.1f} % [{100 * agreed['low']:.1f}, {100 * agreed['high']:.1f}]"
        typer.echo(f"on other answers to questions that it was trained on, for {kind}: {shown}")
    typer.echo(f"Written: {out}. Use it with: --judge trained:{out}")
