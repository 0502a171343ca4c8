"""`trimtab evaluate`: one table row for an edit (or for the model as it is), with intervals."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.judging import Judging, print_judge
from trimtab.cli.measuring import Broken, OwnMeters
from trimtab.cli.options import AsJson, BatchSize, Data, Editing, Limit, Loading, Texts, one_of

if TYPE_CHECKING:
    from trimtab.evaluate.table import Row, Table


FITTED_ON, SHOWN = 4, 3
"""How many pairs an edit must have been made with for answers to others to be read, and how many are printed."""


@verb
def evaluate(
    data: Data = "folklore",
    loading: Loading = Loading(),
    editing: Editing = Editing(),
    baseline: Annotated[bool, typer.Option("--baseline", help="Measure the unedited model too.")] = False,
    asking: Annotated[
        str,
        typer.Option(
            "--asking",
            "--convention",
            metavar="auto|plain|bare|primer|chat|lm-eval|iti",
            help="How the model is asked: as in `trimtab fit`, or by a published convention (lm-eval, iti).",
        ),
    ] = "auto",
    judging: Judging = Judging(),
    broken: Broken = Broken(),
    wording: Annotated[
        bool, typer.Option("--wording", help="Say how the same answers read: debris, loops, length.")
    ] = False,
    choices_only: Annotated[
        bool, typer.Option("--choices-only", help="Multiple choice only: no generated answers, no judge.")
    ] = False,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the generated answers and each verdict on them; run again, it goes on from there.",
            show_default="runs/answers, unless the judge is exact",
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Keep the edit's multiple choice in its folder, for `trimtab heads --against`."),
    ] = False,
    meter: OwnMeters = [],  # noqa: B006 - typer copies it
    texts: Texts = None,
    no_drift: Annotated[bool, typer.Option("--no-drift", help="Leave drift on neutral text out.")] = False,
    limit: Limit = None,
    batch_size: BatchSize = None,
    as_json: AsJson = False,
) -> None:
    """Measure the edited model: True*Info of its answers, multiple choice, and drift on neutral text.

    Questions that the edit was fitted on are left out. Of facts it measures what is said, kept and leaked.
    Contrast pairs are scored by how answers to their prompts read (0 as the negative texts, 100 as the positive
    ones, to the unedited model, which learns that from the pairs that the edit was fitted on), by the share of word
    triples that these answers repeat, by the probability of the positive side and its margin in nats, and with
    --judge FILE.py:NAME by your own function of pair and generated text, from 0 to 1.
    --json has every question's row too, under "details".

    Example: trimtab evaluate --edit runs/shift --limit 20
    """
    from trimtab.cli.against import keepable
    from trimtab.cli.measuring import meters_for, own_meters
    from trimtab.cli.printing import print_json, print_table
    from trimtab.cli.setup import read_data
    from trimtab.edits.combined import NoEdit
    from trimtab.evaluate.multiple_choice import Convention
    from trimtab.evaluate.table import mute_sentences, table
    from trimtab.protocols import as_judge
    from trimtab.steer.pipeline import unseen

    one_of(asking, "way to ask", get_args(Convention))
    convention = asking if asking in ("lm-eval", "iti") else None
    edit = editing.open()
    questions = read_data(data, part="final")
    pairs = questions.measured_by != "answers"  # or facts, which have measures of their own too
    if pairs:
        _check_pairs(questions.name, judging, convention, choices_only)
    keep_in = keepable(editing.edits, questions) if keep else None
    whole = questions
    questions = whole if edit is None else unseen(whole, edit)
    setting: dict[str, Any] = {"questions": questions.name, "n": 0, "fitted_on": len(whole) - len(questions)}
    questions = questions if limit is None else questions[:limit]
    setting["n"] = len(questions)
    by_probability = choices_only or (pairs and judging.judge == "exact")
    judged = None if by_probability else judging.open(questions, **loading.settings)
    if answers is None and judging.judge != "exact" and not pairs and not choices_only:
        answers = Path("runs/answers")
    loaded = loading.open()
    edits = ([NoEdit()] if baseline or edit is None else []) + ([edit] if edit is not None else [])
    how: dict[str, Any] = {"convention": convention, "batch_size": batch_size, "choices_only": choices_only}
    how["n_texts"] = 0 if no_drift else texts
    how["wording"] = wording
    if questions.measured_by == "pairs" and setting["fitted_on"] >= FITTED_ON:
        left = {item.key for item in questions}
        how["learnt_from"] = whole.where(lambda item: item.key not in left)
    meters = (*meters_for(questions, judged, **how), *broken.meters(), *own_meters(meter))
    form = "plain" if convention else asking
    measured = table(*loaded, questions, edits, meters=meters, keep=answers, asking=form)
    setting["convention"] = convention or measured.setting["convention"]
    if keep_in is not None:
        _keep(keep_in, measured.rows[-1], setting["convention"])
    if pairs and setting["convention"] == "plain":
        del setting["convention"]  # they are continued, not asked
    if judged is not None:
        setting["judge"] = as_judge(judged).describe()
    mute = setting["mute"] = measured.setting.get("mute", {})
    if as_json:
        print_json({"rows": [_as_dict(measured, row) for row in measured.rows], "setting": setting})
        return
    for said in mute_sentences(mute, measured.meters):
        warnings.warn(said, stacklevel=2)
    print_table(measured.headings, measured.cells, title=_title(setting))
    _print_answers(measured)
    if judged is not None:
        print_judge(setting["judge"])


def _check_pairs(name: str, judging: Judging, convention: str | None, choices_only: bool) -> None:
    from trimtab.errors import BadValue

    if convention or choices_only or not judging.fits_pairs:
        raise BadValue(
            f"{name} holds contrast pairs, scored by probability and by --judge FILE.py:NAME, a function of your own, "
            "or facts, measured by what is said; leave another --judge, --choices-only and published conventions out"
        )


def _as_dict(measured: "Table", row: "Row") -> dict[str, Any]:
    from trimtab.evaluate.table import plain_figure

    figures = {meter.heading: plain_figure(row[meter.name]) for meter in measured.meters}
    return {"name": row.name, **figures, "details": row.details}


def _print_answers(measured: "Table") -> None:
    """Print what was answered to a few prompts, where that was measured."""
    read = {row.name: row.details["reading"] for row in measured.rows if "reading" in row.details}
    for of_prompt in list(zip(*read.values(), strict=True))[:SHOWN]:
        typer.echo(of_prompt[0]["prompt"])
        for name, row in zip(read, of_prompt, strict=True):
            typer.echo(f"  {name}: {' '.join(row['text'].split())}")


def _keep(folder: Path, row: "Row", convention: str) -> None:
    from trimtab.cli.against import keep_choices
    from trimtab.evaluate.multiple_choice import MultipleChoice

    figures = {name: row[name].as_dict() for name in ("mc1", "mc2", "mc3")}
    about = {"convention": convention, "tokens_computed": 0, "rows": row.details["multiple_choice"]}
    keep_choices(folder, MultipleChoice.from_dict({**figures, **about}), row.edit["strength"])


def _title(setting: dict[str, Any]) -> str:
    left = f", without {setting['fitted_on']} that the edit was fitted on" if setting["fitted_on"] else ""
    how = f", asked as {setting['convention']}" if "convention" in setting else ""
    how += ", answers generated in the plain form" if setting.get("convention") == "lm-eval" else ""
    return (
        f"{setting['n']} questions of {setting['questions']}{left}{how}: means and 95 % intervals (%; CE, KL in nats)"
    )
