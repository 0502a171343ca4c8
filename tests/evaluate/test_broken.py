"""What is broken: debris, loops, ends, refusals, capability and other behaviours, by oracles and by hand."""

from __future__ import annotations

import random

import pytest

from tests.cases import PAIRS
from tests.comparing import TEXTS, SpyMethod, tiny_run
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.compare.design import Design, Job, named
from trimtab.compare.running import able_to_choose
from trimtab.datasets import Question, QuestionSet, capability, folklore
from trimtab.datasets.prompt_set import PromptSet
from trimtab.edits import Prompted
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadValue
from trimtab.evaluate import answer_meters, contrast, multiple_choice
from trimtab.evaluate.counted import CountedAnswers
from trimtab.evaluate.elsewhere import capability_meters, off_target_meters
from trimtab.evaluate.generation import JudgedAnswers, judged_meters, strict_meters
from trimtab.evaluate.multiple_choice import choice_meters
from trimtab.evaluate.wording import is_debris, loops, refuses, wording, wording_meters
from trimtab.protocols import Verdict

WORDS = ["snow", "road", "a", "the", "old", "night", "and", "cart", "went", "by", "then", "house", "lake", "day"]


def made_debris(seed):
    """Return loops, letter lists and empty texts of many shapes, made by a script."""
    rng = random.Random(seed)
    block = [rng.choice(WORDS) for _ in range(rng.randint(1, 8))]
    loop = " ".join(block * (rng.randint(3, 6) if len(block) > 1 else 7))
    start = " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 6)))
    letters = rng.choice(["{}:", "{}.", "({})", "{})"])
    listed = rng.choice(["\n", " "]).join(letters.format(x) for x in "ABCDEFGH"[: rng.randint(2, 8)])
    return rng.choice([loop, f"{start} {loop}".strip(), loop.replace(" ", ", "), listed, "", " . ", "...", "\n"])


def test_at_least_95_percent_of_made_debris_is_called_so():
    made = [made_debris(seed) for seed in range(1000)]
    assert sum(map(is_debris, made)) >= 950


def test_at_most_one_percent_of_people_s_answers_is_called_debris_short_ones_included(shared_data):
    from trimtab.datasets import truthfulqa

    ours = [a for q in folklore() for a in (*q.correct, *q.incorrect)]
    theirs = [a for q in truthfulqa(shared_data / "truthfulqa" / "TruthfulQA.csv") for a in (*q.correct, *q.incorrect)]
    for said in (ours, theirs, [a for a in theirs if len(a.split()) <= 3]):
        assert sum(map(is_debris, said)) <= 0.01 * len(said)


@pytest.mark.parametrize("text", ["A:\nB:\nC:", "I am I am I am", "", "no no no no no no", "A. B. C. D.", "1) 2) 3)"])
def test_debris(text):
    assert is_debris(text)


@pytest.mark.parametrize(
    "text", ["No.", "7", "B", "I am a student.", "No, no, no.", "Very, very cold.", "A cat and a dog."]
)
def test_short_and_emphatic_answers_are_none(text):
    assert not is_debris(text)


def test_wording_counts_words_and_distinct_pairs():
    found = wording("the sky the sky was grey")
    assert (found.words, found.loops, found.debris) == (6, 0, 0)
    assert found.distinct == pytest.approx(4 / 5)  # the-sky twice among five pairs
    assert wording("").distinct == 1 and wording("").debris == 1
    assert not loops("the sky the sky was grey") and loops("the sky the sky the sky")


@pytest.mark.parametrize(
    "text", ["I'm sorry, but I can't help with that.", "As an AI, I have no view.", "I cannot answer."]
)
def test_refusals(text):
    assert refuses(text)


@pytest.mark.parametrize("text", ["To kill a process, use kill.", "You cannot see it from the moon.", "Bats can fly."])
def test_answers_are_no_refusals(text):
    assert not refuses(text)


# ---- over the same answers


def loud(question, answer):
    return Verdict(1.0, 1.0)


def test_the_same_answers_are_judged_and_read_and_debris_counts_as_neither(monkeypatch):
    calls = []
    plain = JudgedAnswers.answers
    monkeypatch.setattr(JudgedAnswers, "answers", lambda self, *a: calls.append(a) or plain(self, *a))
    options = {"judge": loud, "max_new_tokens": 6}
    source = JudgedAnswers(**options)
    from trimtab.evaluate.table import table

    row = table(
        tiny_model(),
        tiny_tokenizer(),
        tiny_questions(6),
        [NoEdit()],
        meters=[*judged_meters(**options), *strict_meters(source), *wording_meters(source)],
    ).rows[0]
    assert len(calls) == 1
    rows = row.details["generated"]
    debris = [float(is_debris(r["answer"])) for r in rows]
    assert [r["debris"] for r in rows] == debris
    assert row.both == row.true_info == 1.0
    assert row.strict_both == pytest.approx(1 - sum(debris) / 6)
    assert row.strict_true_info == pytest.approx((1 - sum(debris) / 6) ** 2)
    lengths = [len(tiny_tokenizer()(r["answer"], add_special_tokens=False)["input_ids"]) for r in rows]
    assert [r["ended"] for r in rows] == [float(n < 5) for n in lengths]


# ---- elsewhere


