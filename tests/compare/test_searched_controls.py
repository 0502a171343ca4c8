"""Controls with as many tries as the method beside them, and what answers' style gives without a model."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tests.cases import FEW_SHOT
from tests.comparing import METERS, SpyMethod, tiny_run
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.cli.comparison_methods import method_of, rows_of
from trimtab.compare import RandomTries, ShuffledLabels
from trimtab.compare.search import Search, Tried
from trimtab.datasets import Question, QuestionSet
from trimtab.datasets.pairs import ContrastPair, PairSet
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.contrast import PairContrast
from trimtab.evaluate.multiple_choice import AnswerChoices
from trimtab.protocols import Method, Ready
from trimtab.steer import ITI

METHOD = ITI(top_ks=(2, 4), alphas=(1, 4))


def test_random_tries_have_the_method_s_places_and_norms_and_other_directions_at_every_setting():
    model, tokenizer, train = tiny_model(), tiny_tokenizer(), tiny_questions(8)
    fit, drawn = (m.fitter(model, tokenizer, train, seed=3) for m in (METHOD, RandomTries(METHOD)))
    seen = []
    for knobs in METHOD.grid:
        ours, theirs = fit(knobs), drawn(knobs)
        assert ours.heads == theirs.heads and ours.strength == theirs.strength
        assert torch.equal(ours.sigma, theirs.sigma)
        assert not torch.allclose(ours.directions, theirs.directions)
        seen.append(theirs.directions[0])
    elsewhere = RandomTries(METHOD).fit(model, tokenizer, train[1:], knobs=METHOD.grid[0], seed=3)  # another fold
    seen.append(elsewhere.directions[0])
    assert not any(torch.allclose(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_a_control_searches_as_its_method_does():
    def tries(method):
        search, tried = Search.of(method, 3, (1, 0)), []
        for number in range(search.n):
            tried.append(Tried(search.knobs(number, tried), float(number), True))
        return [t.knobs for t in tried]

    for control in (RandomTries, ShuffledLabels):
        assert tries(control(METHOD)) == tries(METHOD)


def test_shuffled_labels_keep_every_question_its_answers_and_the_sides_their_sizes():
    spy = SpyMethod()
    questions = QuestionSet(tuple(Question(f"Q{i}?", ("a", "b", "c"), ("d", "e")) for i in range(40)))
    ShuffledLabels(spy).fit(tiny_model(), tiny_tokenizer(), questions)
    assert spy.log == [("fitted", tuple(q.question for q in questions))]
    dealt = questions.shuffled(0)
    assert all(len(q.correct) == 3 and {*q.correct, *q.incorrect} == set("abcde") for q in dealt)
    true = Counter(answer for q in dealt for answer in q.correct)
    assert all(14 <= true[answer] <= 33 for answer in "abcde")  # each is true in three of five on average
    assert dealt == questions.shuffled(0) != questions.shuffled(1)


def test_pairs_are_shuffled_and_what_has_no_sides_is_not():
    pairs = PairSet(tuple(ContrastPair(f"p{i}", ("yes",), ("no",)) for i in range(40)))
    assert 8 <= sum(p.positive == ("no",) for p in pairs.shuffled(1)) <= 32
    with pytest.raises(BadDataset, match="no true and false statements to shuffle"):
        from trimtab.datasets import atlas

        atlas().shuffled(0)


class Nothing(Method):
    def fit(self, model, tokenizer, train, *, knobs=None, seed=0):
        return NoEdit()


def test_a_method_without_random_counterparts_fails_its_tries_in_words(tmp_path):
    done = tiny_run(tmp_path / "run", [Nothing(), RandomTries(Nothing())], seeds=(0,))
    failed = [t for t in done.tests if t["status"] == "failed"]
    assert {t["method"] for t in failed} == {"Random tries (Nothing)"}
    assert "no random counterpart" in failed[0]["why"]


def test_tries_of_what_only_prompts_or_is_not_compared_are_refused(tmp_path):
    with pytest.raises(BadValue, match="Few-shot changes the prompt alone: it has no directions"):
        RandomTries(Ready(FEW_SHOT))
    with pytest.raises(BadValue, match=r"'Random tries \(Nothing\)' stands beside 'Nothing', which is not among"):
        tiny_run(tmp_path / "run", [RandomTries(Nothing())])


@pytest.mark.parametrize(
    "entry", ["random tries", {"random tries": "random direction"}, {"shuffled labels": {"random tries": "iti"}}]
)
def test_a_control_of_nothing_or_of_a_control_is_refused(entry):
    with pytest.raises(BadValue, match=r"stands beside|is a control itself"):
        method_of(entry)


def test_a_file_names_the_method_that_a_control_stands_beside():
    rows = rows_of(["iti", {"random tries": "iti"}, {"shuffled labels": {"iti": {"top_ks": [4]}}}])
    assert list(rows) == ["ITI", "Random tries (ITI)", "Shuffled labels (ITI)"]
    assert rows["Shuffled labels (ITI)"].space["top_k"] == (4,)


# ---- style


def planted(word, n=60):
    """Return questions whose true answers hold a word; without one no word or length tells the sides apart."""
    drawn = np.random.default_rng(5)
    sides = (("ab"[side], "ba"[side]) for side in drawn.integers(0, 2, n))
    return QuestionSet(tuple(Question(f"Q{i}?", (f"{a} {word}{i}",), (f"{b} {i}",)) for i, (a, b) in enumerate(sides)))


def test_style_finds_a_word_that_true_answers_share_and_nothing_where_there_is_none():
    told, untold = planted("indeed "), planted("")
    meter = AnswerChoices()
    assert np.mean([row["mc1"] for row in meter.without_model(told[:30], told[30:]).values()]) == 1.0
    # lengths and words alike: chance, for thirty questions of two answers
    found = np.mean([row["mc1"] for row in meter.without_model(untold[:30], untold[30:]).values()])
    assert 0.2 <= found <= 0.8


def test_style_prefers_the_sides_of_pairs_that_share_a_word():
    for word, expected in (("indeed ", 1.0), ("", None)):
        pairs = PairSet(tuple(ContrastPair(q.question, q.correct, q.incorrect) for q in planted(word)))
        rows = PairContrast().without_model(pairs[:30], pairs[30:]).values()
        found = np.mean([row["preferred"] for row in rows])
        assert found == expected if expected else 0.2 <= found <= 0.8
        assert all((row["margin"] > 0) == (row["probability"] > 0.5) == bool(row["preferred"]) for row in rows)


def test_a_comparison_has_what_style_gives_learned_from_the_training_folds_alone(tmp_path, monkeypatch):
    asked = []
    plain = AnswerChoices.without_model
    monkeypatch.setattr(
        AnswerChoices,
        "without_model",
        lambda self, train, items: asked.append((train, items)) or plain(self, train, items),
    )
    done = tiny_run(tmp_path / "run", [SpyMethod()], seeds=(0,), meters=METERS)
    assert len(asked) == 2  # folds
    for train, items in asked:
        assert not {q.key for q in train} & {q.key for q in items}
        assert len(train) + len(items) == 12
    row = done.style()
    by_hand = [r["mc1"] for train, items in asked for r in plain(AnswerChoices(), train, items).values()]
    assert row.metrics["mc1"].estimate == pytest.approx(np.mean(by_hand))
    assert row.metrics["true_info"] is None and row.n_done == 2
