"""`trimtab compare`: prompting, steering and tuning on the same questions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli.options import FAILED, AsJson

if TYPE_CHECKING:
    from trimtab.compare.comparison import Comparison
    from trimtab.compare.design import Job


def compare(
    config: Annotated[
        Path | None, typer.Option(help="YAML file that describes the comparison.", show_default="the shipped methods")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder; running again does what is missing.")] = Path(
        "runs/comparison"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A small comparison: about four minutes on 2 cores.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and an estimate of time, and stop.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed trials again, and measure their folds and seeds anew.")
    ] = False,
    redo_changed: Annotated[
        bool, typer.Option("--redo-changed", help="Do methods anew whose settings are not those in the run folder.")
    ] = False,
    stop_after: Annotated[
        float | None,
        typer.Option("--stop-after", min=1, help="Start no trial after so many seconds.", show_default="never"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare prompting, steering and tuning: fitted, chosen and measured on the same questions.

    The same command in several terminals shares the work, and a killed run loses at most the trials in flight.
    Afterwards `trimtab report` makes the page. The exit code is 3 if a method failed in every fold and seed.

    Example: trimtab compare --quick --out runs/quick
    """
    from trimtab.cli.comparison_file import QUICK_LEFT_OUT, ComparisonFile, job_of, read_comparison_file
    from trimtab.cli.comparison_file import quick as quick_file
    from trimtab.cli.options import Loading
    from trimtab.cli.printing import print_json
    from trimtab.compare.estimate import estimate
    from trimtab.compare.running import run_job
    from trimtab.errors import BadValue

    if quick and config is not None:
        raise BadValue("--quick is a comparison of its own; leave out --config, or make your file smaller")
    said = quick_file() if quick else ComparisonFile() if config is None else read_comparison_file(config)
    job = job_of(said)
    loaded = Loading(said.model, **said.load).open()
    if dry_run:
        plan = estimate(*loaded, job, out)
        print_json(plan.as_dict()) if as_json else typer.echo(plan.to_text())
        return
    if not (out / "record.json").exists():
        for meter in job.meters:
            meter.try_out(job.questions)
    again = {"retry_failed": retry_failed, "redo_changed": redo_changed}
    done = run_job(*loaded, job, out, stop_after=stop_after, **again)
    if as_json:
        print_json({**done.as_dict(), **({"left_out": QUICK_LEFT_OUT} if quick else {})})
    else:
        _show(done, job, out)
        if quick:
            typer.echo(f"Left out by --quick: {QUICK_LEFT_OUT}.")
    if failed := done.failed_everywhere:
        typer.echo(
            f"{', '.join(failed)} failed in every fold and seed; the notes say why: mend it, and run the same command "
            "with --retry-failed",
            err=True,
        )
        raise typer.Exit(FAILED)


def _show(done: "Comparison", job: "Job", out: Path) -> None:
    from trimtab.cli.printing import print_table
    from trimtab.report.answers import answered_items
    from trimtab.report.markdown import (
        broken_cells,
        broken_headings,
        cost_cells,
        cost_headings,
        notes,
        quality_headings,
        quality_rows,
        rows_shown,
        status,
    )
    from trimtab.report.verdict import about, conclusions, warnings_of

    rows = rows_shown(done, job.design.train_sizes[-1])
    print_table(
        quality_headings(done),
        quality_rows(done, job.design.train_sizes[-1]),
        title="What it gains: means, 95 % intervals over questions, ± between seeds",
    )
    print_table(broken_headings(done), [broken_cells(r, done) for r in rows], title="What it breaks")
    print_table(cost_headings(done)[:-1], [cost_cells(r, done)[:-1] for r in rows], title="Costs")
    for item, first, _ in answered_items(done, rows, 3):
        typer.echo(f"\n{item}")
        for one in first:
            typer.echo(f"  {one.name}: {' '.join(one.text.split())}{one.figure and f' ({one.figure})'}")
    for note in notes(done):
        typer.echo(note)
    for said in (about(done), *warnings_of(done), *conclusions(done)):
        typer.echo(said)
    typer.echo(f"{status(done)}\nRun: {out}. Make the page with: trimtab report {out}")
