"""Edits that need no model: prompting, stacking, and what they cost."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.errors import BadValue
from trimtab.protocols import Cost, Edit, Method, stopwatch

SNOW = ("What is snow?", "Snow is white.")
COAL = ("What is coal?", "Coal is black.")


@dataclass(frozen=True)
class Wrapping(Edit):
    """A toy edit that wraps the model, as some tuning methods do, and tells where it was asked to act."""

    name: str
    seen: list
    cost: Cost = field(default_factory=lambda: Cost(1.5, 10, 100))
    leaves_prompt_unedited: bool = False

    @contextlib.contextmanager
    def applied(self, model, positions="generated"):
        self.seen.append(("enter", self.name, positions))
        try:
            yield (self.name, model)
        finally:
            self.seen.append(("exit", self.name))

    def prompt(self, question):
        return None

    def describe(self):
        return {"kind": "wrapping"}


def test_few_shot_prompts_are_the_pairs_in_order_and_then_the_question():
    assert Prompted((SNOW, COAL)).prompt("What is rust?") == (
        "Q: What is snow?\nA: Snow is white.\n\nQ: What is coal?\nA: Coal is black.\n\nQ: What is rust?\nA:"
    )


def test_an_instruction_stands_first_followed_by_a_blank_line():
    assert Prompted((SNOW,), instruction="Be brief.").prompt("What is rust?") == (
        "Be brief.\n\nQ: What is snow?\nA: Snow is white.\n\nQ: What is rust?\nA:"
    )
    assert Prompted((), instruction="Be brief.").prompt("What is rust?") == "Be brief.\n\nQ: What is rust?\nA:"


def test_prompting_with_nothing_is_refused():
    with pytest.raises(BadValue, match=r"needs at least one \(question, answer\) example or an instruction"):
        Prompted(())


@pytest.mark.parametrize("edit", [NoEdit(), Prompted((SNOW,))])
def test_edits_that_leave_the_model_alone_yield_the_same_object_and_cost_nothing(edit):
    model = object()
    with edit.applied(model) as edited:
        assert edited is model
    assert edit.cost == Cost(0.0, 0, 0)
    assert edit.leaves_prompt_unedited


def test_no_edit_leaves_the_prompt_to_the_measurement():
    assert NoEdit().prompt("What is rust?") is None
    assert NoEdit().describe() == {"kind": "none"}


def test_a_prompting_edit_describes_its_examples():
    assert Prompted((SNOW,), instruction="Be brief.").describe() == {
        "kind": "prompted",
        "examples": [list(SNOW)],
        "instruction": "Be brief.",
    }


@pytest.mark.parametrize("edits", [(), (NoEdit(),)])
def test_a_stack_of_fewer_than_two_edits_is_refused(edits):
    with pytest.raises(BadValue, match=f"needs two or more edits, got {len(edits)}"):
        Stacked(edits)


def test_a_stack_of_two_prompting_edits_is_refused_naming_them():
    one, other = Prompted((SNOW,), name="Snow"), Prompted((COAL,), name="Coal")
    with pytest.raises(BadValue, match="only one edit of a stack may change the prompt, got Snow and Coal"):
        Stacked((one, NoEdit(), other))
    with pytest.raises(BadValue, match="got Snow and Coal"):
        Stacked((one, Stacked((NoEdit(), other), name="Coal")))


def test_a_stack_asks_as_its_one_prompting_edit_does():
    few_shot = Prompted((SNOW,))
    for edits in ((few_shot, NoEdit()), (NoEdit(), few_shot), (NoEdit(), Stacked((NoEdit(), few_shot)))):
        assert Stacked(edits).prompt("What is coal?") == few_shot.prompt("What is coal?")
    assert Stacked((NoEdit(), NoEdit())).prompt("What is coal?") is None


def test_a_stack_applies_its_edits_in_order_each_to_what_the_one_before_yielded():
    seen = []
    stack = Stacked((Wrapping("a", seen), Wrapping("b", seen)))
    with stack.applied("model", "all") as edited:
        assert edited == ("b", ("a", "model"))
    assert seen == [("enter", "a", "all"), ("enter", "b", "all"), ("exit", "b"), ("exit", "a")]


def test_a_stack_leaves_every_edit_when_the_block_fails():
    seen = []
    with pytest.raises(KeyError), Stacked((Wrapping("a", seen), Wrapping("b", seen))).applied("model"):
        raise KeyError("x")
    assert seen[2:] == [("exit", "b"), ("exit", "a")]


def test_a_stack_sums_costs_joins_names_and_lists_its_parts():
    stack = Stacked((NoEdit(), Wrapping("a", []), Wrapping("b", [])))
    assert stack.cost == Cost(3.0, 20, 200)
    assert stack.name == "Baseline + a + b"
    assert Stacked((NoEdit(), NoEdit()), name="Twice nothing").name == "Twice nothing"
    assert stack.describe() == {"kind": "stacked", "edits": [{"kind": "none"}] + 2 * [{"kind": "wrapping"}]}


def test_a_stack_leaves_the_prompt_unedited_only_if_all_its_edits_do():
    assert Stacked((NoEdit(), Prompted((SNOW,)))).leaves_prompt_unedited
    assert not Stacked((NoEdit(), Wrapping("a", []))).leaves_prompt_unedited


def test_the_protocols_tell_edits_and_methods_from_other_things():
    class Fits(Method):
        space: ClassVar = {"r": (8,)}

        def fit(self, model, tokenizer, train, *, knobs=None, seed=0):
            return NoEdit()

    edits = (NoEdit(), Prompted((SNOW,)), Wrapping("a", []), Stacked((NoEdit(), NoEdit())))
    assert all(isinstance(e, Edit) for e in edits)
    assert isinstance(Fits(), Method)
    assert not isinstance(Fits(), Edit)
    assert not isinstance(NoEdit(), Method)


def test_the_stopwatch_holds_the_seconds_of_its_block():
    with stopwatch() as seconds:
        assert seconds == []
        time.sleep(0.02)
    assert 0.02 <= seconds[0] < 1
