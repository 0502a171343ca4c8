"""What is fitted, measured, tuned and generated is asked in the same words, whatever a chat template does."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab import cli
from trimtab.before import Before
from trimtab.compare.running import run
from trimtab.datasets import ContrastPair, PairSet, Question
from trimtab.datasets.asking import BARE, PLAIN, ChatTemplate, asked_by, asking_for
from trimtab.edits.disk import load_edit
from trimtab.edits.prompts import Prompted
from trimtab.edits.retrieval import Retrieved
from trimtab.engine.capture import capture_heads
from trimtab.engine.conversation import Turn, answers, prompt_ids
from trimtab.errors import BadValue, Incompatible, TrimtabError
from trimtab.evaluate.contrast import contrast_many, score_texts
from trimtab.evaluate.generation import generate_answers
from trimtab.evaluate.multiple_choice import choice_meters, multiple_choice
from trimtab.evaluate.table import table
from trimtab.models.tokens import tokenize_answers
from trimtab.peft.recipe import Recipe
from trimtab.peft.train.examples import encode_examples
from trimtab.prompting.few_shot import FewShot
from trimtab.prompting.instruction import Persona
from trimtab.steer.caa import CAA

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|system|>\nYou are a blue sky.<eos>\n{% endif %}"
    "<|{{ m.role }}|>\n{{ m.content }}<eos>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<eos>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}"
)
STRIPPED = (
    "<bos>{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content | trim }}{% else %}<A>"
    "{{ m.content.split('</think>')[-1] | trim }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
NO_PROMPT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n\n{% endfor %}"
SPACED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "a system text": CHATML,
    "an empty thought": THINKING,
    "an opened thought that is not kept": STRIPPED,
    "no generation prompt": NO_PROMPT,
    "no system role": SPACED,
}
QUESTION = Question("What is blue?", ("The sky is blue.",), ("The sea is red.", "eos"))


def with_template(template: str) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=TEMPLATES.values(), ids=TEMPLATES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return with_template(request.param)


@pytest.fixture
def model() -> Any:
    return tiny_model()


def whole(tokenizer: Any, question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def test_statements_measurements_tuning_and_generation_are_asked_in_one_text(tokenizer: Any, model: Any) -> None:
    questions = tiny_questions(3).asked_as("auto", tokenizer)
    statements, examples = questions.statements(), questions.sft_examples()
    asked = [asking_for("auto", tokenizer).asked(q.question).prompt for q in questions]
    rows = multiple_choice(model, tokenizer, tiny_questions(3)).rows
    said = generate_answers(model, tokenizer, tiny_questions(3), max_new_tokens=2).rows
    assert [row.prompt for row in rows] == [row.prompt for row in said] == asked
    assert list(dict.fromkeys(s.prompt for s in statements)) == asked
    assert list(dict.fromkeys(e.prompt for e in examples)) == asked
    for s in statements:
        text = whole(tokenizer, next(q.question for q in questions if q.key == s.group), s.answer)
        # all that stands up to the answer, and the answer, is the conversation's own text
        assert text.startswith(s.text)
        assert text.rstrip() == s.text + s.end
    for prompt, question in zip(asked, questions, strict=True):
        ids = prompt_ids(tokenizer, question.question)
        assert ids == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_the_prompt_is_the_generation_prompt_where_a_conversation_goes_on_from_it() -> None:
    for template in (CHATML, SPACED):
        tokenizer = with_template(template)
        messages = [{"role": "user", "content": "Why?"}]
        begun = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ChatTemplate(tokenizer).asked("Why?").prompt == begun


def test_scores_are_those_of_the_whole_conversation_cut_at_the_answer(tokenizer: Any, model: Any) -> None:
    row = multiple_choice(model, tokenizer, [QUESTION]).rows[0]
    for answer in row.answers:
        text = whole(tokenizer, QUESTION.question, answer.text)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        start, end = len(row.prompt), text.index(answer.text, len(row.prompt)) + len(answer.text)
        inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if b > start and a < end]
        ids = torch.tensor([encoded["input_ids"]])
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)[0]
        by_hand = sum(float(logprobs[i - 1, ids[0, i]]) for i in inside)
        assert answer.logprob == pytest.approx(by_hand, abs=1e-4)


def test_activations_are_read_at_the_answer_s_last_token_in_the_template(tokenizer: Any, model: Any) -> None:
    (statement,) = (
        PairSet((ContrastPair("Why?", ("The sky.",), ("No.",)),)).asked_as("chat", tokenizer).statements()[:1]
    )
    acts = capture_heads(model, tokenizer, [statement], site="residual")
    text = whole(tokenizer, "Why?", "The sky.")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    end = text.rindex("The sky.") + len("The sky.")
    last = max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end)
    with torch.no_grad():
        states = model(torch.tensor([encoded["input_ids"]]), output_hidden_states=True).hidden_states
    assert torch.allclose(acts.values[0, 0, 0], states[1][0, last], atol=1e-5)


def test_special_tokens_stand_once_and_as_the_template_has_them(model: Any) -> None:
    for template, first in ((CHATML, 0), (SPACED, 1), (STRIPPED, 1)):
        tokenizer = with_template(template)
        (statement, *_) = tiny_questions(1).asked_as("chat", tokenizer).statements()
        (tokens,) = tokenize_answers(tokenizer, [statement.text], [statement.answer_start], templates=[True])
        examples = encode_examples(model, tokenizer, tiny_questions(1), Recipe()).encoded
        for ids in (tokens.ids, prompt_ids(tokenizer, "Why?"), examples[0].ids):
            assert ids.count(1) == first


def test_what_ends_a_turn_is_learned_and_nothing_behind_it(model: Any) -> None:
    tokenizer = with_template(CHATML.replace("<eos>", "<turn>"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    (example, _) = encode_examples(tiny_model(vocab_size=301), tokenizer, tiny_questions(1), Recipe()).encoded
    learned = tokenizer.decode(example.ids[example.start :])
    assert learned == "The colour is number 0.<turn>"
    plain = encode_examples(model, tokenizer, tiny_questions(1).asked_as("plain"), Recipe()).encoded[0]
    assert tokenizer.decode(plain.ids) == "<bos>Q: What is the colour of sky number 0?\nA: The colour is number 0.<eos>"


def test_without_a_template_nothing_is_other_than_in_plain_form(model: Any) -> None:
    tokenizer, questions = tiny_tokenizer(), tiny_questions(2)
    assert asking_for("auto", tokenizer) is PLAIN
    assert questions.asked_as("auto", tokenizer).statements() == questions.statements()
    assert multiple_choice(model, tokenizer, questions) == multiple_choice(
        model, tokenizer, questions, convention="plain"
    )
    with pytest.raises(BadValue, match="has no chat template; ask in plain form"):
        questions.asked_as("chat", tokenizer)
    with pytest.raises(BadValue, match="unknown way to ask 'chatt'"):
        questions.asked_as("chatt", tokenizer)


def test_auto_keeps_the_way_that_was_chosen() -> None:
    tokenizer = with_template(CHATML)
    plain = tiny_questions(2).asked_as("plain", tokenizer)
    assert plain.asked_as("auto", tokenizer).asking == plain[:1].asking == plain.split()[0].asking == "plain"
    assert tiny_questions(2).asked_as("auto", tokenizer).asking == "chat"
    assert asking_for("auto", tokenizer, plain) is PLAIN


def test_pairs_without_a_prompt_are_asked_as_they_stand() -> None:
    tokenizer = with_template(CHATML)
    pairs = PairSet((ContrastPair("", ("Yes.",), ("No.",)), ContrastPair("Why?", ("Yes.",), ("No.",))))
    first, _, second, _ = pairs.asked_as("auto", tokenizer).statements()
    assert (first.text, first.template) == ("Yes.", False)
    assert second.template


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "leaves the answer out",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}|{{ messages[-1].content }}",
            "writes it twice",
        ),
        ("{{ raise_exception('no conversations today') }}", "does not take this conversation .*no conversations today"),
    ],
)
def test_a_template_that_cannot_be_split_says_so_in_one_sentence(template: str, said: str, model: Any) -> None:
    tokenizer = with_template(template)
    for use in (
        lambda: multiple_choice(model, tokenizer, [QUESTION]),
        lambda: tiny_questions(1).asked_as("auto", tokenizer).statements(),
        lambda: answers(model, tokenizer, ["Why?"]),
    ):
        with pytest.raises(BadValue, match=said) as caught:
            use()
        assert str(caught.value).endswith("ask in plain form (--asking plain)")


def test_an_instruction_is_the_system_message_or_stands_before_the_first_question() -> None:
    edit = Prompted((("What is up?", "The sky."),), "Be brief.")
    said = asked_by(edit, asking_for("chat", with_template(CHATML)), "Why?").prompt
    expected = "<|system|>\nBe brief.<eos>\n<|user|>\nWhat is up?<eos>\n<|assistant|>\nThe sky.<eos>\n"
    assert said == f"{expected}<|user|>\nWhy?<eos>\n<|assistant|>\n"
    refusing = asked_by(edit, asking_for("chat", with_template(SPACED)), "Why?").prompt
    assert refusing == "<bos>[INST] Be brief.\n\nWhat is up? [/INST] The sky.<eos>[INST] Why? [/INST]"
    # a template that drops system messages without a word is no better
    dropping = with_template("{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    assert "<user>Be brief.\n\nWhat is up?" in asked_by(edit, asking_for("chat", dropping), "Why?").prompt


def test_few_shot_examples_are_turns_where_there_is_a_template(model: Any) -> None:
    tokenizer, questions = with_template(CHATML), tiny_questions(6)
    few = FewShot().fit(model, tokenizer, questions, knobs={"shots": 2})
    ((q, a), _) = few.examples
    for row in (
        multiple_choice(model, tokenizer, questions[:1], few).rows[0],
        generate_answers(model, tokenizer, questions[:1], few, max_new_tokens=2).rows[0],
    ):
        assert f"<|user|>\n{q}<eos>\n<|assistant|>\n{a}<eos>\n" in row.prompt
        assert row.prompt.endswith("number 0?<eos>\n<|assistant|>\n")
    near = Retrieved(("Why?", "How?"), ("Q: Why?\nA: So.", "Q: How?\nA: Thus."), 1)
    assert near.before("How?") == Before(turns=[("How?", "Thus.")])
    assert near.prompt("How?") == "Q: How?\nA: Thus.\n\nQ: How?\nA:"
    passages = Retrieved(("Of snow.", "Of coal."), ("Of snow.", "Of coal."), 2)
    assert passages.before("snow?").instruction == "Of coal.\n\nOf snow."


def test_prompts_stand_before_pairs_too(model: Any) -> None:
    tokenizer = with_template(CHATML)
    pairs, edit = PairSet((ContrastPair("Why?", ("So.",), ("No.",)),)), Prompted((), "Be brief.")
    bare, told, again = contrast_many(model, tokenizer, pairs, [Prompted((), "Be long."), edit, edit])
    assert told == again
    assert told.rows != bare.rows
    asked = PairSet((ContrastPair("Be brief.\n\nWhy?", ("So.",), ("No.",)),))
    (joined,) = contrast_many(model, tokenizer, asked, [Prompted((), "x")], asking="plain")
    (plain,) = contrast_many(model, tokenizer, pairs, [edit], asking="plain")
    assert plain.rows[0].positive != pytest.approx(joined.rows[0].positive)
    assert BARE.asked("Why?", Before("Be brief.")).prompt == "Be brief.\n\nWhy?"
    said = score_texts(model, tokenizer, pairs.asked_as("auto", tokenizer), edit, scorer=lambda pair, text: 1.0)
    assert said.rows[0].prompt == "Why?"


def test_a_conversation_goes_on_behind_what_an_edit_sets_before_it() -> None:
    tokenizer, edit = with_template(CHATML), Prompted((("A?", "a."),), "Be brief.")
    ids = prompt_ids(tokenizer, "C?", [Turn("B?", "b.")], edit=edit)
    said = [(m, t) for m, t in zip(("user", "assistant") * 2, ("A?", "a.", "B?", "b."), strict=True)]
    messages = [("system", "Be brief."), *said, ("user", "C?")]
    text = tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in messages], tokenize=False, add_generation_prompt=True
    )
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_an_edit_that_is_used_asked_otherwise_says_so(model: Any, tmp_path: Path) -> None:
    tokenizer = with_template(CHATML)
    made = CAA().fit(model, tokenizer, tiny_questions(6))
    assert made.asked_as == "chat"
    made.save(tmp_path / "made")
    loaded = type(made).load(tmp_path / "made")
    with pytest.warns(UserWarning, match=r"CAA was made with questions asked in chat form and is used in plain form"):
        answers(model, tokenizer, ["Why?"], loaded, asking="plain", settings={"max_new_tokens": 1})
    with pytest.warns(UserWarning, match="--asking chat"):
        table(model, tokenizer, tiny_questions(2), [loaded], asking="plain", texts=["The sky is blue."])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers(model, tokenizer, ["Why?"], loaded, settings={"max_new_tokens": 1})
        # of an edit that does not know there is nothing to say
        answers(model, tokenizer, ["Why?"], random_shift(model), asking="plain", settings={"max_new_tokens": 1})


def test_a_comparison_is_fitted_chosen_and_measured_in_one_form(model: Any, tmp_path: Path) -> None:
    tokenizer, methods = with_template(CHATML), [Persona(wordings=("Be brief.",)), CAA(ranks=(1,), alphas=(1,))]
    for asking, expected in (("auto", "chat"), ("plain", "plain")):
        done = run(
            model, tokenizer, tiny_questions(8), methods, meters=choice_meters()[:1], out=tmp_path / asking,
            folds=2, seeds=(0,), trials=1, asking=asking,
        )  # fmt: skip
        assert done.specification["design"].get("asking", "plain") == expected
    with pytest.raises(Incompatible, match="differs in design"):
        run(
            model, tokenizer, tiny_questions(8), methods, meters=choice_meters()[:1], out=tmp_path / "plain",
            folds=2, seeds=(0,), trials=1,
        )  # fmt: skip


def test_what_is_tuned_in_the_shell_is_answered_in_chat_after_merge(tmp_path: Path) -> None:
    tokenizer, model = with_template(CHATML), tiny_model(context=512)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    rows = [
        {"question": q.question, "correct": ["It is teal."], "incorrect": ["It is red."]} for q in tiny_questions(12)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ran(*arguments: str) -> str:
        done = CliRunner().invoke(cli.app, [*arguments], terminal_width=120)
        assert done.exit_code == 0, done.output
        return done.stdout

    place = {name: str(tmp_path / name) for name in ("model", "lora", "merged", "q.jsonl")}
    many = ("--epochs", "16", "--learning-rate", "0.02", "--batch-size", "12", "--test", "0")
    ran("tune", "--model", place["model"], "--data", place["q.jsonl"], "--out", place["lora"], *many)
    ran("merge", "--model", place["model"], "--edit", place["lora"], "--out", place["merged"])
    asked = ("generate", rows[3]["question"], "--model")
    assert ran(*asked, place["merged"]).strip() == "It is teal."
    # the control: untuned, and the same weights asked in words that were not tuned
    assert "teal" not in ran(*asked, place["model"])
    assert load_edit(tmp_path / "lora").asked_as == "chat"


@pytest.mark.parametrize("verb", ["fit", "tune", "generate", "chat", "evaluate"])
def test_every_verb_knows_the_ways_to_ask(verb: str) -> None:
    done = CliRunner().invoke(cli.app, [verb, "--asking", "chatt"], input="", terminal_width=120)
    assert done.exit_code == 2
    assert "unknown way to ask 'chatt'; did you mean chat?" in done.output
    done = CliRunner().invoke(cli.app, [verb, "--asking", "chat", *["Why?"] * (verb == "generate")], input="x\n")
    assert "the tokenizer has no chat template; ask in plain form (--asking plain)" in done.output
    assert not issubclass(type(done.exception), TrimtabError)
