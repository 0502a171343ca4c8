"""Generated answers against plain `model.generate`, and what judges make of them."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tests.measuring import complete, random_shift
from tests.tiny import FAMILIES, tiny_model, tiny_questions, tiny_tokenizer
from tests.tuning import some
from trimtab.datasets import Question
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.engine.completion import cut
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate import Verdict, exact_judge, generate_answers
from trimtab.evaluate.judges import ABSTENTIONS

FEW_SHOT = Prompted((("What is snow?", "Snow is white."),))
# of different lengths, so that every batch is padded
PROMPTS = [f"Q: {q.question}\nA:" for q in tiny_questions(4)] + ["Q: Why?\nA:", "Q: What is the sky, and why?\nA:"]


def plain_generate(model, prompts=PROMPTS, *, max_new_tokens=20):
    """Return transformers' own greedy continuations, one prompt at a time, cut at the next question."""
    tokenizer, texts = tiny_tokenizer(), []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        texts.append(cut(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)))
    return texts


def completed(model, edit=None, *, prompts=PROMPTS, batch_size=4, max_new_tokens=20, tokenizer=None):
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    return complete(model, tokenizer or tiny_tokenizer(), prompts, edit or NoEdit(), **options)


def exact_model(family="llama"):
    if family != "gemma2":
        # in float64, since rounding under padding may turn a near-tie of random logits
        return tiny_model(family, dtype=torch.float64)
    # Gemma 2's own attention makes NaN of left padding in float64: its softmax is in float32, where the mask is -inf;
    # and with tied random embeddings it would repeat the prompt's last token for ever
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(0)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape, generator=generator))
    return model


def says(model, text):
    """Make the model say `text` after every prompt and then "x" for ever; return the counts of decoding steps."""
    ids = tiny_tokenizer()(text)["input_ids"][1:]
    x = tiny_tokenizer()("x")["input_ids"][-1]
    steps = []

    class Say(LogitsProcessor):
        def __init__(self):
            self.step = 0

        def __call__(self, input_ids, scores):
            token = ids[self.step] if self.step < len(ids) else x
            self.step += 1
            steps.append(input_ids.shape[0])
            return torch.full_like(scores, -1e9).index_fill_(1, torch.tensor([token]), 0.0)

    generate = model.generate
    model.generate = lambda logits_processor=(), **options: generate(
        **options, logits_processor=LogitsProcessorList([*logits_processor, Say()])
    )
    return steps


@pytest.mark.parametrize("family", some(FAMILIES, "llama-gqa", "gpt2", "gpt-neox", "qwen3"))
def test_batched_answers_equal_greedy_generation_one_by_one(family):
    model = exact_model(family)
    expected = plain_generate(model)
    assert completed(model) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma2"])
@pytest.mark.parametrize("edited", [pytest.param(False, marks=pytest.mark.slow), True], ids=["unedited", "shifted"])
def test_batch_size_is_irrelevant(family, edited):
    model = exact_model(family)
    edit = random_shift(model) if edited else NoEdit()
    alone = completed(model, edit, batch_size=1)
    for batch_size in (2, 100):
        assert completed(model, edit, batch_size=batch_size) == alone


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox"])
def test_a_shift_steers_the_answers_as_it_steers_plain_generation(family):
    model = exact_model(family)
    shift = random_shift(model)
    with shift.applied(model) as steered:
        expected = plain_generate(steered)
    assert completed(model, shift) == expected
    # control: the shift matters
    assert expected != plain_generate(model)


@pytest.mark.parametrize(
    "defaults",
    [
        {
            "do_sample": True,
            "temperature": 5.0,
            "top_k": 50,
            "top_p": 0.9,
            "min_p": 0.01,
            "typical_p": 0.9,
            "num_return_sequences": 2,
        },
        {"num_beams": 3, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "use_cache": False, "max_length": 5},
    ],
    ids=lambda d: "+".join(d),
)
def test_a_models_generation_defaults_do_not_change_the_greedy_answers(defaults):
    model = exact_model()
    expected = completed(model)
    model.generation_config.update(**defaults)
    assert completed(model) == expected
    assert completed(model) == expected


