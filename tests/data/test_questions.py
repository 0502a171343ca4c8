"""Questions, question sets, the statements made of them and the splits that never part a question."""

from __future__ import annotations

import inspect
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_questions
from trimtab.datasets import ContrastPair, PairSet, Question, QuestionSet, one_line, plain
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.intervals import seeded

SKY = Question("Is the sky blue?", ("Yes.", "It is blue."), ("No.", "It is green."))


def chat(question: str, answer: str) -> str:
    """Return a chat template's text: white space around the answer trimmed, a trailer after it."""
    return f"<|im_start|>user\n{question.strip()}<|im_end|>\n<|im_start|>assistant\n{answer.strip()}<|im_end|>\n"


def echo(question: str, answer: str) -> str:
    return f"{question} Is it {answer}? I say\n\n{answer} and that is the end of {question}"


TRAILERS = {"chat": (chat, "<|im_end|>\n"), "tight": (lambda q, a: f"{q}{a}a", "a")}


def texts(questions: QuestionSet) -> list[str]:
    return [q.question for q in questions]


def assert_order_kept(part: QuestionSet, whole: QuestionSet) -> None:
    remaining = iter(texts(whole))
    assert all(text in remaining for text in texts(part))


# ---- questions


def test_the_best_answer_is_the_first_true_one_unless_given():
    assert SKY.best_answer == "Yes."
    assert Question(SKY.question, SKY.correct, SKY.incorrect, best_answer="It is blue.").best_answer == "It is blue."


@pytest.mark.parametrize(
    ("correct", "incorrect", "best", "words"),
    [
        (("Yes.",), (), "", r"'Is it so\?' has no false answer .* at least one of each kind"),
        ((), ("No.",), "", r"'Is it so\?' has no true answer"),
        (("Yes.", " \n"), ("No.",), "", "no true answer or an empty one"),
        (("Yes.",), ("",), "", "no false answer or an empty one"),
        (("Yes.", "So."), ("No.", "So."), "", r"lists 'So\.' as true and as false; keep it on one side"),
        (("Yes.",), ("No.",), "No.", r"best answer 'No\.' is not among the true answers"),
        ("Yes.", ("No.",), "", r"the true answers must be a list of texts, got 'Yes\.'"),
        (None, ("No.",), "", "the true answers must be a list of texts, got None"),
        (("Yes.",), ("No.", "Not.", "No."), "", r"lists the false answer 'No\.' twice; keep it once"),
        (("Yes.",), (False,), "", r"the false answers must be a list of texts, got \(False,\)"),
    ],
)
def test_an_unusable_question_is_refused_by_its_text(correct, incorrect, best, words):
    # without the run's type checks, as a user meets it
    construct = inspect.unwrap(Question.__init__)
    with pytest.raises(BadDataset, match=words):
        construct(object.__new__(Question), "Is it so?", correct, incorrect, best)


def test_lists_of_answers_become_tuples_so_that_questions_can_be_hashed():
    construct = inspect.unwrap(Question.__init__)
    construct(question := object.__new__(Question), SKY.question, list(SKY.correct), list(SKY.incorrect))
    assert question == SKY
    assert hash(question) == hash(SKY)
    with pytest.raises(BadDataset, match="a question must be a text, got None"):
        construct(object.__new__(Question), None, ("Yes.",), ("No.",))


# ---- question sets


def test_slices_and_selections_are_question_sets_of_the_same_name_and_format():
    questions = QuestionSet(tiny_questions(6).questions, name="mine", default_format="iti")
    for part, expected in (
        (questions[1:4], [1, 2, 3]),
        (questions[::-1], [5, 4, 3, 2, 1, 0]),
        (questions.select([4, 0]), [4, 0]),
        (questions.where(lambda q: q.question.endswith(("0?", "5?"))), [0, 5]),
    ):
        assert isinstance(part, QuestionSet)
        assert part.questions == tuple(questions[i] for i in expected)
        assert (part.name, part.default_format) == ("mine", "iti")


