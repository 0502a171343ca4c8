"""`trimtab evaluate`: one table row for a shift (or for the model as it is), with intervals."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.judging import JudgeKey, JudgeModel, JudgeName
from trimtab.cli.options import (
    Alpha,
    AsJson,
    BatchSize,
    Data,
    Device,
    Dtype,
    Limit,
    MaybeShiftFolder,
    ModelName,
    Quantization,
    Revision,
)

if TYPE_CHECKING:
    from trimtab.datasets import QuestionSet
    from trimtab.edits import Edit
    from trimtab.intervals import Estimate
    from trimtab.models import LoadedModel


def evaluate(
    data: Data = "folklore",
    model: ModelName = "embedded",
    shift: MaybeShiftFolder = None,
    alpha: Alpha = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Measure the unedited model too.")] = False,
    convention: Annotated[str, typer.Option(help="How to ask: plain, lm-eval or iti.")] = "plain",
    judge: JudgeName = "exact",
    judge_model: JudgeModel = None,
    judge_key: JudgeKey = None,
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
        typer.Option("--keep", help="Keep the shift's multiple choice in its folder, for `trimtab heads --against`."),
    ] = False,
    dtype: Dtype = None,
    device: Device = None,
    quantization: Quantization = None,
    revision: Revision = None,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """Measure the shifted model: True*Info of its answers, multiple choice, and drift on neutral text.

    Questions that the shift was fitted on are left out. Contrast pairs are scored by the probability of their
    positive side.

    Example: trimtab evaluate --shift runs/shift --limit 20
    """
    from trimtab.cli.against import require_keepable
    from trimtab.cli.generate import require_shift
    from trimtab.cli.printing import print_json, print_table, remark
    from trimtab.cli.setup import open_model, open_shift, read_data
    from trimtab.edits import NoEdit
    from trimtab.errors import BadValue
    from trimtab.evaluate.judges import EndpointJudge, exact_judge, judge_record
    from trimtab.steer.recipe import are_pairs, unseen

    if convention not in ("plain", "lm-eval", "iti"):
        raise BadValue(f"unknown convention {convention!r}; choose plain, lm-eval or iti")
    edit = open_shift(shift, alpha)
    require_shift(edit, alpha=alpha)
    questions = read_data(data, part="final")
    if are_pairs(questions) and (judge != "exact" or convention != "plain" or choices_only):
        raise BadValue(
            f"{questions.name} holds contrast pairs, scored by probability; leave --judge, --convention and "
            "--choices-only out"
        )
    if keep:
        require_keepable(shift, questions)
    total = len(questions)
    questions = questions if edit is None else unseen(questions, edit)
    left_out = total - len(questions)
    questions = questions if limit is None else questions[:limit]
    loading = {"dtype": dtype, "device": device, "quantization": quantization}
    judged = None if choices_only or are_pairs(questions) else _open_judge(judge, judge_model, judge_key, loading)
    if answers is None and judged not in (None, exact_judge):
        answers = Path("runs/answers")
    if isinstance(judged, EndpointJudge):
        judged(questions[0], questions[0].best_answer)  # a wrong address shows before any answer is generated
    loaded = open_model(model, revision=revision, **loading)
    edits: list[Edit] = [*([NoEdit()] if baseline or edit is None else []), *([] if edit is None else [edit])]
    meters = {"convention": convention, "judge": judged, "batch_size": batch_size, "answers": answers}
    kept = [shift if keep and e is edit else None for e in edits]
    rows = [{"name": e.name, **_measured(loaded, questions, e, k, **meters)} for e, k in zip(edits, kept, strict=True)]
    setting: dict[str, Any] = {"questions": questions.name, "n": len(questions), "fitted_on": left_out}
    if not are_pairs(questions):
        setting["convention"] = convention
    if judged is not None:
        setting["judge"] = judge_record(judged)
    if as_json:
        plain = [{k: v.as_dict() if hasattr(v, "as_dict") else v for k, v in row.items()} for row in rows]
        print_json({"rows": plain, "setting": setting})
        return
    names = [n for n in rows[0] if n != "name"]
    print_table(["", *names], [[r["name"], *(_cell(n, r[n]) for n in names)] for r in rows], title=_title(setting))
    if judged is not None:
        _judge_beside(setting["judge"], remark)


def _measured(
    loaded: "LoadedModel",
    questions: "QuestionSet",
    edit: "Edit",
    keep_in: Path | None,
    *,
    convention: Any,
    judge: Any,
    batch_size: int,
    answers: Path | None,
) -> dict[str, "Estimate"]:
    from trimtab.cli.against import keep_choices
    from trimtab.evaluate import contrast, drift, generate_answers, multiple_choice
    from trimtab.steer.recipe import are_pairs

    found = {}
    if are_pairs(questions):
        scores = contrast(*loaded, questions, edit, batch_size=batch_size)
        found = {"P(positive)": scores.probability, "preferred": scores.preferred}
    else:
        if judge is not None:
            form = "iti" if convention == "iti" else "plain"
            options = {"convention": form, "batch_size": batch_size, "keep": answers}
            said = generate_answers(*loaded, questions, edit, judge=judge, **options)
            found = {"True*Info": said.true_info, "True": said.true, "Info": said.informative}
            found["unmatched"] = said.unmatched
        chosen = multiple_choice(*loaded, questions, edit, convention=convention, batch_size=batch_size)
        if keep_in is not None:
            keep_choices(keep_in, chosen, edit.describe()["strength"])
        found |= {"MC1": chosen.mc1, "MC2": chosen.mc2, "MC3": chosen.mc3}
    moved = drift(*loaded, edit, batch_size=batch_size)
    return {**found, "CE": moved.ce, "KL": moved.kl}


def _open_judge(name: str, model: str | None, key: str | None, loading: dict[str, Any]) -> Any:
    from trimtab.cli.judging import open_judge
    from trimtab.cli.setup import quiet

    quiet()
    return open_judge(name, model, key, **{k: v for k, v in loading.items() if v is not None})


def _cell(name: str, value: "Estimate") -> str:
    if name in ("CE", "KL"):
        return f"{value:.3f} [{value.low:.3f}, {value.high:.3f}]"
    return f"{100 * value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _title(setting: dict[str, Any]) -> str:
    left = f", without {setting['fitted_on']} that the shift was fitted on" if setting["fitted_on"] else ""
    how = f", asked as {setting['convention']}" if "convention" in setting else ""
    how += ", answers generated in the plain form" if setting.get("convention") == "lm-eval" else ""
    return (
        f"{setting['n']} questions of {setting['questions']}{left}{how}: means and 95 % intervals (%; CE, KL in nats)"
    )


def _judge_beside(record: dict[str, Any], remark: Any) -> None:
    from trimtab.cli.judging import judge_line

    # an indicative judge's agreement stands beside its figures wherever they go, also into a pipe
    if record.get("indicative"):
        typer.echo(judge_line(record))
    else:
        remark(judge_line(record))
