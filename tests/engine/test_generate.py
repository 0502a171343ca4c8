"""Every way to new tokens has the same guards, and says nothing of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import processors

from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.edits.combined import NoEdit
from trimtab.engine.beam_search import BeamSettings, beam_texts
from trimtab.engine.completion import completions
from trimtab.engine.conversation import answers, prompt_ids, reply
from trimtab.engine.generate import Decoding, continuations
from trimtab.errors import BadValue
from trimtab.evaluate import cost
from trimtab.evaluate.cost import milliseconds_per_token
from trimtab.models.seeds import torch_seeded


def sampled(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
    with torch_seeded(0):
        return answers(model, tokenizer, questions, settings={"do_sample": True})


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "measuring": lambda model, tokenizer: completions(model, tokenizer, ["Why?", "What is snow?"], [NoEdit()]),
    "answers": lambda model, tokenizer: answers(model, tokenizer, ["Why?", "What is snow?"]),
    "chat": lambda model, tokenizer: reply(model, tokenizer, prompt_ids(tokenizer, "Why?"), template=False),
    "sampling": lambda model, tokenizer: sampled(model, tokenizer, ["Why?", "What is snow?"]),
    "beams": lambda model, tokenizer: beam_texts(
        model, tokenizer, ["Why?", "What is snow?"], NoEdit(), settings=BeamSettings(beams=2)
    ),
}
every_way = pytest.mark.parametrize("way", WAYS)


@cache
def usual(way: str) -> Any:
    """Return what a way answers by a tiny model that says nothing of generation."""
    return WAYS[way](tiny_model(), tiny_tokenizer())


@every_way
def test_what_is_not_a_number_is_refused(way: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(BadValue, match="logits of the next token came out as NaN"):
        WAYS[way](model, tiny_tokenizer())


@every_way
def test_logits_that_overflow_in_half_precision_are_refused_and_in_float32_answered(way: str) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight *= 65504 / model.lm_head.weight.abs().max()  # fits in float16, and its products do not
    assert WAYS[way](model, tokenizer)
    with pytest.raises(BadValue, match=r"came out as (NaN|infinite): .* float32 or bfloat16"):
        WAYS[way](model.half(), tokenizer)


@every_way
def test_an_end_token_that_the_tokenizer_appends_does_not_end_the_prompt(way: str) -> None:
    ends = copy.deepcopy(tiny_tokenizer())
    ends.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    assert ends("Why?")["input_ids"][-1] == 2
    assert WAYS[way](tiny_model(), ends) == usual(way)


@every_way
def test_a_prompt_without_room_for_an_answer_is_refused(way: str) -> None:
    with pytest.raises(BadValue, match=r"a prompt of \d+ tokens and \d+ new ones do not fit the model's context of 12"):
        WAYS[way](tiny_model(context=12), tiny_tokenizer())


@every_way
def test_another_models_tokenizer_is_refused(way: str) -> None:
    model = tiny_model()
    model.resize_token_embeddings(8)
    with pytest.raises(BadValue, match=r"the tokenizer gives token \d+, but the model knows 8"):
        WAYS[way](model, tiny_tokenizer())


@every_way
@pytest.mark.parametrize(
    "defaults",
    [
        {
            "suppress_tokens": list(range(5, 200)),
            "bad_words_ids": [[i] for i in range(5, 200)],
            "min_new_tokens": 30,
            "repetition_penalty": 3.0,
            "forced_eos_token_id": 7,
            "max_time": 0.0,
        },
        {
            "do_sample": True,
            "temperature": 9.0,
            "num_return_sequences": 3,
            "watermarking_config": {"bias": 5.0},
            "sequence_bias": [[[5], 9.0]],
            "guidance_scale": 2.0,
        },
        {
            "output_logits": True,
            "cache_implementation": "static",
            "stop_strings": ["a"],
            "prefill_chunk_size": 2,
            "token_healing": True,
            "dola_layers": "low",
        },
    ],
    ids=["what tokens", "how drawn", "how computed"],
)
def test_of_a_checkpoints_generation_defaults_none_holds(
    way: str, defaults: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    expected = usual(way)
    for name, value in defaults.items():  # as a file may say, which nothing checks
        if (way, name) != ("sampling", "temperature"):
            setattr(model.generation_config, name, value)
    given = model.generation_config
    before = given.to_dict()
    assert WAYS[way](model, tokenizer) == expected
    assert model.generation_config is given
    assert given.to_dict() == before
    assert capfd.readouterr().err == ""


def test_sampling_defaults_of_the_checkpoint_hold_where_sampling_is_asked_for() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    greedy = answers(model, tokenizer, ["Why?"])
    model.generation_config.update(top_k=1)  # the likeliest of one is the greedy choice
    assert answers(model, tokenizer, ["Why?"], settings={"do_sample": True}) == greedy


def test_options_that_transformers_refuses_are_told_in_a_sentence() -> None:
    with pytest.raises(BadValue, match="these generation options were refused: "):
        answers(tiny_model(), tiny_tokenizer(), ["Why?"], settings={"no_such_option": 3})


def test_a_refusal_of_the_edit_passes_as_it_is() -> None:
    model = tiny_model()
    decoding = Decoding(4, {"prompt_lookup_num_tokens": 2})
    with pytest.raises(BadValue, match="positions='generated' edits the last position of a forward only"):
        continuations(model, tiny_tokenizer(), [[5, 6, 5, 6, 5, 6, 5]], [random_shift(model)], decoding)


def test_several_edits_and_none_are_those_of_one_at_a_time() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts, edits = [[5, 6, 7, 8], [9, 10]], [None, random_shift(model), NoEdit()]
    found = continuations(model, tokenizer, prompts, edits, Decoding(8), batch_size=1)
    assert found == [continuations(model, tokenizer, prompts, [edit], Decoding(8))[0] for edit in edits]
    assert found[0] == found[2] != found[1]


def test_the_time_of_a_token_is_the_middle_question_s_divided_by_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, now, seconds = tiny_model(), [0.0], iter([90.0, 3.0, 1.0, 8.0])  # the first warms up

    def spent(_model: Any, _tokenizer: Any, _batch: Any, decoding: Any) -> torch.Tensor:
        now[0] += next(seconds) * decoding.max_new_tokens
        return torch.zeros(1)

    monkeypatch.setattr(cost.generate, "new_tokens", spent)
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    questions = ["Why?", "What?", "Who?"]
    assert milliseconds_per_token(model, tiny_tokenizer(), questions, NoEdit(), new_tokens=4) == 3000


def test_the_time_of_a_token_is_that_of_whole_answers() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(300))  # an answer would end at once
    assert milliseconds_per_token(model, tiny_tokenizer(), ["Why?", "What?"], NoEdit(), new_tokens=4) > 0