def test_a_question_set_is_a_sequence_of_its_questions():
    questions = tiny_questions(3)
    assert list(questions) == list(questions.questions)
    assert questions[-1] is questions.questions[2]
    assert questions[np.int64(1)] is questions.questions[1] in questions
    assert SKY not in questions
    assert questions.index(questions[1]) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: QuestionSet((), name="mine"), "mine: no questions; at least one is needed"),
        (lambda: tiny_questions(3)[3:], "tiny: no questions"),
        (lambda: tiny_questions(3).where(lambda q: False), "tiny: no questions"),
        (lambda: QuestionSet((SKY, *tiny_questions(2), SKY)), r"'Is the sky blue\?' stands 2 times; merge its answers"),
        (lambda: PairSet((ContrastPair("", ("So.",), ("No.",)),) * 2), "'pair .*' stands 2 times"),
    ],
)
def test_an_empty_set_and_a_question_that_stands_twice_are_refused(make, words):
    with pytest.raises(BadDataset, match=words):
        make()


def test_accents_written_in_two_ways_are_one_question_on_either_side_of_a_split():
    composed, apart = "Où est Zoë?", unicodedata.normalize("NFD", "Où est Zoë?")
    assert composed != apart
    one, other = (Question(text, ("Ici.",), ("Là.",)) for text in (composed, apart))
    assert one.key == other.key != Question("Ou est Zoe?", ("Ici.",), ("Là.",)).key
    with pytest.raises(BadDataset, match="stands 2 times"):
        QuestionSet((one, other))
    with pytest.raises(BadDataset, match="stands 2 times"):
        PairSet((ContrastPair(composed, ("a",), ("b",)), ContrastPair(apart, ("c",), ("d",))))
    assert other.question == apart  # it is asked as it was written
    where, said = Question("Où?", ("À Orléans.",), ("Là.",)), unicodedata.normalize("NFD", "à orléans")
    known, unknown = exact_judge.verdicts(where, [said, "a orleans"])
    assert (known.true, unknown.matched) == (1, False)


def test_the_fingerprint_follows_texts_and_order_and_nothing_else():
    base = QuestionSet((SKY, *tiny_questions(2)), name="a")
    same = QuestionSet((Question(*SKY_WITH_NOTES), *tiny_questions(2)), name="b", default_format="iti")
    assert same.fingerprint == base.fingerprint
    changed = [
        base[::-1],
        base[:2],
        with_sky(base, "Is the sky  blue?", SKY.correct, SKY.incorrect),
        with_sky(base, SKY.question, ("Yes.", "It is blue!"), SKY.incorrect),
        with_sky(base, SKY.question, SKY.correct, SKY.incorrect[::-1]),
        with_sky(base, SKY.question, SKY.correct[:1], ("It is blue.", *SKY.incorrect)),
        with_sky(base, SKY.question, SKY.correct, SKY.incorrect, "It is blue."),
    ]
    fingerprints = {base.fingerprint, *(q.fingerprint for q in changed)}
    assert len(fingerprints) == 1 + len(changed)


SKY_WITH_NOTES = (SKY.question, SKY.correct, SKY.incorrect, "Yes.", "colours", "a book", "Air scatters blue light.")


def with_sky(questions: QuestionSet, *fields) -> QuestionSet:
    return QuestionSet((Question(*fields), *questions[1:]))


# ---- splits and folds


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), test=st.floats(-0.5, 1.5), seed=st.integers(0, 2**32 - 1))
def test_a_split_parts_the_questions_in_their_order_or_says_that_a_side_is_empty(n, test, seed):
    questions = tiny_questions(n)
    if not 0 < round(test * n) < n:
        with pytest.raises(BadDataset, match=r"tiny: a test share of .* leaves one side empty"):
            questions.split(test=test, seed=seed)
        return
    train, held = questions.split(test=test, seed=seed)
    assert len(held) == round(test * n)
    assert sorted(texts(train) + texts(held)) == sorted(texts(questions))
    assert_order_kept(train, questions)
    assert_order_kept(held, questions)
    assert questions.split(test=test, seed=seed) == (train, held)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), size=st.integers(2, 40), seed=st.integers(0, 2**32 - 1))
