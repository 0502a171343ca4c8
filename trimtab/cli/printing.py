"""How verbs print: a table or JSON on standard output, remarks on standard error while someone is looking."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def print_json(value: Any) -> None:
    """Print plain values as JSON."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def remark(text: str) -> None:
    """Print a line on standard error if it is a terminal; pipes and logs stay quiet."""
    if sys.stderr.isatty():
        typer.echo(text, err=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print a table: drawn for a terminal, as tab-separated lines into a pipe (one line a row, headings first)."""
    if not sys.stdout.isatty():
        if title:
            remark(title)
        for line in (headings, *rows):
            typer.echo("\t".join(" ".join(cell.split()) for cell in line))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in rows:
        table.add_row(*row)
    Console().print(table, highlight=False, markup=False)


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a figure; raises `BadValue` for a format that there is not, `Incompatible` where the disk refuses it."""
    from trimtab.errors import BadValue
    from trimtab.storage import write_errors

    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
    except ValueError as cause:  # no such format
        raise BadValue(f"cannot draw {path}: name a .png, .svg or .pdf file") from cause