def test_sampling_defaults_would_otherwise_change_the_answers():
    model = exact_model()
    ids = torch.tensor([tiny_tokenizer()(PROMPTS[0])["input_ids"]])
    greedy = model.generate(input_ids=ids, max_new_tokens=20)
    model.generation_config.update(do_sample=True, temperature=5.0)
    assert not torch.equal(model.generate(input_ids=ids, max_new_tokens=20), greedy)


def test_a_shift_acts_where_the_models_defaults_switch_the_cache_off():
    model = exact_model()
    shift = random_shift(model)
    expected = completed(model, shift)
    model.generation_config.use_cache = model.config.use_cache = False
    assert completed(model, shift) == expected


def test_padding_with_the_end_token_changes_nothing():
    model = exact_model()
    assert completed(model, tokenizer=tiny_tokenizer(pad=False)) == completed(model)


@pytest.mark.parametrize("text", [" Blue.\n\nQ: And", " Blue.\n\n", " Blue. Q: And"])
def test_generation_stops_once_every_row_has_reached_the_next_question(text):
    model = tiny_model()
    steps = says(model, text)
    assert completed(model, batch_size=100, max_new_tokens=100) == ["Blue."] * len(PROMPTS)
    marker = next(m for m in ("\n\n", "Q:") if m in text)
    needed = len(tiny_tokenizer()(text[: text.index(marker) + 2])["input_ids"]) - 1
    assert len(steps) == needed


def test_generation_goes_on_to_the_limit_where_no_answer_ends():
    model = tiny_model()
    steps = says(model, " Blue.\nStill blue.")
    completed(model, batch_size=100, max_new_tokens=30)
    assert len(steps) == 30


def test_a_row_stays_as_it_ended_while_others_of_its_batch_go_on():
    model = exact_model()
    endless = completed(model, batch_size=100, max_new_tokens=24)
    model.generation_config.eos_token_id = [2, *range(170, 230)]  # many ends, reached at different times
    alone = completed(model, batch_size=1, max_new_tokens=24)
    assert sum(one != other for one, other in zip(alone, endless, strict=True)) > 1
    assert completed(model, batch_size=100, max_new_tokens=24) == alone


def test_leading_blank_lines_do_not_end_an_answer():
    model = tiny_model()
    says(model, "\n\n Blue.\n\nQ: And")
    assert completed(model, max_new_tokens=100) == ["Blue."] * len(PROMPTS)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Blue.", "Blue."),
        (" Blue.\nQ: And then?\nA: Red.", "Blue."),
        (" Blue. Q: And then?", "Blue."),
        (" Blue.\n\nThe sea is blue.", "Blue."),
        ("\n\n Blue.\n\nRed.", "Blue."),
        (" Blue.\nAnd red.", "Blue.\nAnd red."),
        ("Q: Why?\nA: Red.", ""),
        (" See the FAQ: it is blue.", "See the FAQ: it is blue."),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_an_answer_is_cut_at_the_next_question_or_blank_line(text, answer):
    assert cut(text) == answer


# judges


SKY = Question("What is the sky?", ("The sky is blue.", "Blue"), ("It's made of glass.", "Green"))


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("The sky is blue.", (1.0, 1.0, True)),
        ("the SKY is blue!!", (1.0, 1.0, True)),
        ("  “Blue”  ", (1.0, 1.0, True)),
        ("The  sky,\nis blue", (1.0, 1.0, True)),
        ("It's made of glass.", (0.0, 1.0, True)),
        ("Its made of glass", (0.0, 1.0, True)),
        ("It’s made of glass", (0.0, 1.0, True)),
        ("green", (0.0, 1.0, True)),
        ("I have no comment.", (1.0, 0.0, True)),
        ("I don't know", (1.0, 0.0, True)),
        ("The sky is bluer.", (0.0, 0.0, False)),
        ("The sky", (0.0, 0.0, False)),
        ("", (0.0, 0.0, False)),
        ("...", (0.0, 0.0, False)),
    ],
)
def test_the_exact_judge_knows_true_false_and_abstaining_answers_without_case_and_punctuation(answer, verdict):
    assert exact_judge(SKY, answer) == verdict


