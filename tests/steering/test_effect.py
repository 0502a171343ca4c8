"""rank_sites: attribution is exact patching in the limit, and heads that only read are told from those that steer."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cases import projections
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import Head
from trimtab.datasets import ContrastPair, PairSet
from trimtab.edits import HeadShift, ResidualShift
from trimtab.engine import forwards, slopes
from trimtab.engine.forwards import run_differentiable
from trimtab.engine.slopes import answer_slopes
from trimtab.errors import BadValue
from trimtab.evaluate import contrast, drift
from trimtab.models.anatomy import decoder_layers
from trimtab.models.calling import cache_name
from trimtab.models.tokens import AnswerTokens
from trimtab.steer import rank_sites

PAIRS = PairSet(
    tuple(ContrastPair(f"How is day {i}?", (f"Bright {i}!", f"Warm {i}."), (f"Grey {i}.",)) for i in range(4))
)
TEXTS = ["The sky is blue and the sea is deep.", "A leaf falls on the old grey roof.", "Snow lies on a house."]


def every_head(model: Any, size: float = 0.3) -> HeadShift:
    d_head = projections(model)[0].weight.shape[1] // 4
    heads = tuple(Head(layer, head) for layer in (2, 0, 1) for head in (3, 1, 0, 2))
    vectors = torch.randn(12, d_head, generator=torch.Generator().manual_seed(1))
    return HeadShift(heads, vectors / vectors.norm(dim=1, keepdim=True), torch.full((12,), size))


def every_layer(model: Any) -> ResidualShift:
    vectors = torch.randn(3, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    return ResidualShift((1, 2, 0), vectors)


def margin(model: Any, edit: Any) -> float:
    rows = contrast(model, tiny_tokenizer(), PAIRS, edit).rows
    return sum(row.positive - row.negative for row in rows) / len(rows)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("made", [every_head, every_layer])
def test_slopes_are_those_of_shifted_scoring_in_the_limit(family, made):
    model = tiny_model(family, dtype=torch.float64)
    shift = made(model)
    found = rank_sites(model, tiny_tokenizer(), PAIRS, shift, texts=TEXTS)
    assert set(found.sites) == set(shift.sites)
    for site, slope in zip(found.sites, found.slope.tolist(), strict=True):
        alone = [shift.on([site]).scaled(sign * 1e-2) for sign in (1, -1)]
        exact = (margin(model, alone[0]) - margin(model, alone[1])) / 2e-2
        assert slope == pytest.approx(exact, rel=5e-3, abs=1e-3)
    assert found.effect.tolist() == sorted(found.effect.tolist(), reverse=True)


def patched(model: Any, answer: AnswerTokens, layer: int, added: Tensor) -> float:
    """Score an answer with plain hooks: the vector joins the projection's input where its tokens are predicted."""

    def hook(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = given[0].clone()
        x[0, answer.start - 1 : answer.end - 1] += added
        return (x,)

    handle = projections(model)[layer].register_forward_pre_hook(hook)
    with torch.no_grad():
        logits = model(torch.tensor([answer.ids])).logits.log_softmax(-1)[0]
    handle.remove()
    return sum(float(logits[i - 1, answer.ids[i]]) for i in range(answer.start, answer.end))


def test_attribution_is_exact_patching_by_plain_hooks_for_small_patches_and_not_for_large_ones():
    model = tiny_model("llama", dtype=torch.float64)
    answers = [AnswerTokens([1, 40, 41, 42, 43, 44], 3, 6), AnswerTokens([1, 50, 51, 52], 2, 4)]
    vectors = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = answer_slopes(model, tiny_tokenizer(), answers, {"heads": vectors.float()})["heads"]
    assert found.shape == (2, 3, 4)
    errors: dict[float, float] = {}
    for size in (3e-3, 3e-2, 1.0):
        gaps = []
        for i, answer in enumerate(answers):
            plain = patched(model, answer, 0, torch.zeros(48, dtype=torch.float64))
            for layer in range(3):
                for head in range(4):
                    added = torch.zeros(4, 12, dtype=torch.float64)
                    added[head] = size * vectors[layer, head].float()
                    slope = (patched(model, answer, layer, added.flatten()) - plain) / size
                    gaps.append(abs(slope - float(found[i, layer, head])))
        errors[size] = max(gaps)
    assert errors[3e-3] < 0.1 * errors[3e-2] * 1.3 < errors[1.0]
    # what is left out is of second order, so the error falls with the size of the patch
    assert errors[3e-2] / errors[3e-3] == pytest.approx(10, rel=0.3)


def test_the_caller_s_model_is_left_as_it_was():
    model = tiny_model("llama").train()
    list(model.parameters())[3].requires_grad = False
    before = [(p.requires_grad, p.clone()) for p in model.parameters()]
    rank_sites(model, tiny_tokenizer(), PAIRS, every_layer(model), texts=TEXTS)
    assert all(module.training for module in model.modules())
    for p, (wanted, values) in zip(model.parameters(), before, strict=True):
        assert p.requires_grad == wanted and p.grad is None and torch.equal(p, values)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_the_drift_foreseen_is_the_kl_of_small_strengths():
    model, tokenizer = tiny_model("llama", dtype=torch.float64), tiny_tokenizer()
    shift = every_layer(model).scaled(0.1)
    # many draws of tokens, so that chance is small beside what is tested
    found = [rank_sites(model, tokenizer, PAIRS, shift, by="accuracy", texts=TEXTS * 40, seed=s) for s in range(3)]
    for i, site in enumerate(shift.sites):
        kl = float(drift(model, tokenizer, shift.on([site]).scaled(0.05), texts=TEXTS, max_tokens=64).kl)
        assert sum(float(f.drift[i]) for f in found) / 3 == pytest.approx(kl / 0.05**2, rel=0.15)
    at = found[0].reach([1], 0.01)
    assert at == pytest.approx(math.sqrt(0.01 / float(found[0].drift[0])))


def test_heads_that_read_and_do_not_steer_are_told_from_those_that_do():
    """Two heads hold the same activations; the output projection throws what one of them adds away."""
    model, tokenizer, questions = tiny_model("llama"), tiny_tokenizer(), tiny_questions(6)
    reads, steers = Head(1, 0), Head(1, 3)
    with torch.no_grad():
        weight = projections(model)[1].weight.view(48, 4, 12)
        weight[:, reads.head] = 0.0
    d_head = 12
    vectors = torch.ones(2, d_head) / d_head**0.5
    both = HeadShift((reads, steers), vectors, torch.ones(2), record={"accuracy": [0.97, 0.6]})
    by_effect = rank_sites(model, tokenizer, questions, both, texts=TEXTS)
    slopes = dict(zip(by_effect.sites, by_effect.slope.tolist(), strict=True))
    assert slopes[reads] == 0 and slopes[steers] != 0
    toward = both if slopes[steers] > 0 else both.scaled(-1)
    assert rank_sites(model, tokenizer, questions, toward, texts=TEXTS).sites == (steers, reads)
    # the control: by what probes read, the idle head comes first
    assert rank_sites(model, tokenizer, questions, toward, by="accuracy", texts=TEXTS).sites == (reads, steers)


def test_a_way_to_rank_that_there_is_not_and_a_site_that_the_shift_lacks_are_refused():
    model = tiny_model("llama")
    with pytest.raises(BadValue, match="no layer 7 to shift; there are layers 0 to 2"):
        every_layer(model).on([7])
    with pytest.raises(BadValue, match=r"no head 3\.9 to shift; there are heads 0\.0 to 2\.3"):
        every_head(model).on([Head(3, 9)])


@pytest.mark.parametrize("sampled", [None, 3])
@pytest.mark.parametrize("size", [4, 5])
def test_where_memory_runs_out_the_slopes_are_the_same(sampled, size, monkeypatch):
    model, sizes, grad = tiny_model(), list[int](), torch.autograd.grad
    answers = [AnswerTokens([5, 6, 7, 8 + i, 9][: 3 + i % 3], 2, 3 + i % 3) for i in range(10)]
    along = {"residual": torch.ones(len(decoder_layers(model)), 1, model.config.hidden_size)}
    expected = answer_slopes(model, tiny_tokenizer(), answers, along, sampled=sampled, batch_size=2)["residual"]

    def failing_once(total: Any, strengths: Any) -> Any:
        """Run out of memory at the end of the second batch, when its tokens are drawn."""
        sizes.append(len(strengths[0]))
        if len(sizes) == 2:
            raise torch.OutOfMemoryError
        return grad(total, strengths)

    monkeypatch.setattr(torch.autograd, "grad", failing_once)
    found = answer_slopes(model, tiny_tokenizer(), answers, along, sampled=sampled, batch_size=size)["residual"]
    assert sizes[:2] == [size, size] and max(sizes[2:]) == 2 and sum(sizes) - sizes[1] == len(answers)
    torch.testing.assert_close(found, expected)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_a_model_that_reads_a_cache_wrongly_has_each_row_computed_whole(family, monkeypatch):
    model = tiny_model(family)
    answers = [AnswerTokens([*range(5, 45), *[7] * (n % 3), 50 + n, 60], 40 + n % 3, 42 + n % 3) for n in range(20)]
    along = {"residual": every_layer(model).rows[[2, 0, 1], None]}
    expected = answer_slopes(model, tiny_tokenizer(), answers, along)["residual"]
    forward, took = model.forward, list[Any]()

    @functools.wraps(forward)
    def without_mask(**given: Any) -> Any:
        mask, past = given.get("attention_mask"), given.get(cache_name(model))
        if past is not None and past.get_seq_length() and torch.is_tensor(mask) and mask.ndim == 2:
            given["attention_mask"] = None  # padding is seen
        return forward(**given)

    monkeypatch.setattr(model, "forward", without_mask)
    monkeypatch.setattr(slopes, "run_differentiable", lambda *a, **how: took.append(run_differentiable(*a, **how)))
    found = answer_slopes(model, tiny_tokenizer(), answers, along)["residual"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert [of.mode for of in took] == ["plain"]


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox", "gemma2"])
def test_prompts_that_answers_share_are_computed_once_and_without_gradients(family, monkeypatch):
    model, rng, took = tiny_model(family, dtype=torch.float64), np.random.default_rng(0), list[Any]()
    opening, *ends = (rng.integers(5, 50, size=n).tolist() for n in (40, 6, 9, 7))
    prompts = [opening + end for end in ends for _ in range(6)]
    answers = [AnswerTokens(p + rng.integers(5, 50, size=4).tolist(), len(p), len(p) + 4) for p in prompts]
    made = every_layer(model)
    along = {"residual": made.rows.double()[[2, 0, 1], None]}
    monkeypatch.setattr(slopes, "run_differentiable", lambda *a, **how: took.append(run_differentiable(*a, **how)))
    found = answer_slopes(model, tiny_tokenizer(), answers, along)["residual"]
    monkeypatch.setattr(forwards, "chosen_mode", lambda *_, **__: ("plain", None))
    plain = answer_slopes(model, tiny_tokenizer(), answers, along)["residual"]
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    assert [of.mode for of in took] == ["padded", "plain"] and 4 * took[0].tokens < took[1].tokens
    assert float(found.abs().max()) > 0.01
