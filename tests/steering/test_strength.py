"""choose_strength picks what a brute-force loop picks, within its budget, and says so when it cannot."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch

from tests.planted import World, letter_judge, letter_world
from tests.tiny import tiny_model
from trimtab.edits.combined import NoEdit
from trimtab.edits.vectors import HeadShift
from trimtab.errors import BadValue, Incompatible
from trimtab.evaluate import drift, generate_answers, multiple_choice
from trimtab.evaluate.generation import judged_meters
from trimtab.steer import Sweep, choose_strength, sweep_figure

ALPHAS = (1, 2, 4, 8)
KS = (1, 2, 4)
BUDGETS = (0.1, 0.5)


@pytest.fixture(scope="module")
def world() -> World:
    return letter_world()


def choose(world: World, shift: HeadShift | None = None, **options: Any) -> HeadShift:
    shift = world.shift if shift is None else shift
    options = {"alphas": ALPHAS, "texts": world.texts, "judge": letter_judge, "metric": "true_info", **options}
    sweep = Sweep(**{name: options.pop(name) for name in ("alphas", "top_ks", "texts") if name in options})
    judge = options.pop("judge")
    if options["metric"] == "true_info":
        options["metric"] = judged_meters(judge=judge)[0]
    return choose_strength(world.model, world.tokenizer, world.questions, shift, sweep=sweep, **options)


@pytest.fixture(scope="module")
def swept(world) -> Callable[[str, float], HeadShift]:
    """Return a function that gives the choice over the whole grid by metric and budget, each made once."""
    return cache(lambda metric, budget: choose(world, metric=metric, kl_budget=budget, top_ks=KS))


class Outcome(NamedTuple):
    kl: float
    true_info: float
    mc1: float


@pytest.fixture(scope="module")
def outcomes(world) -> dict[tuple[int, float], Outcome]:
    """Return what every setting does, measured one by one without any early end; the brute force."""
    return {(k, alpha): measured(world, world.shift, k, alpha) for k in KS for alpha in ALPHAS}


def measured(world: World, shift: HeadShift, k: int, alpha: float) -> Outcome:
    edit = HeadShift(shift.heads[:k], shift.directions[:k], alpha * shift.sigma[:k])
    said = generate_answers(world.model, world.tokenizer, world.questions, edit, judge=letter_judge)
    scored = multiple_choice(world.model, world.tokenizer, world.questions, edit)
    kl = drift(world.model, world.tokenizer, edit, texts=world.texts).kl
    return Outcome(float(kl), float(said.true_info), float(scored.mc1))


def best_within(outcomes: dict[tuple[int, float], Outcome], metric: str, budget: float) -> tuple[int, float]:
    within = {setting: o for setting, o in outcomes.items() if o.kl <= budget}
    return max(within, key=lambda setting: getattr(within[setting], metric))


def setting_of(shift: HeadShift) -> tuple[int, float]:
    return len(shift.heads), shift.strength


def tried(shift: HeadShift) -> dict[tuple[int, float], dict[str, Any]]:
    return {(t["top_k"], t["strength"]): t for t in shift.record["sweep"]["trials"][1:]}


@pytest.mark.parametrize("metric", ["true_info", "mc1"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_choice_is_that_of_a_brute_force_loop(world, swept, outcomes, metric, budget):
    chosen = swept(metric, budget)
    expected = best_within(outcomes, metric, budget)
    assert setting_of(chosen) == expected
    assert chosen.heads == world.shift.heads[: expected[0]]
    trial = chosen.record["sweep"]["chosen"]
    assert trial["score"] == pytest.approx(getattr(outcomes[expected], metric), abs=1e-6)
    assert trial["kl"] == pytest.approx(outcomes[expected].kl, rel=1e-4)


def test_the_planted_best_setting_lies_inside_the_grid_and_moves_with_the_budget(outcomes):
    # without this the loop above could agree by always taking an end of the grid
    picks = [best_within(outcomes, "true_info", budget) for budget in (*BUDGETS, math.inf)]
    assert len(set(picks)) > 1
    assert all(min(ALPHAS) < alpha < max(ALPHAS) for _, alpha in picks)
    assert any(min(KS) < k < max(KS) for k, _ in picks)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_kl_budget_is_respected_and_decides_the_choice(world, swept, outcomes, budget):
    chosen = swept("mc1", budget)
    assert float(drift(world.model, world.tokenizer, chosen, texts=world.texts).kl) <= budget
    assert best_within(outcomes, "mc1", math.inf) != setting_of(chosen)


def test_the_sweep_of_a_head_count_ends_at_the_first_strength_over_the_budget(swept, outcomes):
    budget = 0.1
    trials = tried(swept("mc1", budget))
    expected = set()
    for k in KS:
        over = [alpha for alpha in ALPHAS if outcomes[k, alpha].kl > budget]
        assert len(over) > 1
        expected |= {(k, alpha) for alpha in ALPHAS if alpha <= over[0]}
    assert set(trials) == expected
    for setting, trial in trials.items():
        assert trial["kl"] == pytest.approx(outcomes[setting].kl, rel=1e-4)
        within = outcomes[setting].kl <= budget
        assert trial["score"] == (pytest.approx(outcomes[setting].mc1, abs=1e-6) if within else None)


def test_the_two_signs_are_swept_apart(world):
    sides = []
    for alphas in ((0.5, 1, 2, 4), (-0.5, -1, -2, -4), (0.5, -0.5, 1, -1, 2, -2, 4, -4)):
        chosen = choose(world, world.shift, metric="mc1", kl_budget=0.06, top_ks=[2], alphas=alphas)
        sides.append(sorted(chosen.record["sweep"]["trials"][1:], key=lambda t: t["strength"]))
    assert sides[1] + sides[0] == sides[2]
    # the control: one side goes over the budget before the other, so that a shared end would cut the other short
    assert [max(abs(t["strength"]) for t in side) for side in sides[:2]] == [2, 4]


def test_the_record_keeps_the_unedited_model_every_trial_and_the_choice(world):
    known = replace(world.shift, record={**world.shift.record, "seed": 3})
    chosen = choose(world, known, kl_budget=0.5, top_ks=[2], alphas=[2, 4])
    sweep = chosen.record["sweep"]
    said = generate_answers(world.model, world.tokenizer, world.questions, NoEdit(), judge=letter_judge)
    baseline = {"top_k": 0, "strength": 0.0, "kl": 0.0, "score": float(said.true_info)}
    assert sweep["trials"][0] == baseline
    assert [t["strength"] for t in sweep["trials"][1:]] == [2, 4]
    assert sweep["chosen"] in sweep["trials"]
    assert (sweep["metric"], sweep["kl_budget"], sweep["n_validation"]) == ("true_info", 0.5, 8)
    assert chosen.record["seed"] == 3
    assert "sweep" not in chosen.describe()


def test_strengths_are_in_units_of_the_given_shift(world, outcomes):
    assert best_within({s: o for s, o in outcomes.items() if s[0] == 2}, "mc1", 0.5) == (2, 4)
    chosen = choose(world, world.shift.scaled(2), metric="mc1", kl_budget=0.5, top_ks=[2], alphas=(1, 2, 4))
    assert setting_of(chosen) == (2, 4)
    assert chosen.record["sweep"]["chosen"]["strength"] == 2


def test_head_counts_are_the_whole_its_half_and_its_quarter_if_not_given(world):
    for whole, expected in ((4, {1, 2, 4}), (3, {1, 3}), (1, {1})):
        chosen = choose(world, world.shift.first(whole), metric="mc1", kl_budget=10, alphas=[8])
        assert {k for k, _ in tried(chosen)} == expected


def test_the_order_and_repetition_of_the_grid_do_not_matter(world, swept):
    mixed = choose(world, metric="mc1", kl_budget=0.1, top_ks=(4, 1, 2, 1), alphas=(8, 4, 0, 2, 1, 2))
    assert mixed.record["sweep"] == swept("mc1", 0.1).record["sweep"]


def test_negative_strengths_push_a_reversed_shift_back(world, outcomes):
    reversed_shift = world.shift.scaled(-1)
    chosen = choose(world, reversed_shift, metric="mc1", kl_budget=0.5, top_ks=[2], alphas=(-4, -2, 2))
    assert chosen.record["sweep"]["chosen"]["strength"] == -4
    assert chosen.strength == 4
    for head, delta in chosen.deltas.items():
        assert torch.allclose(delta, 4 * world.shift.deltas[head])
    assert chosen.record["sweep"]["chosen"]["score"] == pytest.approx(outcomes[2, 4].mc1)


def test_an_equal_score_goes_to_the_smaller_drift(world, outcomes):
    # by MC1 the weak strengths of one head are the same
    scores = {outcomes[1, alpha].mc1 for alpha in (1, 2)}
    assert len(scores) == 1
    with pytest.warns(UserWarning, match="beats the unedited"):
        chosen = choose(world, metric="mc1", kl_budget=0.1, top_ks=[1], alphas=(2, 1))
    assert setting_of(chosen) == (1, 1)


def asking_for(world: World, names: Sequence[str]) -> tuple[HeadShift, set[str]]:
    """Choose with a shift that was validated on these questions; return it and what was asked."""
    asked: set[str] = set()

    def judge(question: Any, answer: str) -> Any:
        asked.add(question.question)
        return letter_judge(question, answer)

    shift = replace(world.shift, record={**world.shift.record, "validation_questions": list(names)})
    return choose(world, shift, kl_budget=0.5, top_ks=[2], alphas=[4], judge=judge), asked


def test_the_questions_that_the_probes_were_validated_on_are_used(world):
    everything = [q.question for q in world.questions]
    chosen, asked = asking_for(world, everything[3:8])
    assert asked == set(everything[3:8])
    assert chosen.record["sweep"]["n_validation"] == 5
    # all of them where the shift does not say, or was validated on questions that are not among these
    for names in ((), ("Some other question?",)):
        chosen, asked = asking_for(world, names)
        assert asked == set(everything)
        assert chosen.record["sweep"]["n_validation"] == 8


def test_a_choice_that_does_not_beat_the_unedited_model_comes_with_a_warning(world):
    telling = r"no setting within a KL of 0.5 beats the unedited model's mc1 of 0\.\d{3} on 8 validation questions"
    with pytest.warns(UserWarning, match=telling):
        choose(world, metric="mc1", kl_budget=0.5, top_ks=[4], alphas=(-1, -2))
    with warnings.catch_warnings(action="error"):
        choose(world, metric="mc1", kl_budget=0.5, top_ks=[4], alphas=(1, 2))


def test_if_all_is_over_the_budget_the_error_names_the_smallest_kl(world, outcomes):
    with pytest.raises(BadValue) as caught:
        choose(world, metric="mc1", kl_budget=1e-5, top_ks=KS)
    # each head count ends at its weakest strength
    least = min(outcomes[k, 1].kl for k in KS)
    assert str(caught.value) == (
        f"no setting stays within a KL of 1e-05: the smallest is {least:.3g} at strength 1 on 1 heads; "
        "raise kl_budget or try smaller alphas"
    )


def test_a_shift_that_changes_nothing_is_an_error(world):
    nothing = replace(world.shift, sigma=torch.zeros(4))
    with pytest.raises(Incompatible, match="the shift changes nothing at any strength: it does not act on this model"):
        choose(world, nothing, metric="mc1", alphas=(1, 8))
    # the control: one head that acts is enough
    hardly = replace(world.shift, sigma=torch.tensor([0.0, 0.0, 0.0, 1.0]))
    chosen = choose(world, hardly, metric="mc1", kl_budget=10, top_ks=[1, 4], alphas=[8])
    assert [trial["kl"] > 0 for trial in tried(chosen).values()] == [False, True]


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        ({"kl_budget": 0}, "kl_budget must be positive, got 0"),
        ({"kl_budget": math.nan}, "kl_budget must be positive, got nan"),
        ({"alphas": ()}, r"alphas must hold finite strengths, at least one of them not 0, got \[\]"),
        ({"alphas": (0, 0.0)}, r"alphas must hold finite strengths, at least one of them not 0, got \[0, 0.0\]"),
        ({"alphas": (1, math.inf)}, r"alphas must hold finite strengths.* got \[1, inf\]"),
        ({"alphas": (math.nan,)}, r"alphas must hold finite strengths.* got \[nan\]"),
        ({"top_ks": ()}, r"top_ks must hold head counts from 1 to the shift's 4, got \[\]"),
        ({"top_ks": (0, 2)}, r"top_ks must hold head counts from 1 to the shift's 4, got \[0, 2\]"),
        ({"top_ks": (2, 5)}, r"top_ks must hold head counts from 1 to the shift's 4, got \[2, 5\]"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_work(world, options, telling):
    without_model = World(None, None, world.questions, world.shift, world.texts)
    with pytest.raises(BadValue, match=telling):
        choose(without_model, **options)


def test_an_unknown_metric_is_refused_naming_the_known_ones(world):
    # users run it without the tests' check of annotations, which would speak first
    unchecked = inspect.unwrap(choose_strength)
    with pytest.raises(BadValue, match="unknown metric 'accuracy'; choose true_info or mc1"):
        unchecked(None, None, world.questions, world.shift, metric="accuracy")


def test_a_shift_for_another_model_is_refused(world):
    elsewhere = world._replace(model=tiny_model("llama", seed=5))
    with pytest.raises(Incompatible, match="made for another checkpoint"):
        choose(elsewhere, metric="mc1")


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


@pytest.mark.parametrize("through_disk", [False, True])
def test_the_figure_shows_every_trial_of_the_sweep(swept, tmp_path, through_disk):
    shift = swept("mc1", 0.1)
    if through_disk:
        shift.save(tmp_path / "shift")
        shift = HeadShift.load(tmp_path / "shift")
    left, right = sweep_figure(shift).axes
    sweep, score, kl = shift.record["sweep"], lines(left), lines(right)
    for k in KS:
        rows = [trial for (top_k, _), trial in sorted(tried(shift).items()) if top_k == k]
        scored = [t for t in rows if t["score"] is not None]
        # a setting over the budget has a drift but no score
        assert len(scored) == len(rows) - 1
        assert kl[f"K = {k}"] == ([t["strength"] for t in rows], [t["kl"] for t in rows])
        assert score[f"K = {k}"] == ([t["strength"] for t in scored], [t["score"] for t in scored])
    assert score["unedited"][1] == 2 * [sweep["trials"][0]["score"]]
    assert kl["budget"][1] == [0.1, 0.1]
    assert score["chosen"] == ([sweep["chosen"]["strength"]], [sweep["chosen"]["score"]])
    assert (left.get_ylabel(), left.get_title()) == ("MC1", "8 validation questions")
    assert right.get_yscale() == "log"


def test_a_shift_without_a_sweep_has_no_figure(world):
    with pytest.raises(BadValue, match="this shift has no sweep: it did not come from choose_strength"):
        sweep_figure(world.shift)


@pytest.mark.parametrize("given", [float("nan"), float("inf"), None, "0.5"])
def test_a_metric_that_gives_no_number_is_refused_by_name(world, given):
    def told(*_: Any) -> Any:
        return given

    with pytest.raises(BadValue, match=r"the metric .*told returned .*, expected a finite number"):
        choose(world, metric=told)
