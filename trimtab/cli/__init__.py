"""The command line: one file per verb, each turning flags into one library call and a printed result."""

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trimtab.cli.bake import bake
from trimtab.cli.build_embedded import build_embedded
from trimtab.cli.chat import chat
from trimtab.cli.combine import combine
from trimtab.cli.compare import compare
from trimtab.cli.convert import convert
from trimtab.cli.demo import demo
from trimtab.cli.edit import edit
from trimtab.cli.erase import erase
from trimtab.cli.evaluate import evaluate
from trimtab.cli.fit import fit
from trimtab.cli.generate import generate
from trimtab.cli.heads import heads
from trimtab.cli.judge import judge
from trimtab.cli.methods import methods
from trimtab.cli.real import real
from trimtab.cli.report import report
from trimtab.cli.reproduce import reproduce
from trimtab.cli.trace import trace
from trimtab.cli.tune import tune

_WRONG_COMMAND: Any = typer.BadParameter.__mro__[1]
"""What is raised for a command line that cannot be read; typer exports only this kind of it."""


class _Guarded(TyperGroup):
    """Prints a user's mistake, or what the disk refuses, in one sentence and exits with 2; Ctrl-C exits with 130."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the options before the verb."""
        with _in_one_sentence():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        from trimtab.noise import without_kernel_advice
        from trimtab.progress import one_pace

        noted = set[str]()

        def note(message: Any, *_: Any) -> None:
            if str(message) not in noted:  # whoever catches warnings makes Python forget which were shown
                noted.add(str(message))
                typer.echo(f"trimtab: note: {message}", err=True)

        with _in_one_sentence(ctx), one_pace(), without_kernel_advice(), warnings.catch_warnings():
            warnings.showwarning = note
            return super().invoke(ctx)


@contextlib.contextmanager
def _in_one_sentence(context: Any = None) -> Iterator[None]:
    from trimtab.errors import TrimtabError, first_line

    try:
        yield
        return
    except (typer.Exit, typer.Abort):  # no mistakes, though one of them is a RuntimeError
        raise
    except TrimtabError as mistake:
        said = str(mistake)
    except _WRONG_COMMAND as mistake:
        of: Any = mistake
        if type(of).__name__ == "NoArgsIsHelpError":
            raise
        called = [] if context is None else [context.command_path, context.invoked_subcommand]
        verb = of.ctx.command_path if of.ctx else " ".join(filter(None, called)) or "trimtab"
        said = f"{of.format_message().rstrip('.')}; {verb} -h says what it takes"
    except (RuntimeError, MemoryError) as cause:
        from trimtab.devices import ran_out_of_memory

        if not ran_out_of_memory(cause):
            raise
        said = (
            f"there was too little memory: {first_line(cause)[:200]}; use a smaller --batch-size, --dtype bfloat16, or "
            "a device with more room"
        )
    except OSError as cause:
        if cause.errno is None or cause.errno == errno.EPIPE:  # a closed pipe is no mistake: typer ends quietly
            raise
        place = f"{cause.filename}: " if cause.filename else ""
        said = f"{place}{cause.strerror}; name another place or mend this one"
    except KeyboardInterrupt:
        typer.echo("trimtab: interrupted", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"trimtab: {said}", err=True)
    raise typer.Exit(2)


app = typer.Typer(
    cls=_Guarded,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Edit and steer language models, and compare that honestly with tuning them.",
)
for _verb in (demo, fit, heads, generate, chat, evaluate, bake):
    app.command()(_verb)
app.command("merge")(bake)
app.add_typer(convert, name="convert")
app.add_typer(judge, name="judge")
for _verb in (trace, edit, combine, erase, tune, methods, compare, real, report, reproduce, build_embedded):
    app.command()(_verb)


def _version(wanted: bool) -> bool:
    from importlib.metadata import version

    if wanted:
        typer.echo(f"trimtab {version('trimtab')}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; of several processes of one launch the first alone prints, since all find the same."""
    first = os.environ.get("RANK", "0") == "0"
    with contextlib.nullcontext() if first else _printed_nowhere():
        app(prog_name="trimtab")


@contextlib.contextmanager
def _printed_nowhere() -> Iterator[None]:
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
