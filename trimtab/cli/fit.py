"""`trimtab fit`: from questions or contrast pairs to a shift folder, and a sentence that says whether it works."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.judging import Judging, print_judge
from trimtab.cli.options import FAILED, AsJson, Data, Limit, Loading, Output, Seed, one_of
from trimtab.cli.placing import Placing

if TYPE_CHECKING:
    from trimtab.datasets.questions import QuestionSet
    from trimtab.steer.pipeline import Fitted

SHOWN = 3
"""Answers that are printed at each strength."""


@verb
def fit(
    data: Data = "folklore",
    loading: Loading = Loading(),
    output: Output = Output(Path("runs/shift")),
    placing: Placing = Placing(),
    metric: Annotated[
        str | None,
        typer.Option(
            help="What chooses the strength: mc1, or true_info of generated answers by the judge.",
            show_default="true_info on folklore or with a judge, else mc1",
        ),
    ] = None,
    judging: Judging = Judging(),
    kl_budget: Annotated[
        float | None,
        typer.Option(
            "--kl-budget",
            help="Nats per token that the strength may cost on neutral text.",
            show_default="0.1; 0.2 for places by effect",
        ),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option("--held-out", help="Share of the questions that is left for `trimtab evaluate` (0: none). "
                     "Of folklore, its final part is left instead.", show_default="0.5; 0.25 of contrast pairs"),
    ] = None,
    limit: Limit = None,
    keep_anyway: Annotated[
        bool, typer.Option("--keep-anyway", help="Write a shift that does not work, too.")
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Fit a shift: capture activations, probe them, choose places and strength; write a folder.

    The questions can be TruthfulQA, folklore (which ships here), or your own file of questions with true and false
    answers, or of contrast pairs ({"prompt": ..., "positive": ..., "negative": ...}). The exact judge knows the
    questions' listed answers only; a judge of another kind fits models that say other things. Where the strength is
    chosen, the exit code is 3 if it does not work (nothing that was tried beats the unedited model, or the two sides
    do not differ in a common direction): nothing is written then.

    Example: trimtab fit --model MODEL --data pairs.jsonl --out runs/mine
    """
    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import read_data
    from trimtab.errors import BadDataset
    from trimtab.steer import meters
    from trimtab.steer import pipeline as recipe

    out = output.checked(recipe.KIND)
    whole = read_data(data, part="development", limit=limit)
    if whole.measured_by == "facts":
        raise BadDataset(f"{whole.name} holds facts, which no shift is fitted on; use trimtab edit, or give questions")
    recipe.require_enough(whole)
    questions = _without(whole, data, held_out, seed)
    if recipe.are_pairs(questions):
        _check_pairs(questions.name, metric, judging)
    by = metric or ("true_info" if data == "folklore" or judging.judge != "exact" else "mc1")
    one_of(by, "metric", ("true_info", "mc1"))
    spec = placing.spec()
    judged = None
    if judging.judge != "exact":
        meters.require_something_to_judge(questions, by, spec.strength)
        judged = judging.open(questions, **loading.settings)
    own = recipe.are_pairs(questions) and judged is None
    chosen_by = None if own else meters.judged_metric(questions, by, judged)
    fitted = recipe.fit(*loading.open(), questions, spec, metric=chosen_by, kl_budget=kl_budget, seed=seed)
    failed = fitted.outcome is not None and fitted.outcome.verdict == "does not work" and not keep_anyway
    if not failed:
        fitted.save(out)
    if as_json:
        print_json(_as_dict(fitted, None if failed else str(out)))
    else:
        _print(fitted, len(whole) - len(questions), "pairs" if recipe.are_pairs(questions) else "questions")
        if judged is not None:
            print_judge(fitted.shift.record["sweep"]["judge"])
        typer.echo("not written; --keep-anyway writes it" if failed else f"written to {out}")
    if failed:
        raise typer.Exit(FAILED)


def _check_pairs(name: str, metric: str | None, judging: Judging) -> None:
    from trimtab.errors import BadValue

    if metric is not None or not judging.fits_pairs:
        raise BadValue(
            f"{name} holds contrast pairs: what chooses the strength is the probability of their positive sides, or a "
            "function of your own, --judge FILE.py:NAME; leave --metric and any other --judge out"
        )


