"""Tokens of prompts and answers, and batches of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.errors import BadValue
from trimtab.models.tokens import (
    context_length,
    encode,
    length_batches,
    pad_id,
    padded_batch,
    require_fits,
    require_known,
    tokenize_answer,
    tokenize_answers,
)


class SlowTokenizer:
    """A tokenizer without offsets, as those written in Python are."""

    is_fast = False

    def __init__(self, fast: Any) -> None:
        self.fast = fast
        self.all_special_ids, self.bos_token = fast.all_special_ids, fast.bos_token

    def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
        return {"input_ids": self.fast(text, **options)["input_ids"]}

    def decode(self, ids: list[int]) -> str:
        return self.fast.decode(ids)


def framed(template: str) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with other special tokens around every text."""
    backend = copy.deepcopy(tiny_tokenizer().backend_tokenizer)
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<bos>", 1), ("<eos>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


TOKENIZERS = {
    "fast": tiny_tokenizer,
    "slow": lambda: SlowTokenizer(tiny_tokenizer()),
    "fast with an end token": lambda: framed("<bos> $A <eos>"),
    "slow with an end token": lambda: SlowTokenizer(framed("<bos> $A <eos>")),
    "fast with two end tokens": lambda: framed("<bos> $A <eos> <eos>"),
    "slow without a start token": lambda: SlowTokenizer(framed("$A")),
    "fast without a start token": lambda: framed("$A"),
}
# prompt, white space, answer, and the answer's tokens as the tiny tokenizer cuts them
ANSWERS = {
    "space taken into the answer": ("Q: the sky?\nA:", " ", "The sky is blue.", " The sky is blue."),
    "space apart": ("Q: the sky?\nA:", " ", "zz", "zz"),
    "new line": ("Q: the sky?\nA:", "\n", "The sky", "The sky"),
    "no space": ("Q: What is it?A:", "", "sky", "sky"),
    "word parted by the border": ("Q: The sky is bl", "", "ue.", " blue."),
    "several spaces": ("Q: the sky?\nA:", "   ", "The sky", " The sky"),
    "answer like the prompt's end": ("A: A: A:", " ", "A: A:", "A: A:"),
    "one character": ("Q: x\nA:", " ", "7", "7"),
    "character of several tokens": ("Q: x\nA:", " ", "é", "é"),
    "trailing space": ("Q: x\nA:", " ", "blue ", " blue "),
}


@pytest.mark.parametrize("which", TOKENIZERS)
@pytest.mark.parametrize("case", ANSWERS)
def test_the_answers_span_is_every_token_that_holds_one_of_its_characters(which: str, case: str) -> None:
    prompt, space, answer, expected = ANSWERS[case]
    tokenizer, text = TOKENIZERS[which](), prompt + space + answer
    found = tokenize_answer(tokenizer, text, len(prompt + space))
    # jointly tokenised: the very tokens of the whole text, but for end tokens
    assert found.ids == [token for token in tokenizer(text)["input_ids"] if token != 2]
    assert tiny_tokenizer().decode(found.ids[found.start : found.end]) == expected
    assert not set(found.ids[found.start : found.end]) & {0, 1, 2}


def test_a_border_inside_a_token_gives_other_tokens_than_the_parts_alone() -> None:
    joint = tokenize_answer(tiny_tokenizer(), "The sky is blue.", len("The sky is bl")).ids
    parts = [*tiny_tokenizer()("The sky is bl")["input_ids"], *tiny_tokenizer()("ue.")["input_ids"][1:]]
    assert joint != parts


@pytest.mark.parametrize(
    "cut",
    [
        {"Q: sky": [5, 6, 7], "Q: ": [5, 8], "Q:": [5, 6]},  # the space would join the colon, and joins the answer
        {"Q: sky": [5, 6, 9, 7], "Q: ": [5, 6, 9], "Q:": [5, 6]},  # the space stands alone
        {"Q: sky": [5, 8, 7], "Q: ": [5, 8], "Q:": [5, 6]},  # the space joins the colon
    ],
)
def test_without_offsets_the_space_before_the_answer_may_belong_to_either_side(cut: dict[str, list[int]]) -> None:
    class Written(SlowTokenizer):
        def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": {**cut, "a": [5, 4]}[text][0 if add_special_tokens else 1 :]}

    found = tokenize_answer(Written(tiny_tokenizer()), "Q: sky", 3)
    assert (found.start, found.end) == (len(cut["Q: sky"]) - 1, len(cut["Q: sky"]))


