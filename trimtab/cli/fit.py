"""`trimtab fit`: from questions to a shift folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.judging import Judging, print_judge
from trimtab.cli.options import AsJson, Data, Limit, Loading, Output, Seed, one_of

if TYPE_CHECKING:
    from trimtab.datasets.questions import QuestionSet
    from trimtab.steer.pipeline import Fitted


@verb
def fit(
    data: Data = "folklore",
    loading: Loading = Loading(),
    output: Output = Output(Path("runs/shift")),
    site: Annotated[
        str, typer.Option(help="heads: shift attention heads (ITI); residual: shift the residual stream (CAA).")
    ] = "heads",
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Heads or layers to shift at most.", show_default="16 heads, 1 layer"),
    ] = None,
    direction: Annotated[str, typer.Option(help="mass_mean, probe, or random (the control).")] = "mass_mean",
    metric: Annotated[
        str | None,
        typer.Option(
            help="What chooses the strength: mc1, or true_info of generated answers by the judge.",
            show_default="true_info on folklore or with a judge, else mc1",
        ),
    ] = None,
    judging: Judging = Judging(),
    kl_budget: Annotated[
        float, typer.Option("--kl-budget", help="Nats per token that the strength may cost on neutral text.")
    ] = 0.1,
    strength: Annotated[
        float | None, typer.Option(help="Set the strength instead of choosing it.", show_default="chosen")
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option("--held-out", help="Share of the questions that is left for `trimtab evaluate` (0: none). "
                     "Of folklore, its final part is left instead.", show_default="0.5"),
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Fit a shift: capture activations, probe them, choose places and strength; write a folder.

    The questions can be TruthfulQA, folklore (which ships here), or your own file of questions with true and false
    answers, or of contrast pairs ({"prompt": ..., "positive": ..., "negative": ...}). The exact judge knows the
    questions' listed answers only; a judge of another kind fits models that say other things.

    Example: trimtab fit --data mine.jsonl --out runs/mine
    """
    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import read_data
    from trimtab.steer import meters
    from trimtab.steer import pipeline as recipe
    from trimtab.steer.fitting import DIRECTIONS

    out = output.checked(recipe.KIND)
    questions = _without(read_data(data, part="development", limit=limit), data, held_out, seed)
    if recipe.are_pairs(questions):
        _check_pairs(questions.name, metric, judging)
    by = metric or ("true_info" if data == "folklore" or judging.judge != "exact" else "mc1")
    where = one_of(site, "site", ("heads", "residual"))
    spec = recipe.ShiftSpec(where, top_k, one_of(direction, "direction", tuple(DIRECTIONS)), strength)
    one_of(by, "metric", ("true_info", "mc1"))
    judged = None
    if judging.judge != "exact":
        meters.require_something_to_judge(questions, by, strength)
        judged = judging.open(questions, **loading.settings)
    chosen_by = meters.judged_metric(questions, by, judged)
    fitted = recipe.fit(*loading.open(), questions, spec, metric=chosen_by, kl_budget=kl_budget, seed=seed)
    fitted.save(out)
    if as_json:
        print_json({"out": str(out), **fitted.shift.describe(), "sweep": fitted.shift.record.get("sweep")})
    else:
        typer.echo(_summary(fitted, out))
        if judged is not None:
            print_judge(fitted.shift.record["sweep"]["judge"])


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
    share = 0.5 if share is None else share
    if not 0 <= share < 1:
        raise BadValue(f"--held-out must be a share from 0 to below 1, got {share}")
    return questions.split(test=share, seed=seed)[0] if share else questions


def _summary(fitted: "Fitted", out: Path) -> str:
    shift, sweep = fitted.shift, fitted.shift.record.get("sweep")
    places = shift.describe().get("heads") or shift.describe()["layers"]
    kind = "heads (layer.head)" if isinstance(places[0], list) else "layers"
    named = " ".join(".".join(map(str, p)) if isinstance(p, list) else str(p) for p in places)
    best: float = max(shift.record["accuracy"])
    lines = [
        f"{shift.name}: {len(places)} {kind}: {named}",
        f"best probe {100 * best:.1f} % on held-out statements; fitted on {shift.record['data']['n']} questions "
        f"of {shift.record['data']['name']}",
    ]
    if sweep:
        before, chosen = sweep["trials"][0]["score"], sweep["chosen"]
        lines.append(
            f"strength {shift.strength:g}, chosen on {sweep['n_validation']} questions: {sweep['metric']} "
            f"{before:.3f} -> {chosen['score']:.3f} at a KL of {chosen['kl']:.3f} (budget {sweep['kl_budget']:g})"
        )
    else:
        lines.append(f"strength {shift.strength:g}, as given")
    return "\n".join([*lines, f"written to {out}"])