def _without(questions: "QuestionSet", data: str, share: float | None, seed: int) -> "QuestionSet":
    """Return the questions without those that are left for `trimtab evaluate`."""
    from trimtab.errors import BadValue

    if data == "folklore":
        if share is not None:
            raise BadValue(
                "--held-out is for data of your own: of folklore its final part is left; leave the option out"
            )
        return questions
    share = (0.25 if questions.measured_by == "pairs" else 0.5) if share is None else share
    if not 0 <= share < 1:
        raise BadValue(f"--held-out must be a share from 0 to below 1, got {share}")
    return questions.split(test=share, seed=seed)[0] if share else questions


def _as_dict(fitted: "Fitted", out: str | None) -> dict[str, Any]:
    told = {name: of and of.as_dict() for name, of in (("screen", fitted.screened), ("outcome", fitted.outcome))}
    return {"out": out, **fitted.shift.describe(), "sweep": fitted.shift.record.get("sweep"), **told}


def _print(fitted: "Fitted", held_back: int, items: str) -> None:
    from trimtab.cli.printing import print_table
    from trimtab.edits.sited import site_name

    shift, sweep = fitted.shift, fitted.shift.record.get("sweep")
    if sweep and "sites" in sweep["chosen"]:
        rows = [
            (
                "unedited" if not t["sites"] else t["control"] or f"{shift.place} {_sites(t['sites'])}",
                f"{t['strength']:.3g}",
                f"{t['kl']:.3f}",
                f"{t['score']:.3f}",
                "chosen" if t == sweep["chosen"] else "over budget" if t["kl"] > sweep["kl_budget"] else t["spoilt"],
            )
            for t in sweep["trials"]
        ]
        print_table(("tried", "strength", "KL", sweep["metric"], ""), rows, title="What was tried")
        for t in sorted(sweep["trials"], key=lambda t: t["strength"]):
            if t["answers"] and not t["control"] and t["sites"] in ((), sweep["chosen"]["sites"]):
                at = f"strength {t['strength']:.3g}, KL {t['kl']:.2f}" if t["sites"] else "unedited"
                typer.echo("\n".join([f"{at}, {sweep['metric']} {t['score']:.2f}:", *map(_line, t["answers"][:SHOWN])]))
        if sweep["metric"] == "reading":
            typer.echo("(reading: 0 as the negative texts, 1 as the positive ones, to the unedited model)")
    named = " ".join(site_name(site) for site in shift.sites)
    kind = "heads (layer.head)" if shift.site == "heads" else "layers"
    used = shift.record["data"]
    back = f"; {held_back} held back for `trimtab evaluate` (--held-out 0 uses all)" if held_back else ""
    lines = [f"{shift.name}: {len(shift)} {kind}: {named}", f"fitted on {used['n']} {items} of {used['name']}{back}"]
    if fitted.ranking is None:
        lines[1] = f"best probe {100 * max(shift.record['accuracy']):.1f} % on held-out statements; {lines[1]}"
    lines += [
        f"asked in {shift.asked_as} form" + ("" if shift.asked_as == "chat" else " (--asking)"),
        *(fitted.screened.remarks if fitted.screened else ()),
    ]
    if sweep:
        before, chosen = sweep["trials"][0]["score"], sweep["chosen"]
        lines.append(
            f"strength {shift.strength:.4g}, chosen on {sweep['n_validation']} {items}: {sweep['metric']} "
            f"{before:.3f} -> {chosen['score']:.3f} at a KL of {chosen['kl']:.3f} (budget {sweep['kl_budget']:g})"
        )
    else:
        lines.append(f"strength {shift.strength:g}, as given")
    if fitted.outcome is not None:
        lines.append(fitted.outcome.sentence)
    typer.echo("\n".join(lines))


def _line(text: str) -> str:
    return f"  {' '.join(text.split())}"


def _sites(sites: Any) -> str:
    from trimtab.edits.sited import site_name

    few = [site_name(site) for site in sites[:4]]
    return " ".join(few) + (f" and {len(sites) - 4} more" if len(sites) > 4 else "")
