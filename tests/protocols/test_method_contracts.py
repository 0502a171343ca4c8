"""The laws that every Method and every Control keeps, over the lists of tests/cases.py."""

from __future__ import annotations

import json
import warnings
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.cases import (
    CONTROLS,
    EDITING,
    FACTS,
    METHODS,
    TUNING,
    UNLIKE,
    every_control,
    every_method,
    slowly,
)
from tests.observing import logits, random_state, state_of
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.errors import BadValue
from trimtab.protocols import Control, Cost, Edit, Method

QUESTIONS = tiny_questions(8)


@cache
def the_model() -> Any:
    """Return one model for all tests, each of which must leave it as it was."""
    return tiny_model()


def items_for(name: str) -> Any:
    return FACTS if name in EDITING or name == "facts in the prompt" else QUESTIONS


class Fitted(NamedTuple):
    """An edit, and whether fitting it left everything else as it was."""

    edit: Edit
    left_the_model: bool
    left_the_draws: bool


@cache
def by_default(name: str) -> Fitted:
    """Return what a method gives without knobs, fitted once for all tests."""
    before, draws = state_of(the_model()), random_state()
    edit = fitted(name)
    return Fitted(edit, state_of(the_model()) == before, random_state() == draws)


def fitted(name: str, knobs: Any = None, seed: int = 1) -> Edit:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*stayed unlikely")  # as random models do not learn in four steps
        return METHODS[name].fit(the_model(), tiny_tokenizer(), items_for(name), knobs=knobs, seed=seed)


def says(edit: Edit) -> tuple[Tensor, str | None]:
    """Return what the edited model says to fixed tokens, and how a question is asked."""
    with edit.applied(the_model(), "all") as edited:
        return logits(edited), edit.prompt("What is the colour of snow?")


def assert_same(one: Edit, other: Edit) -> None:
    assert torch.equal(says(one)[0], says(other)[0])
    assert says(one)[1] == says(other)[1]
    assert one.describe() == other.describe()
    assert one.name == other.name


@every_method
def test_fitting_gives_an_edit_and_leaves_the_model_and_all_random_numbers_as_they_were(name):
    method, (edit, left_the_model, left_the_draws) = METHODS[name], by_default(name)
    assert left_the_model
    assert left_the_draws
    assert isinstance(edit, Edit)
    assert isinstance(edit.cost, Cost)
    assert edit.name
    assert json.loads(json.dumps(edit.describe()))["kind"]
    assert edit.replaces_model == method.replaces_model


@pytest.mark.parametrize("name", [name for name in METHODS if name not in TUNING])
def test_a_method_says_of_its_edits_whether_they_change_prompts_alone(name):
    assert by_default(name).edit.changes_prompt_only == METHODS[name].changes_prompt_only


@every_method
def test_a_seed_and_a_setting_decide_the_edit_however_it_is_asked_for(name):
    method = METHODS[name]
    last = list(method.grid)[-1]
    expected = fitted(name, last) if last else by_default(name).edit
    assert_same(method.fitter(the_model(), tiny_tokenizer(), items_for(name), seed=1)(last), expected)


# a way of tuning that is given no knobs takes those of its recipe
@pytest.mark.parametrize("name", [name for name in METHODS if name not in TUNING and name != "vectors on tuned"])
def test_the_first_setting_of_the_space_is_the_default(name):
    assert_same(by_default(name).edit, fitted(name, next(iter(METHODS[name].grid))))


@pytest.mark.parametrize("name", slowly(list(METHODS), *(TUNING.keys() - UNLIKE)))
def test_knobs_that_a_method_does_not_have_are_refused_in_one_sentence(name):
    before = state_of(the_model())
    with pytest.raises(BadValue) as refused:
        fitted(name, {"no_such_knob": 1})
    assert "no_such_knob" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert state_of(the_model()) == before


@every_method
def test_a_method_describes_itself_and_its_settings_in_plain_values(name):
    method = METHODS[name]
    assert isinstance(method, Method)
    assert method.name
    grid = [json.dumps(knobs) for knobs in method.grid]
    assert grid and len(set(grid)) == len(grid)
    assert json.loads(json.dumps(method.describe(), default=str))


def test_no_two_methods_describe_themselves_alike():
    described = [json.dumps(method.describe(), default=str, sort_keys=True) for method in METHODS.values()]
    assert len(set(described)) == len(described)


def drawn(name: str, n: int, seed: tuple[int, ...] = (0, 1)) -> list[Edit]:
    control, after, _ = CONTROLS[name]
    return list(control.edits(after(the_model()), n, seed=seed))


@every_control
def test_the_first_of_many_draws_are_the_draws_of_few(name):
    few, many = drawn(name, 2), drawn(name, 4)
    assert len(many) == 4
    for one, other in zip(few, many, strict=False):
        assert_same(one, other)
    control, after, _ = CONTROLS[name]
    lazily = list(islice(control.edits(after(the_model()), 4, seed=(0, 1)), 1))
    assert_same(lazily[0], many[0])


@every_control
def test_each_draw_and_each_seed_gives_another_counterpart(name):
    before, draws = state_of(the_model()), random_state()
    made = [*drawn(name, 3), *drawn(name, 1, (0, 2)), *drawn(name, 1, (1, 1))]
    said = [says(edit)[0] for edit in [*made, CONTROLS[name].after(the_model())]]
    assert all(not torch.equal(said[i], said[j]) for i in range(len(said)) for j in range(i))
    assert state_of(the_model()) == before
    assert random_state() == draws


@every_control
def test_an_edit_without_counterparts_is_refused_in_one_sentence(name):
    control, _, none_of = CONTROLS[name]
    with pytest.raises(BadValue):
        list(control.edits(none_of(the_model()), 1, seed=(0,)))


@every_control
def test_a_control_describes_itself_and_says_whom_it_follows(name):
    control = CONTROLS[name].control
    assert isinstance(control, Control)
    assert control.draws > 0
    described = json.loads(json.dumps(control.describe()))
    assert (described["name"], described["follows"], described["draws"]) == (
        control.name,
        control.follows,
        control.draws,
    )