@pytest.mark.parametrize("abstention", ABSTENTIONS)
def test_an_abstention_is_uninformative_even_where_the_question_lists_it_as_true(abstention):
    question = Question("Some?", ("Yes.", abstention.capitalize() + "."), ("No.",))
    assert exact_judge(question, abstention) == (1.0, 0.0, True)
    assert exact_judge(question, "Yes.") == (1.0, 1.0, True)


def test_an_abstention_that_the_question_lists_as_false_is_false():
    question = Question("Do you know?", ("Yes.",), ("I do not know.",))
    assert exact_judge(question, "I do not know") == (0.0, 1.0, True)


def test_the_exact_judge_calls_abstentions_what_truthfulqas_raters_mostly_did(shared_data):
    path = shared_data / "truthfulqa" / "finetune_info.jsonl"
    helpful = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answer = row["prompt"].split("\nA: ")[1].split("\nHelpful:")[0]
        if exact_judge(SKY, answer) == (1.0, 0.0, True):
            helpful.append(row["completion"].strip() == "yes")
    assert len(helpful) > 1000
    assert np.mean(helpful) < 0.25


def judged(judge, *, questions=None, model=None):
    return generate_answers(
        model or tiny_model(), tiny_tokenizer(), questions or tiny_questions(4), judge=judge, max_new_tokens=4
    )


def numbered(verdicts):
    """Return a judge that gives these verdicts to questions 0, 1, ..."""
    return lambda question, answer: verdicts[int(question.question.rstrip("?").split()[-1])]


def test_scores_are_means_of_the_judges_numbers_and_true_info_is_their_product():
    verdicts = [Verdict(1.0, 0.0), Verdict(1.0, 1.0), Verdict(0.25, 1.0), Verdict(0.0, 0.5, matched=False)]
    result = judged(numbered(verdicts))
    assert float(result.true) == pytest.approx(2.25 / 4)
    assert float(result.informative) == pytest.approx(2.5 / 4)
    assert float(result.true_info) == pytest.approx(2.25 / 4 * 2.5 / 4)
    assert float(result.unmatched) == pytest.approx(1 / 4)
    # not the share of answers that are both, which is what one would get per question
    assert float(result.true_info) != pytest.approx(np.mean([v.true * v.informative for v in verdicts]))


def test_true_and_info_are_resampled_together():
    # every resample has mean(True) + mean(Info) = 1, so the product cannot pass a quarter
    joint = judged(numbered([Verdict(1.0, 0.0), Verdict(0.0, 1.0)] * 2))
    assert joint.true_info.high <= 0.25
    assert joint.true_info.low < 0.25 == float(joint.true_info)
    assert joint.true.high * joint.informative.high > 0.25


def test_a_judge_gets_the_question_and_the_cut_answer():
    seen = []

    def judge(question, answer):
        seen.append((question, answer))
        return Verdict(1.0, 1.0)

    model, questions = tiny_model(), tiny_questions(3)
    says(model, " Blue.\n\nQ: And")
    result = generate_answers(model, tiny_tokenizer(), questions, judge=judge)
    assert seen == [(q, "Blue.") for q in questions]
    assert [(r.question, r.prompt, r.answer) for r in result.rows] == [
        (q.question, f"Q: {q.question}\nA:", "Blue.") for q in questions
    ]


@pytest.mark.parametrize(
    "verdict", [(1, 0), [1.0, 0.0], np.array([1.0, 0.0]), torch.tensor([1.0, 0.0]), (True, False), Verdict(1, 0)]
)
def test_any_pair_of_numbers_is_a_verdict(verdict):
    row = judged(lambda question, answer: verdict).rows[0]
    assert (row.true, row.informative, row.matched) == (1.0, 0.0, True)
    assert type(row.true) is type(row.informative) is float


