"""Two lettered options in both orders: by hand, and a model that knows one letter only."""

from __future__ import annotations

import sys
from itertools import chain, cycle

import pytest

from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.datasets import Question
from trimtab.edits.combined import NoEdit
from trimtab.edits.prompts import Prompted
from trimtab.engine.score import Scores
from trimtab.evaluate import multiple_choice
from trimtab.evaluate.two_way import TwoWayChoices, options


def test_the_true_option_stands_in_both_places_and_its_letter_is_the_answer():
    asked = Question("What is snow?", ("White.", "Pale."), ("Black.", "Red."), best_answer="Pale.")
    one, other = (options(asked, first_true=order) for order in (True, False))
    assert one.question == "What is snow?\nA. Pale.\nB. Black.\nAnswer with the letter alone."
    assert other.question == "What is snow?\nA. Black.\nB. Pale.\nAnswer with the letter alone."
    assert (one.correct, one.incorrect, other.correct, other.incorrect) == (("A",), ("B",), ("B",), ("A",))


@pytest.mark.parametrize("edit", [NoEdit(), Prompted((("a?", "b"),))], ids=lambda edit: edit.name)
def test_a_row_is_the_mean_of_multiple_choice_over_the_two_orders(edit):
    model, tokenizer, questions = tiny_model(), tiny_tokenizer(), tiny_questions(12)
    (found,) = TwoWayChoices().measure(model, tokenizer, questions, [edit])
    orders = ([options(q, first_true=first_true) for q in questions] for first_true in (True, False))
    both = [*zip(*(multiple_choice(model, tokenizer, order, edit).rows for order in orders), strict=True)]
    assert [row["two_way"] for row in found.rows.values()] == [(one.mc1 + other.mc1) / 2 for one, other in both]
    likely = [row["probability"] for row in found.rows.values()]
    assert likely == pytest.approx([(one.mc2 + other.mc2) / 2 for one, other in both])
    assert list(found.rows) == [q.key for q in questions]


def test_a_model_that_knows_one_letter_gets_one_half_of_every_question(monkeypatch):
    calls = cycle([(0.0, -1.0), (-1.0, 0.0)])  # of the right letter and the wrong one, where A is always likelier

    def scores(model, tokenizer, tokens, edits, **_):
        pair = next(calls)
        return Scores(tuple([tuple(chain.from_iterable([pair] * (len(tokens) // 2)))] * len(edits)), 0)

    monkeypatch.setattr(sys.modules[multiple_choice.__module__], "score_answers", scores)
    (found,) = TwoWayChoices().measure(tiny_model(), tiny_tokenizer(), tiny_questions(4), [NoEdit()])
    assert {row["two_way"] for row in found.rows.values()} == {0.5}