def test_folds_hold_out_every_question_once_and_train_on_all_others(data, size, seed):
    questions = tiny_questions(size)
    n = data.draw(st.integers(2, size))
    folds = questions.folds(n, seed)
    assert sorted(text for _, held in folds for text in texts(held)) == sorted(texts(questions))
    for train, held in folds:
        assert sorted(texts(train) + texts(held)) == sorted(texts(questions))
        assert_order_kept(train, questions)
        assert_order_kept(held, questions)
    sizes = [len(held) for _, held in folds]
    assert len(folds) == n
    assert max(sizes) - min(sizes) <= 1
    assert questions.folds(n, seed) == folds


def test_another_seed_gives_another_split_and_other_folds():
    questions = tiny_questions(12)
    assert len({tuple(texts(questions.split(seed=s)[1])) for s in range(5)}) == 5
    assert len({tuple(texts(questions.folds(2, s)[0][1])) for s in range(5)}) == 5


@pytest.mark.parametrize("n", [-1, 0, 1, 7])
def test_an_impossible_number_of_folds_is_refused(n):
    with pytest.raises(BadValue, match=f"cannot make {n} folds of 6 questions; choose 2 to 6"):
        tiny_questions(6).folds(n)


def test_what_is_no_seed_is_refused():
    questions = tiny_questions(4)
    for draw in (lambda seed: questions.split(seed=seed), lambda seed: questions.folds(2, seed=seed)):
        with pytest.raises(BadValue, match="a seed must be a whole number of 0 or more, got -1"):
            draw(-1)
    for no_seed in (0.5, None, "1"):
        with pytest.raises(BadValue, match="a seed must be a whole number of 0 or more, got"):
            inspect.unwrap(seeded)(no_seed)


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -0.5, 0.0, 1.0])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(BadDataset, match=f"a test share of {share} of 4 questions leaves one side empty; choose"):
        tiny_questions(4).split(test=share)


def test_no_answer_of_a_held_out_question_is_trained_on():
    train, held = tiny_questions(12).split(test=0.5, seed=3)
    assert not {s.group for s in train.statements()} & {s.group for s in held.statements()}
    assert {s.group for s in held.statements()} == set(texts(held))


# ---- statements


@pytest.mark.parametrize(
    ("format", "first"),
    [
        (None, "Q: Is the sky blue?\nA: Yes."),
        ("plain", "Q: Is the sky blue?\nA: Yes."),
        (plain, "Q: Is the sky blue?\nA: Yes."),
        ("iti", "Q: Is the sky blue? A: Yes."),
        (one_line, "Q: Is the sky blue? A: Yes."),
        ("bare", "Is the sky blue? Yes."),
        (lambda q, a: f"[{q}][{a}]", "[Is the sky blue?][Yes."),
        (chat, "<|im_start|>user\nIs the sky blue?<|im_end|>\n<|im_start|>assistant\nYes."),
    ],
)
def test_every_answer_becomes_one_labelled_statement_in_the_form_asked_for(format, first):
    statements = QuestionSet((SKY,)).statements(format)
    assert statements[0].text == first
    assert [(s.answer, s.label) for s in statements] == [
        ("Yes.", True),
        ("It is blue.", True),
        ("No.", False),
        ("It is green.", False),
    ]
    assert {s.group for s in statements} == {"Is the sky blue?"}
    for s in statements:
        assert s.text == first.removesuffix("Yes.") + s.answer
        assert s.text[s.answer_start :] == s.answer
        assert s.prompt == s.prompt.rstrip()


def test_the_set_s_own_format_is_used_unless_another_is_asked_for():
    questions = QuestionSet((SKY,), default_format="iti")
    assert questions.statements() == questions.statements("iti") != questions.statements("plain")


words = st.text(st.sampled_from("aA:Q <|>_end\nm."), min_size=1, max_size=8)
answers = st.one_of(words, st.sampled_from(["end", "im", "|", "user", "assistant", "A:", "<|im_end|>", "a", "aa"]))
stripped_answers = answers.map(str.strip).filter(bool)