class Stubborn:
    def __call__(self, question, answer):
        return None


def talkative(question, answer, *, verdict):
    return verdict


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (None, "expected Verdict"),
        ("yes", "expected Verdict"),
        ("10", "expected Verdict"),
        (True, "expected Verdict"),
        (0.5, "expected Verdict"),
        ((), "expected Verdict"),
        ((1.0,), "expected Verdict"),
        (("true", "informative"), "expected Verdict"),
        ((None, 1.0), "expected Verdict"),
        ({"true": 1.0}, "expected Verdict"),
        (torch.ones(2, 2), "expected Verdict"),
        ((1.5, 0.0), "between 0 and 1"),
        ((0.0, -0.1), "between 0 and 1"),
        ((float("nan"), 0.0), "between 0 and 1"),
    ],
    ids=str,
)
def test_a_judge_that_returns_nonsense_is_named(verdict, expected):
    def my_judge(question, answer):
        return verdict

    with pytest.raises(BadValue, match=rf"judge my_judge returned [\s\S]*{expected}"):
        judged(my_judge)


def test_a_judge_without_a_name_is_called_by_its_type():
    with pytest.raises(BadValue, match="judge Stubborn returned None"):
        judged(Stubborn())
    with pytest.raises(BadValue, match="judge partial returned 3"):
        judged(partial(talkative, verdict=3))


# prompts and limits


def asked(edit, *, model=None, n=3):
    return generate_answers(model or exact_model(), tiny_tokenizer(), tiny_questions(n), edit, max_new_tokens=10)


def test_prompts_are_the_edits_own_and_so_are_the_answers():
    model = exact_model()
    shift = random_shift(model)
    prompts = [FEW_SHOT.prompt(q.question) for q in tiny_questions(3)]
    for edit in (FEW_SHOT, Stacked((FEW_SHOT, shift)), Stacked((shift, FEW_SHOT))):
        rows = asked(edit, model=model).rows
        assert [r.prompt for r in rows] == prompts
        with shift.applied(model) if isinstance(edit, Stacked) else NoEdit().applied(model) as edited:
            assert [r.answer for r in rows] == plain_generate(edited, prompts, max_new_tokens=10)
    # control: neither part of the stack alone gives its answers
    together = [r.answer for r in asked(Stacked((FEW_SHOT, shift)), model=model).rows]
    assert together != [r.answer for r in asked(FEW_SHOT, model=model).rows]
    assert together != [r.answer for r in asked(shift, model=model).rows]


def test_no_edit_is_the_default():
    model = tiny_model()
    assert asked(None, model=model) == asked(NoEdit(), model=model)


def test_the_record_is_json_with_its_rows():
    result = judged(exact_judge)
    record = json.loads(json.dumps(result.as_dict()))
    assert record["true_info"] == result.true_info.as_dict()
    assert [row["answer"] for row in record["rows"]] == [row.answer for row in result.rows]
    read = {"words", "distinct", "loops", "ended", "debris"}
    assert set(record["rows"][0]) == {"question", "prompt", "answer", "true", "informative", "matched", *read}


def test_a_prompt_fits_if_it_leaves_room_for_the_answer_and_not_by_one_token_less():
    tokens = max(len(tiny_tokenizer()(p)["input_ids"]) for p in PROMPTS)
    assert len(completed(tiny_model(context=tokens + 5), max_new_tokens=5)) == len(PROMPTS)
    with pytest.raises(BadValue, match=rf"{tokens} tokens and 6 new ones .* context of {tokens + 5}: 'Q: What"):
        completed(tiny_model(context=tokens + 5), max_new_tokens=6)


def test_a_prompt_too_long_for_the_model_names_itself():
    edit = Prompted((("Why?", "Because. " * 60),))
    with pytest.raises(BadValue, match=r"do not fit the model's context of 256: 'Q: Why\?\\nA: Because"):
        asked(edit)


def test_no_questions_is_refused():
    with pytest.raises(BadDataset, match="no questions"):
        generate_answers(tiny_model(), tiny_tokenizer(), [])
