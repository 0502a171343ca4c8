"""Generation takes as many prompts at once as may be held, and half of them where memory runs out; nothing is lost."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.test_completion import PromptEditing
from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.edits.combined import NoEdit
from trimtab.engine import batching, generate
from trimtab.engine.batching import LARGE, Budget, Limits, filled, longest_first
from trimtab.engine.generate import Decoding, continuations

PROMPTS = [list(range(5, 5 + n)) for n in (4, 9, 2, 7, 12, 3, 9, 5)]
DECODING = Decoding(6, {"min_new_tokens": 6})


def limits(cached: int, rows: int = 1 << 30) -> Limits:
    return Limits(tokens=cached, row_length=cached, rows=rows, cached=cached)


def full_above(model: Any, monkeypatch: pytest.MonkeyPatch, places: int) -> list[int]:
    """Let a forward run out of memory where batch times length, cached tokens included, is more; return the batches."""
    plain, tried = model.forward, []

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        rows, length = kwargs["input_ids"].shape
        length = max(length, int(kwargs.get("position_ids", torch.zeros(1)).max()) + 1)
        tried.append(rows)
        if rows * length > places:
            raise torch.OutOfMemoryError(f"{rows} x {length}")
        return plain(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    return tried


@given(
    widths=st.lists(st.integers(1, 60), max_size=25),
    room=st.integers(60, 2000),
    cached=st.integers(1, 2000),
    rows=st.integers(1, 9),
)
def test_everything_is_done_once_within_the_limits_and_within_what_there_is(widths, room, cached, rows):
    done: list[int] = []
    failures = 0

    def work(batch: list[int]) -> None:
        nonlocal failures
        widest = max(widths[i] for i in batch)
        assert len(batch) <= rows and (len(batch) * widest <= cached or len(batch) == 1)
        if len(batch) * widest > room:
            failures += 1
            raise torch.OutOfMemoryError
        done.extend(batch)

    longest_first(widths, limits(cached, rows), work)
    assert sorted(done) == list(range(len(widths)))
    assert failures <= 4  # of nine rows at most: 9, 4, 2, and what rounding leaves


@given(st.lists(st.integers(1, 60)), st.integers(60, 500))
def test_batches_hold_everything_in_order_and_pad_much_only_while_they_are_small(widths, tokens):
    batches = list(filled(widths, lambda width: width, lambda _: 1, tokens, 1 << 30))
    assert [width for batch in batches for width in batch] == widths
    for batch in batches:
        assert len(batch) * max(batch) <= tokens
        held = [len(batch[:k]) * max(batch[:k]) for k in range(1, len(batch))]
        assert all(n < tokens * LARGE or batch[k] >= 0.9 * max(batch[:k]) for k, n in enumerate(held, 1))


@pytest.mark.parametrize("places", [150, 60, 18])
def test_where_memory_runs_out_halves_are_generated_and_the_texts_are_the_same(places, monkeypatch):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    edits = [None, random_shift(model), PromptEditing(random_shift(model, seed=1))]
    expected = continuations(model, tokenizer, PROMPTS, edits, DECODING)
    tried = full_above(model, monkeypatch, places)
    assert continuations(model, tokenizer, PROMPTS, edits, DECODING) == expected
    assert max(tried) >= len(PROMPTS) and min(tried) < len(PROMPTS)


def test_one_prompt_that_does_not_fit_is_said_so(monkeypatch):
    model = tiny_model()
    tried = full_above(model, monkeypatch, 10)
    with pytest.raises(torch.OutOfMemoryError):
        continuations(model, tiny_tokenizer(), PROMPTS, [None], DECODING)
    assert tried[-1] == 1


@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_was_generated_before_memory_ran_out_is_not_generated_again(at, monkeypatch):
    model, tokenizer, calls = tiny_model(), tiny_tokenizer(), []
    expected = continuations(model, tokenizer, PROMPTS, [NoEdit()], DECODING)
    plain = generate.new_tokens

    def once_out_of_memory(edited: Any, tokenizer: Any, batch: Any, *rest: Any) -> Any:
        calls.append(len(batch.indices))
        if len(calls) == at + 1:
            raise torch.OutOfMemoryError
        return plain(edited, tokenizer, batch, *rest)

    monkeypatch.setattr(generate, "new_tokens", once_out_of_memory)
    assert continuations(model, tokenizer, PROMPTS, [NoEdit()], DECODING, batch_size=3) == expected
    assert max(calls) == 3 and sum(calls) - calls[at] == len(PROMPTS)


def test_beams_count_as_rows_of_the_cache(monkeypatch):
    model, sizes, prompts = tiny_model(), [], [[*range(5, 17)]] * 6
    monkeypatch.setattr(Limits, "of", classmethod(lambda *_: limits(180)))
    plain = generate.new_tokens
    monkeypatch.setattr(generate, "new_tokens", lambda *a: sizes.append(len(a[2].indices)) or plain(*a))
    continuations(model, tiny_tokenizer(), prompts, [None], DECODING)
    continuations(model, tiny_tokenizer(), prompts, [None], Decoding(6, {"num_beams": 3, "length_penalty": 1.0}))
    assert sizes == [6, 3, 3]  # 18 tokens for a prompt with its text; three times


def test_a_cache_takes_no_more_than_half_of_the_free_memory(monkeypatch):
    model = tiny_model()  # three layers of 48 numbers, keys and values, four bytes each
    monkeypatch.setattr("trimtab.engine.batching.free_bytes", lambda _: 2 * 3000 * 2 * 3 * 48 * 4)
    assert Limits.of(model, Budget()).cached == 3000
    monkeypatch.setattr("trimtab.engine.batching.free_bytes", lambda _: 0)
    assert Limits.of(model, Budget()).cached == Limits.of(model, Budget()).tokens
    monkeypatch.setattr("trimtab.engine.batching.free_bytes", lambda _: 1 << 60)
    assert Limits.of(model, Budget()).cached == 8 * Limits.of(model, Budget()).tokens


def test_what_is_drawn_does_not_hang_on_the_memory(monkeypatch):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    drawn = Decoding(6, {"do_sample": True, "temperature": 3.0})

    def texts(room: int, seed: int = 0) -> list[list[str]]:
        monkeypatch.setattr(batching, "_cache_room", lambda _: room)
        torch.manual_seed(seed)
        return continuations(model, tokenizer, PROMPTS, [None, random_shift(model)], drawn)

    monkeypatch.setattr(generate, "SAMPLED", 4)
    assert texts(10) == texts(10**9) != texts(10**9, seed=1)
    full_above(model, monkeypatch, 10)
    with pytest.raises(torch.OutOfMemoryError):  # and are not drawn in other batches
        texts(10**9)