@settings(max_examples=150, deadline=None)
@given(question=words, true=stripped_answers, false=stripped_answers, format=st.sampled_from(sorted(TRAILERS)))
def test_what_a_template_puts_after_the_answer_is_cut_off_whatever_letters_it_holds(question, true, false, format):
    if true == false:
        return
    join, trailer = TRAILERS[format]
    for s in QuestionSet((Question(question, (true,), (false,)),)).statements(join):
        assert s.text + trailer == join(question, s.answer)
        assert s.text[s.answer_start :] == s.answer


@settings(max_examples=100, deadline=None)
@given(question=words, true=stripped_answers, false=stripped_answers, format=st.sampled_from(["plain", "iti", "bare"]))
def test_an_answer_that_occurs_in_its_question_is_still_found_at_the_end(question, true, false, format):
    if true == false:
        return
    forms = {"plain": "Q: {}\nA: {}", "iti": "Q: {} A: {}", "bare": "{} {}"}
    for s in QuestionSet((Question(f"{true} {question} {false}", (true,), (false,)),)).statements(format):
        assert s.text == forms[format].format(f"{true} {question} {false}", s.answer)
        assert s.prompt == s.text[: -len(s.answer)].rstrip()


@pytest.mark.parametrize("answer", ["end", "is", "I say", "the end of it"])
def test_a_format_that_repeats_the_answer_is_cut_after_its_last_use(answer):
    (s, _) = QuestionSet((Question("Is the end near?", (answer,), ("No.",)),)).statements(echo)
    assert s.text == f"Is the end near? Is it {answer}? I say\n\n{answer}"
    assert s.separator == "\n\n"


def test_a_format_that_loses_the_answer_and_an_unknown_one_are_refused():
    questions = QuestionSet((SKY,))
    with pytest.raises(BadValue, match=r"the statement format lost the answer 'Yes\.'"):
        questions.statements(lambda q, a: q + a.upper())
    for nonsense in (None, 3, b"Yes."):
        with pytest.raises(BadValue, match="the statement format must return the whole text, got"):
            questions.statements(lambda q, a, nonsense=nonsense: nonsense)
        with pytest.raises(BadValue, match="must return the whole text"):
            questions.sft_examples(lambda q, a, nonsense=nonsense: nonsense)
    with pytest.raises(
        BadValue, match="unknown statement format 'two'; choose plain, iti, bare, primer or pass a callable"
    ):
        QuestionSet((SKY,), default_format="two").statements()


@pytest.mark.parametrize("format", ["plain", "iti", "bare", chat])
def test_sft_examples_are_the_true_statements_cut_before_the_answer_s_white_space(format):
    questions = QuestionSet((SKY, *tiny_questions(3)))
    true = [s for s in questions.statements(format) if s.label]
    examples = questions.sft_examples(format)
    assert [e.prompt + e.completion for e in examples] == [s.text for s in true]
    assert [e.completion.strip() for e in examples] == [a for q in questions for a in q.correct]
    assert all(e.prompt == e.prompt.rstrip() for e in examples)


def test_pairs_without_a_prompt_are_each_a_group_of_their_own():
    pairs = PairSet(
        (ContrastPair("", ("I love it.",), ("I hate it.",)), ContrastPair("", ("How nice.",), ("How sad.",)))
    )
    statements = pairs.statements()
    assert [s.text for s in statements] == ["I love it.", "I hate it.", "How nice.", "How sad."]
    assert [s.answer_start for s in statements] == [0, 0, 0, 0]
    one, two = ({s.group for s in statements[i : i + 2]} for i in (0, 2))
    assert len(one) == len(two) == 1
    assert one != two


def test_groups_of_bare_pairs_stay_the_same_and_different_after_a_split():
    pairs = PairSet(tuple(ContrastPair("", (f"I love it {i}.",), (f"I hate it {i}.",)) for i in range(8)))
    train, test = pairs.split(test=0.5, seed=0)
    groups = [{s.group for s in part.statements()} for part in (pairs, train, test)]
    assert len(groups[0]) == 8
    assert groups[1] | groups[2] == groups[0]
    assert not groups[1] & groups[2]