@pytest.mark.parametrize("template", ["<bos> $A <eos>", "<eos> <bos> $A <eos> <eos>", "$A <eos>"])
def test_what_a_tokenizer_puts_before_a_text_is_kept_and_what_it_puts_behind_is_not(template: str) -> None:
    opening = [{"<bos>": 1, "<eos>": 2}[word] for word in template.split("$A")[0].split()]
    text = tiny_tokenizer()("Q: x A: blue")["input_ids"][1:]
    found = tokenize_answer(framed(template), "Q: x A: blue", 8)
    assert found.ids == encode(framed(template), "Q: x A: blue") == [*opening, *text]
    assert found.end == len(found.ids)


@pytest.mark.parametrize("written", ["<eos><bos>", " <eos><bos>", "\n\t<eos><bos>"])
@pytest.mark.parametrize("slow", [False, True])
def test_an_opening_of_several_tokens_stands_once_wherever_it_is_written_out(written: str, slow: bool) -> None:
    tokenizer: Any = SlowTokenizer(framed("<eos> <bos> $A")) if slow else framed("<eos> <bos> $A")
    text = f"{written}user\nA: blue"
    ids = encode(tokenizer, text)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [token for token in ids if token in (1, 2)] == [2, 1]
    found = tokenize_answer(tokenizer, text, text.index("blue"))
    assert (found.ids, tiny_tokenizer().decode(ids[found.start : found.end])) == (ids, " blue")
    # control: half of it is another text
    assert encode(tokenizer, "<bos>user")[:3] == [2, 1, 1]


@pytest.mark.parametrize("which", TOKENIZERS)
def test_an_answer_that_is_empty_after_tokenisation_is_refused_with_the_text(which: str) -> None:
    with pytest.raises(BadValue, match=r"no answer token in 'Q: x\\nA:'; give a non-empty prompt and answer"):
        tokenize_answer(TOKENIZERS[which](), "Q: x\nA:", len("Q: x\nA:"))


def test_an_answer_that_the_tokenizer_drops_is_refused() -> None:
    class Dropping(SlowTokenizer):
        def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
            return super().__call__(text.replace("☃", ""), **options)

    with pytest.raises(BadValue, match="no answer token in 'Q: x A:☃'"):
        tokenize_answer(Dropping(tiny_tokenizer()), "Q: x A:☃", len("Q: x A:"))


@pytest.mark.parametrize("which", ["fast without a start token", "slow without a start token"])
def test_an_answer_that_starts_the_text_is_refused_unless_no_prompt_is_needed(which: str) -> None:
    tokenizer = TOKENIZERS[which]()
    with pytest.raises(BadValue, match="no prompt token before the answer in 'blue sky'"):
        tokenize_answer(tokenizer, "blue sky", 0)
    found = tokenize_answer(tokenizer, "blue sky", 0, needs_prompt=False)
    assert (found.start, found.end) == (0, len(found.ids))


def test_a_start_token_is_prompt_enough() -> None:
    assert tokenize_answer(tiny_tokenizer(), "blue sky", 0).start == 1


# batches


def batches(lengths: list[int], **options: Any) -> list[Any]:
    return list(length_batches(rows_of(lengths), **{"batch_size": 3, **PADDING, **options}))


def rows_of(lengths: list[int]) -> list[list[int]]:
    return [[10 + i] * n for i, n in enumerate(lengths)]


PADDING: dict[str, Any] = {"pad": 0, "device": torch.device("cpu")}


LENGTHS = [3, 9, 1, 7, 7, 2, 5]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_sequence_stands_in_one_batch_whole_and_padded_on_its_side(side: str, batch_size: int) -> None:
    met = []
    for batch in batches(LENGTHS, batch_size=batch_size):
        if side == "left":
            batch = padded_batch(rows_of(LENGTHS), batch.indices, side="left", **PADDING)
        assert batch.input_ids.shape == batch.attention_mask.shape
        assert batch.input_ids.shape[1] == max(LENGTHS[i] for i in batch.indices)
        for index, row, mask in zip(batch.indices, batch.input_ids, batch.attention_mask, strict=True):
            n, gap = LENGTHS[index], batch.input_ids.shape[1] - LENGTHS[index]
            assert row.tolist() == ([0] * gap + [10 + index] * n if side == "left" else [10 + index] * n + [0] * gap)
            assert mask.tolist() == ([0] * gap + [1] * n if side == "left" else [1] * n + [0] * gap)
            met.append(index)
    assert sorted(met) == list(range(len(LENGTHS)))


