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
    """Print a table: drawn for a terminal, as tab-separated lines into a pipe (one line a row, headings first).

    What is too wide for the terminal continues beneath, behind the first column.
    """
    if not sys.stdout.isatty():
        if title:
            remark(title)
        for line in (headings, *rows):
            typer.echo("\t".join(" ".join(cell.split()) for cell in line))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for columns in _beneath_each_other(headings, rows, console.width):
        table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i in columns:
            alone = len(columns) == 2  # and perhaps wider than the terminal
            table.add_column(headings[i], justify="left" if i == 0 else "right", no_wrap=i > 0 and not alone)
        for row in rows:
            table.add_row(*(row[i] for i in columns))
        console.print(table, highlight=False, markup=False)
        title = ""


def _beneath_each_other(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Return the columns of each part of a table that is wider than the terminal; the first stands in all of them."""
    from rich.cells import cell_len

    first, *others = (2 + max(map(cell_len, column)) for column in zip(headings, *rows, strict=True))
    left = width - min(first, width // 3) - 1
    parts, used = [[0]], 0
    for i, needed in enumerate(others, 1):
        if used + needed > left and len(parts[-1]) > 1:
            parts.append([0])
            used = 0
        parts[-1].append(i)
        used += needed
    return parts


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
