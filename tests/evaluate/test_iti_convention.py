"""Convention "iti": its prompt and periods as published, strict MC1, sums over whole answers, its cut of answers."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.datasets import Question
from trimtab.datasets.primer import INSTRUCTION, QA_PRIMER, iti_context
from trimtab.edits.combined import NoEdit
from trimtab.engine.completion import cut
from trimtab.errors import BadValue
from trimtab.evaluate import generate_answers, multiple_choice

SOME = Question("Some?", ("best", "good.", "fair"), ("bad", "worse."))


@pytest.fixture
def scored(monkeypatch):
    """Return a function that scores SOME with given log-probabilities, by answer, in ITI's way."""

    def run(convention, *values):
        class Scores:
            tokens_computed = 0

            def __init__(self, n):
                self.logprobs = [[float(v) for v in values] for _ in range(n)]

        def fake(model, tokenizer, answers, edits, **options):
            assert len(answers) == len(values)
            return Scores(len(edits))

        monkeypatch.setattr(sys.modules[multiple_choice.__module__], "score_answers", fake)
        return multiple_choice(tiny_model(context=2000), tiny_tokenizer(), [SOME], convention=convention).rows[0]

    return run


def test_prompt_and_primer_are_the_published_ones(shared_data):
    folder = shared_data / "truthfulqa"
    primer, instruction = (folder.joinpath(n).read_text(encoding="utf-8").strip() for n in
                           ("qa_primer.txt", "instruction.txt"))  # fmt: skip
    assert (primer, instruction) == (QA_PRIMER, INSTRUCTION)
    assert iti_context("Why?") == f"{instruction}\n\n{primer}\n\nQ: Why?"


def test_hand_computed_scores(scored):
    probabilities = [0.1, 0.2, 0.05, 0.3, 0.15]
    row = scored("iti", *(math.log(p) for p in probabilities))
    assert row.mc1 == 0.0
    assert row.mc2 == pytest.approx(0.35 / 0.8, rel=1e-12)
    assert row.mc3 == 0.0
    row = scored("iti", -1, -4, -2, -3, -9)
    assert (row.mc1, row.mc3) == (1.0, pytest.approx(2 / 3))


def test_a_tie_is_lost_where_lm_eval_wins_it(scored):
    assert scored("iti", -2, -3, -1, -2, -3).mc1 == 0.0
    assert scored("plain", -2, -3, -1, -2, -3).mc1 == 1.0


def test_every_answer_ends_in_one_period(scored):
    row = scored("iti", -1, -2, -3, -4, -5)
    assert [a.text for a in row.answers] == ["best.", "good.", "fair.", "bad.", "worse."]
    assert row.prompt == f"{iti_context('Some?')}\nA:"
    assert scored("plain", -1, -2, -3, -4, -5).answers[0].text == "best"


def test_the_whole_answer_is_summed_and_none_of_its_tokens_dropped():
    model, tokenizer = tiny_model(context=2000, dtype=torch.float64), tiny_tokenizer()
    row = multiple_choice(model, tokenizer, tiny_questions(1), NoEdit(), convention="iti").rows[0]
    start = len(tokenizer(row.prompt)["input_ids"])
    for answer in row.answers[:2]:
        ids = tokenizer(f"{row.prompt} {answer.text}")["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        whole = sum(float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids)))
        assert answer.logprob == pytest.approx(whole, abs=1e-6)
        first = float(logprobs[start - 1, ids[start]])
        assert abs(first) > 0.1  # dropping it would show


@pytest.mark.usefixtures("unchecked")
def test_generated_answers_are_asked_and_cut_as_published():
    said = generate_answers(
        tiny_model(context=2000), tiny_tokenizer(), tiny_questions(1), convention="iti", max_new_tokens=3
    )
    assert said.rows[0].prompt == iti_context(tiny_questions(1)[0].question)
    assert cut("\nA: One.\n\nTwo.\nQ: Next?", paragraphs=True) == "One.\n\nTwo."
    assert cut("One.\n\nTwo.") == "One."  # the control: plain form ends at the paragraph
    with pytest.raises(BadValue, match="choose auto, plain, bare, primer, chat, iti"):
        getattr(generate_answers, "__wrapped__", generate_answers)(
            tiny_model(), tiny_tokenizer(), tiny_questions(1), convention="lm-eval"
        )
