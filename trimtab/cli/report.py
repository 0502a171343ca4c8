"""`trimtab report`: a run folder as one page."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.measuring import OwnMeters
from trimtab.cli.options import AsJson


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folder(s) that `trimtab compare` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html and report.md.", show_default="the first run folder")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Comparison",
    meter: OwnMeters = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """Write report.html (one file, opens offline) and report.md; a half-finished run is drawn and marked as such.

    Several runs become one page where their rows may be compared; otherwise the reason is given.

    Example: trimtab report runs/quick
    """
    from trimtab.cli.measuring import own_meters
    from trimtab.cli.printing import print_json
    from trimtab.compare.comparison import Comparison, merged
    from trimtab.report.html import write_report
    from trimtab.report.markdown import status

    comparison = merged([Comparison.load(run, meters=own_meters(meter)) for run in runs])
    written = write_report(comparison, out or runs[0], title=title)
    if as_json:
        print_json({"written": [str(p) for p in written], **comparison.as_dict()})
    else:
        typer.echo(f"{status(comparison)}\nWritten: {', '.join(map(str, written))}")