def test_the_longest_come_first_and_batches_hold_similar_lengths() -> None:
    lengths = [[LENGTHS[i] for i in batch.indices] for batch in batches(LENGTHS)]
    assert lengths == [[9, 7, 7], [5, 3, 2], [1]]


def test_a_pad_token_inside_a_sequence_is_no_padding() -> None:
    (batch,) = length_batches([[5, 0, 6], [7, 8]], batch_size=2, pad=0, device=torch.device("cpu"))
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_no_sequences_make_no_batches() -> None:
    assert batches([]) == []


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(BadValue, match=f"batch_size must be at least 1, got {size}"):
        batches(LENGTHS, batch_size=size)


# what the model and the tokenizer allow


def test_the_context_is_the_configs_under_whatever_name_it_has_there() -> None:
    assert context_length(tiny_model("llama", context=64)) == 64
    assert context_length(tiny_model("gpt2")) == tiny_model("gpt2").config.n_positions == 256


def test_a_sequence_as_long_as_the_context_fits_and_one_more_token_does_not() -> None:
    model = tiny_model("llama", context=64)
    require_fits(model, [3, 64], ["short", "long"])
    require_fits(model, [], [])
    with pytest.raises(BadValue, match=r"a text of 65 tokens does not fit the model's context of 64: 'too long'"):
        require_fits(model, [64, 65, 3], ["long", "too long", "short"])


def test_a_model_that_names_no_context_takes_any_length() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=30, hidden_size=8, n_layer=1, n_head=2))
    assert context_length(model) is None
    require_fits(model, [10**6], ["endless"])


def test_padding_uses_the_pad_token_else_the_end_token_else_the_first() -> None:
    assert pad_id(framed("$A")) == 0
    assert pad_id(tiny_tokenizer(pad=False)) == 2
    bare = PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(tiny_tokenizer().backend_tokenizer))
    assert (bare.pad_token_id, bare.eos_token_id, pad_id(bare)) == (None, None, 0)


@pytest.mark.parametrize("kind", ["fast", "slow"])
def test_a_begin_token_that_the_text_writes_out_does_not_stand_twice(kind):
    tokenizer = TOKENIZERS[kind]()
    text = "<bos>Q: the sky?\nA: The sky is blue."
    plain = encode(tokenizer, text.removeprefix("<bos>"))
    assert encode(tokenizer, text) == plain
    assert plain.count(1) == 1 and plain[0] == 1
    split = tokenize_answer(tokenizer, text, text.index(" The sky"))
    assert split == tokenize_answer(tokenizer, text.removeprefix("<bos>"), text.index(" The sky") - len("<bos>"))


def test_a_begin_token_later_in_the_text_changes_nothing():
    tokenizer = tiny_tokenizer()
    assert encode(tokenizer, "The sky<bos>") == tokenizer("The sky<bos>")["input_ids"]


@pytest.mark.parametrize("which", TOKENIZERS)
def test_texts_that_are_tokenised_together_are_tokenised_as_one_by_one(which: str) -> None:
    tokenizer, texts = TOKENIZERS[which](), ["Q: x A: blue", "<bos>Q: why A: The sky", "Q: x A: a", "<bos>Q: A: b"]
    starts = [text.index("A:") + 2 for text in texts]
    together = tokenize_answers(tokenizer, texts, starts)
    assert together == [tokenize_answer(tokenizer, t, s) for t, s in zip(texts, starts, strict=True)]
    assert [t.ids for t in together] == [encode(tokenizer, text) for text in texts]


def test_a_token_that_the_model_does_not_know_is_refused() -> None:
    model = tiny_model()
    n = model.config.vocab_size
    require_known(model, n - 1)
    with pytest.raises(BadValue, match=f"the tokenizer gives token {n}, but the model knows {n}; use the tokenizer of"):
        require_known(model, n)
