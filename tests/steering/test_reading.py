"""Reader and surprisals: how answers lie between two sides' texts, and how likely they are to the unedited model."""

from __future__ import annotations

import pytest
import torch

from tests.steering.test_effect import PAIRS, every_layer
from tests.steering.test_places import activations
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.datasets import Statement
from trimtab.datasets.asking import asking_for
from trimtab.edits.combined import NoEdit
from trimtab.engine.conversation import prompt_ids
from trimtab.models.tokens import scored_tokens
from trimtab.steer.reading import ReadAnswers, Reader, read_texts, surprisals


def test_a_reader_puts_held_out_texts_of_both_sides_at_its_ends():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    train, held = PAIRS[:2], PAIRS[2:]
    reader = Reader.of(*(read_texts(model, tokenizer, part.statements()) for part in (train, held)))
    for label, end in ((True, 1.0), (False, 0.0)):
        found = reader.read(model, tokenizer, [s for s in held.statements() if s.label is label])
        assert sum(found) / len(found) == pytest.approx(end, abs=1e-4)
    assert reader.read(model, tokenizer, [Statement("Why?", " ", True, "a")]) == [0.0]


@pytest.mark.parametrize("asking", ["plain", "bare"])
def test_how_unlikely_answers_are_is_the_unedited_model_s_mean_over_their_tokens(asking):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    items = PAIRS[:2].asked_as(asking, tokenizer)
    said = [["so it is", "the sea"], ["", "a cow"], ["", " "]]

    form = asking_for(asking, tokenizer)

    def by_hand(texts: list[str]) -> float:
        total, n = 0.0, 0
        for item, text in zip(items, texts, strict=True):
            if not text.strip():
                continue
            (tokens,) = scored_tokens(model, tokenizer, [form.statement(item.asked, text, True, item.key)])
            assert tokens.ids[: tokens.start] == prompt_ids(tokenizer, item.asked, asking=items.asking)
            with torch.inference_mode():
                logprobs = model(torch.tensor([tokens.ids])).logits[0].log_softmax(-1)
            total += sum(float(logprobs[i - 1, tokens.ids[i]]) for i in range(tokens.start, tokens.end))
            n += tokens.end - tokens.start
        return -total / max(1, n)

    *found, of_none = surprisals(model, tokenizer, items, said)
    assert found == pytest.approx([by_hand(texts) for texts in said[:2]], abs=1e-4)
    assert of_none == float("inf")  # not the likeliest of all


def test_a_huge_coordinate_that_varies_with_everything_does_not_decide_what_is_read():
    draw = torch.Generator().manual_seed(0)
    huge, signal = 1, 6

    def sides(n: int) -> torch.Tensor:
        values = torch.randn(2 * n, 8, generator=draw)
        values[::2, signal] += 6
        values[:, huge] *= 500
        return values

    train, held, others = (sides(18), sides(12), sides(200))
    reader = Reader.of(activations(train), activations(held))
    assert reader.separation > 3

    def says(direction: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([others.double() @ direction, others[:, signal].double()]))[0, 1])

    plain = (train[::2] - train[1::2]).double().mean(0)
    assert says(reader.direction) > 0.9 and says(plain) < 0.5  # the control


def test_a_reader_is_learnt_from_pairs_and_ends_where_the_measured_ones_lie():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    train, held = PAIRS.split(test=0.4, seed=0)
    by_hand = Reader.of(*(read_texts(model, tokenizer, part.statements()) for part in (train, held)))
    wanted, found = (
        ReadAnswers(reader, max_new_tokens=4).measure(model, tokenizer, held, [every_layer(model)])[0].rows
        for reader in (by_hand, train)
    )
    assert found == wanted and len({row["reading"] for row in found.values()}) > 1


def test_answers_under_several_edits_are_read_as_under_each_alone():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    meter = ReadAnswers(Reader(1, torch.linspace(-1, 1, 48).double(), (-1.0, 1.0), 1.0), max_new_tokens=4)
    edits = [NoEdit(), every_layer(model).scaled(4.0), every_layer(model).scaled(-4.0)]
    together = meter.measure(model, tokenizer, PAIRS, edits)
    alone = [meter.measure(model, tokenizer, PAIRS, [edit])[0] for edit in edits]
    assert len({str(found.rows) for found in together}) == len(edits)
    for one, other in zip(together, alone, strict=True):
        for item, row in other.rows.items():
            assert one.rows[item]["text"] == row["text"]
            assert one.rows[item]["reading"] == pytest.approx(row["reading"], abs=1e-4)