def test_capability_is_multiple_choice_on_its_own_questions_and_other_behaviours_theirs():
    model, tokenizer, own, edit = tiny_model(), tiny_tokenizer(), tiny_questions(4), Prompted((("a?", "b"),))
    (easy,), (other,) = capability_meters(own), off_target_meters(PAIRS)
    (found,) = easy.measure(model, tokenizer, tiny_questions(2), [edit])
    assert [row["mc1"] for row in found.rows.values()] == [
        r.mc1 for r in multiple_choice(model, tokenizer, own, edit).rows
    ]
    (found,) = other.measure(model, tokenizer, tiny_questions(2), [edit])
    expected = contrast(model, tokenizer, PAIRS, edit).rows
    assert [row["probability"] for row in found.rows.values()] == [r.probability for r in expected]


def test_a_model_at_chance_tells_nothing_about_what_an_edit_breaks():
    (meter,) = capability_meters(capability())
    rows = {str(i): {"mc1": float(i % 2), "mc2": 0.5, "mc3": 0.5} for i in range(100)}
    assert "no better than chance (50 %)" in meter.says_nothing(rows)
    assert (
        meter.says_nothing({key: {**row, "mc1": float(i % 5 > 0)} for i, (key, row) in enumerate(rows.items())}) is None
    )


def test_chance_is_one_choice_among_all_answers_of_a_question():
    (meter,) = capability_meters(QuestionSet((Question("What?", ("This.",), ("That.", "It.", "Them.")),), "few"))
    rows = {str(i): {"mc1": float(i % 4 == 0), "mc2": 0.5, "mc3": 0.5} for i in range(100)}
    assert "25 % of the 1 choices of few rightly, no better than chance (25 %)" in meter.says_nothing(rows)


def test_the_choices_that_ship_are_a_hundred_and_their_lengths_give_nothing_away():
    ours = capability()
    assert len(ours) == 100 and all(len(q.correct) == len(q.incorrect) == 1 for q in ours)
    longer = sum(len(q.correct[0]) > len(q.incorrect[0]) for q in ours)
    shorter = sum(len(q.correct[0]) < len(q.incorrect[0]) for q in ours)
    assert abs(longer - shorter) <= 12


def test_answers_with_a_property_are_counted():
    meter = CountedAnswers(("Is snow black?", "Why?", "Why?"), counts=lambda text: len(text) % 2 == 0, max_new_tokens=3)
    (found,) = meter.measure(tiny_model(), tiny_tokenizer(), None, [NoEdit()])
    assert list(found.rows) == ["Is snow black?", "Why?"]
    assert all(row["counted"] == float(len(row["answer"]) % 2 == 0) for row in found.rows.values())


def test_answers_to_the_items_are_counted_as_they_are_asked_and_those_that_ask_alike_go_together():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    edits = [NoEdit(), Prompted((("a?", "b"),)), NoEdit().renamed("again")]
    own = CountedAnswers(None, counts=len, max_new_tokens=4)
    for items in (PAIRS, PromptSet.of(["Is snow black?", "Why?"]), tiny_questions(3)):
        found = own.measure(model, tokenizer, items, edits)
        assert [list(one.rows) for one in found] == [[item.key for item in items]] * 3
        for edit, one in zip(edits, found, strict=True):
            (alone,) = own.measure(model, tokenizer, items, [edit])
            assert one.rows == alone.rows
            assert all(row["counted"] == len(row["answer"]) for row in one.rows.values())
        assert found[0].rows == found[2].rows
    fixed = CountedAnswers(("Is snow black?", "Why?"), counts=len, max_new_tokens=4)
    (by_prompts,) = fixed.measure(model, tokenizer, None, [NoEdit()])
    (by_items,) = own.measure(model, tokenizer, PromptSet.of(["Is snow black?", "Why?"]), [NoEdit()])
    assert [row["answer"] for row in by_prompts.rows.values()] == [row["answer"] for row in by_items.rows.values()]


# ---- meters that can tell nothing


def test_choosing_falls_back_to_multiple_choice_where_the_exact_judge_knows_no_answer(tmp_path):
    meters = answer_meters(texts=TEXTS, max_new_tokens=3, divide_texts=True)
    with pytest.warns(UserWarning, match=r"True\*Info says nothing here: .*settings are chosen by mc1 instead"):
        done = tiny_run(tmp_path / "run", [SpyMethod()], seeds=(0,), meters=meters)
    assert done.chooser.name == "mc1"
    assert set(done.mute) >= {"true_info", "true", "info"} and "mc1" not in done.mute
    assert "knows none of the unedited model's" in done.mute["true_info"]


def test_choosing_is_refused_where_nothing_else_can_choose():
    questions = tiny_questions(12)
    job = Job(named([SpyMethod()]), questions, None, Design(), judged_meters(max_new_tokens=3))
    with pytest.raises(BadValue, match=r"settings cannot be chosen by True\*Info: the judge exact_judge knows none"):
        able_to_choose(tiny_model(), tiny_tokenizer(), job)


def test_a_judge_that_is_not_exact_is_not_asked_beforehand():
    asked = []
    meter = judged_meters(judge=lambda q, a: asked.append(q) or Verdict(1, 1))[0]
    assert meter.mute_on(None, None, tiny_questions(3)) is None
    assert choice_meters()[0].mute_on(None, None, tiny_questions(3)) is None
    assert not asked
