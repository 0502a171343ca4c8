"""`trimtab tune`: tune a model on questions and keep what was learned as an edit."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.method_names import TUNING
from trimtab.cli.options import AsJson, Asking, Data, Limit, Loading, Output, Seed, one_of

if TYPE_CHECKING:
    from trimtab.datasets.questions import QuestionSet
    from trimtab.peft.tuned_edit import TunedEdit

Method = Annotated[
    str,
    typer.Option(
        "--method",
        help=f"{', '.join(TUNING)} (see `trimtab methods`).",
        autocompletion=lambda incomplete: [name for name in TUNING if name.startswith(incomplete)],
    ),
]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="Any other field of the method or its recipe; may be repeated."),
]
FEW_STEPS = 20
"""Below so many optimiser steps what was learned may not show in answers."""


@verb
def tune(
    method: Method = "lora",
    loading: Loading = Loading(),
    data: Data = "folklore",
    output: Output = Output(Path("runs/tuned")),
    rank: Annotated[int | None, typer.Option("--rank", help="LoRA's rank.", show_default="8")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the data.", show_default="3")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Peak.", show_default="the method's own")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Examples in a step.", show_default="16")
    ] = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
    test: Annotated[
        float, typer.Option("--test", min=0, max=0.9, help="Share of questions held out and measured; 0 for none.")
    ] = 0.2,
    asking: Asking = "auto",
    limit: Limit = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Tune the model on the true answers of questions, and write the result as an edit (an adapter where PEFT has one).

    A run that was cut off goes on from its last checkpoint when the same command is given again. What a tracker
    (--set report_to=tensorboard) writes into the run's folder, OUT.unfinished, stands in OUT.trackers at the end.

    Example: trimtab tune --method lora --rank 8 --quantization nf4-dq --out runs/qlora
    """
    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import quiet, read_data
    from trimtab.peft.tuned_edit import KIND
    from trimtab.protocols import stopwatch

    quiet()
    given = {"r": rank, "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size}
    given = {**{name: value for name, value in given.items() if value is not None}, **_parsed(settings)}
    chosen = TUNING[one_of(method, "tuning method", list(TUNING))].made(given, f"the method {method!r}")
    out = output.checked(KIND)
    questions = read_data(data, part="development", limit=limit)
    with stopwatch() as opening:
        opened = loading.open()
    questions = questions.asked_as(asking, opened.tokenizer)
    train, held = questions.split(test=test, seed=seed) if test else (questions, None)
    unfinished = out.with_name(f"{out.name}.unfinished")
    with _plans_in_logs():
        edit = chosen.fit(opened.model, opened.tokenizer, train, seed=seed, out=unfinished)
    with stopwatch() as evaluating:
        measured: dict[str, Any] = {}
        if held is not None and held.measured_by == "answers":
            measured = _measured(opened.model, opened.tokenizer, edit, held)
        speed = _speed(opened.model, opened.tokenizer, edit)
    seconds = {**edit.record["seconds"], "load": opening[0], "evaluate": evaluating[0]}
    edit = edit.with_record(seconds=seconds, measured=measured, ms_per_token=speed)
    edit.save(out)
    _clear(unfinished, out.with_name(f"{out.name}.trackers"))
    if as_json:
        print_json({**edit.record, "name": edit.name, "out": str(out)})
    else:
        _show(edit, out)


@contextlib.contextmanager
def _plans_in_logs() -> Iterator[None]:
    """Write what is planned to stderr also where that is no terminal, as in a job's log."""
    from trimtab.peft.train.fit import PLANS

    handler, level = logging.StreamHandler(), PLANS.level
    PLANS.addHandler(handler)
    PLANS.setLevel(logging.INFO)
    try:
        yield
    finally:
        PLANS.removeHandler(handler)
        PLANS.setLevel(level)


def _clear(unfinished: Path, trackers: Path) -> None:
    """Delete the folder of a run that is done, once what its trackers wrote into it stands in a folder of its own."""
    import shutil

    from trimtab.models.processes import rank_and_count
    from trimtab.storage import RECORD, write_errors

    if rank_and_count()[0] > 0:
        return
    with write_errors(trackers):
        for path in sorted(unfinished.rglob("*")):
            place = path.relative_to(unfinished)
            if path.is_file() and path.name != RECORD and not any(p.startswith("checkpoint-") for p in place.parts):
                (trackers / place.parent).mkdir(parents=True, exist_ok=True)
                path.replace(trackers / place)
    shutil.rmtree(unfinished, ignore_errors=True)


def _parsed(settings: list[str]) -> dict[str, Any]:
    from trimtab.cli.checking import yaml_value
    from trimtab.errors import BadValue

    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise BadValue(f"--set takes NAME=VALUE, got {setting!r}")
        values[name.replace("-", "_")] = yaml_value(value, f"--set {name}: {value!r} cannot be read as a value")
    return values


def _measured(model: Any, tokenizer: Any, edit: "TunedEdit", held: "QuestionSet") -> dict[str, Any]:
    from trimtab.edits.combined import NoEdit
    from trimtab.evaluate.multiple_choice import choice_meters
    from trimtab.evaluate.table import plain_figure, table

    rows = table(model, tokenizer, held, [NoEdit(), edit], meters=choice_meters()[:2]).rows
    figures = [{meter: plain_figure(value) for meter, value in row.estimates.items()} for row in rows]
    return {"questions": len(held), **dict(zip(("untuned", "tuned"), figures, strict=True))}


def _speed(model: Any, tokenizer: Any, edit: "TunedEdit") -> dict[str, float]:
    from trimtab.edits.combined import NoEdit
    from trimtab.evaluate.cost import milliseconds_per_token

    asked = ("What is snow?",) * 3
    return {
        name: milliseconds_per_token(model, tokenizer, asked, one, new_tokens=8)
        for name, one in (("untuned", NoEdit()), ("tuned", edit))
    }


def _show(edit: "TunedEdit", out: Path) -> None:
    from trimtab.cli.printing import print_table

    record = edit.record
    seconds, speed, measured = record["seconds"], record["ms_per_token"], record["measured"]
    typer.echo(
        f"{edit.name}: {edit.cost.trainable_parameters:,} trained numbers, {record['steps']} steps over "
        f"{record['tokens_seen']:,} tokens, loss {record['losses'][0]:.3f} -> {record['losses'][-1]:.3f}"
    )
    if record["steps"] < FEW_STEPS:
        typer.echo(
            f"{record['steps']} steps are few, and what was learned may not show: give more --epochs, or a smaller "
            "--batch-size"
        )
    typer.echo("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    typer.echo("peak memory: " + ", ".join(f"{k} {v / 1e6:.0f} MB" for k, v in record["peak_bytes"].items()))
    typer.echo(f"a generated token: {speed['tuned']:.1f} ms, untuned {speed['untuned']:.1f} ms")
    if measured:
        rows = [[name, *(_cell(measured[name][m]) for m in ("mc1", "mc2"))] for name in ("untuned", "tuned")]
        print_table([f"{measured['questions']} held-out questions", "MC1", "MC2"], rows)
    typer.echo(f"Written to {out}")


def _cell(estimate: dict[str, float]) -> str:
    from trimtab.cells import figure
    from trimtab.intervals import Estimate

    return figure(Estimate(*(estimate[key] for key in ("mean", "low", "high")), n=0), "share")
