"""CE and KL on neutral texts against transformers' own loss and hand computations in float64."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch

from tests.measuring import random_shift, shifted_from, text_logprobs
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer
from trimtab.datasets import neutral_texts
from trimtab.datasets.asking import PLAIN
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.edits.retrieval import Retrieved
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate import divergence, drift

# of different lengths, so that every batch is padded
TEXTS = ["The sky.", "Snow fell on the old road all night.", "It rained.", "A cart went by, and then another one."]
TOLERANCE = 1e-6
FEW_SHOT = Prompted((("What is snow?", "Snow is white."),))


def measured(model, edit=None, *, texts=TEXTS, **options):
    return drift(model, tiny_tokenizer(), edit, texts=texts, **options)


def ids_of(text):
    return tiny_tokenizer()(text)["input_ids"]


def hand_ce(logprobs, ids):
    return float(-sum(logprobs[i, ids[i + 1]] for i in range(len(ids) - 1)) / (len(ids) - 1))


def hand_kl(p, q):
    """Return the mean over positions of KL(p || q), leaving out the last position, which predicts nothing known."""
    return float((p.exp() * (p - q)).sum(-1)[:-1].mean())


def by_hand(model, shift, *, first=0, texts=TEXTS):
    """Return each text's CE and KL with the shift from position `first` on."""
    pairs = []
    for ids in map(ids_of, texts):
        plain = text_logprobs(model, ids)
        with shifted_from(model, shift, first):
            edited = text_logprobs(model, ids)
        pairs.append((hand_ce(edited, ids), hand_kl(plain, edited)))
    return pairs


def flat(pairs):
    return [x for pair in pairs for x in pair]


@pytest.mark.parametrize("family", FAMILIES)
def test_ce_of_the_unedited_model_is_transformers_own_loss(family):
    model = tiny_model(family, dtype=torch.float64)
    losses = []
    for text in TEXTS:
        ids = torch.tensor([ids_of(text)])
        losses.append(model(input_ids=ids, labels=ids).loss.item())
    result = measured(model)
    assert [ce for ce, _ in result.per_text] == pytest.approx(losses, rel=TOLERANCE)
    assert float(result.ce) == pytest.approx(sum(losses) / len(losses), rel=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_ce_and_kl_equal_a_hand_computation_with_the_shift_at_all_positions(family):
    model = tiny_model(family, dtype=torch.float64)
    shift = random_shift(model)
    result = measured(model, shift)
    expected = by_hand(model, shift)
    assert flat(result.per_text) == pytest.approx(flat(expected), rel=TOLERANCE)
    assert float(result.kl) == pytest.approx(sum(kl for _, kl in expected) / len(TEXTS), rel=TOLERANCE)
    # control: a shift from the second position on gives other numbers
    later = by_hand(model, shift, first=1)
    assert all(abs(a - b) > 1e-3 for (_, a), (_, b) in zip(expected, later, strict=True))


def test_kl_is_of_the_unedited_distribution_from_the_edited_one():
    model = tiny_model(dtype=torch.float64)
    shift, ids = random_shift(model), ids_of(TEXTS[1])
    with shifted_from(model, shift, 0):
        edited = text_logprobs(model, ids)
    plain = text_logprobs(model, ids)
    kl = measured(model, shift, texts=TEXTS[1:2]).kl
    assert float(kl) == pytest.approx(hand_kl(plain, edited), rel=TOLERANCE)
    assert float(kl) != pytest.approx(hand_kl(edited, plain), rel=1e-2)


@pytest.mark.parametrize("edit", [None, NoEdit()], ids=["default", "no edit"])
def test_kl_is_exactly_zero_where_the_model_is_unchanged(edit):
    model = tiny_model()
    result = measured(model, edit)
    assert [kl for _, kl in result.per_text] == [0.0] * len(TEXTS)
    assert (float(result.kl), result.kl.low, result.kl.high) == (0.0, 0.0, 0.0)
    assert result.ce == measured(model).ce
    # control: an edit that does change it
    assert float(measured(model, random_shift(model)).kl) > 0.01


def behind(model, edit, text, shift=None):
    """Return CE and KL of a text behind what the edit sets before it, one token list at a time."""
    own, ahead = ids_of(text), ids_of(PLAIN.ahead(edit.before(text)))
    with shifted_from(model, shift, 0) if shift else contextlib.nullcontext():
        edited = text_logprobs(model, ahead + own[1:])[len(ahead) - 1 :]
    plain = text_logprobs(model, own)
    return hand_ce(edited, own), hand_kl(plain, edited)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_a_prompt_is_charged_for_what_it_does_to_the_text_behind_it(family):
    model = tiny_model(family, dtype=torch.float64)
    assert ids_of("")[0] == ids_of(TEXTS[0])[0]  # one token opens every text, and is not repeated
    found = measured(model, FEW_SHOT, batch_size=2)
    assert flat(found.per_text) == pytest.approx(flat([behind(model, FEW_SHOT, t) for t in TEXTS]), rel=TOLERANCE)
    assert min(kl for _, kl in found.per_text) > 0


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma2"])
def test_what_texts_stand_behind_alike_is_computed_once(family):
    # Gemma-2 computes in float32: in float64 the smallest number that it masks with is minus infinity to its softmax
    model = tiny_model(family, dtype=torch.float32 if family == "gemma2" else torch.float64, context=1024)
    shift, edit = random_shift(model), Prompted(tuple((f"What is number {i}?", f"It is {i}.") for i in range(20)))
    n_before, n_texts = len(ids_of(PLAIN.ahead(edit.before("")))), sum(len(ids_of(text)) for text in TEXTS)
    computed = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: computed.append(given["input_ids"].numel()), with_kwargs=True
    )
    found = measured(model, Stacked((edit, shift)))
    hook.remove()
    expected = [behind(model, edit, text, shift) for text in TEXTS]
    assert flat(found.per_text) == pytest.approx(flat(expected), rel=1e-4 if family == "gemma2" else TOLERANCE)
    # each text alone behind it would be so many
    assert sum(computed) < 0.6 * (len(TEXTS) * n_before + n_texts)


def test_a_prompt_that_depends_on_the_text_is_the_one_for_that_text():
    model = tiny_model(dtype=torch.float64)
    nearest = Retrieved(("sky", "snow"), ("Q: What is the sky?\nA: Grey.", "Q: What is snow?\nA: White."), 1)
    assert nearest.before(TEXTS[0]) != nearest.before(TEXTS[1])
    found = measured(model, nearest)
    assert flat(found.per_text) == pytest.approx(flat([behind(model, nearest, t) for t in TEXTS]), rel=TOLERANCE)


def test_a_stack_drifts_by_its_prompt_and_its_shift():
    model = tiny_model(dtype=torch.float64)
    shift = random_shift(model)
    found = measured(model, Stacked((FEW_SHOT, shift)))
    assert flat(found.per_text) == pytest.approx(flat([behind(model, FEW_SHOT, t, shift) for t in TEXTS]), rel=1e-5)


def test_a_prompt_that_leaves_no_room_is_refused_and_one_that_leaves_little_counts_what_fits():
    n = len(ids_of(PLAIN.ahead(FEW_SHOT.before(""))))
    with pytest.raises(BadValue, match="leaves no room for a neutral text"):
        measured(tiny_model("gpt2", context=n), FEW_SHOT)
    model = tiny_model("gpt2", context=n + 3, dtype=torch.float64)
    cut = [tiny_tokenizer().decode(ids_of(text)[1:4]) for text in TEXTS]
    assert [ids_of(text) for text in cut] == [ids_of(text)[:4] for text in TEXTS]
    expected = [behind(model, FEW_SHOT, text) for text in cut]
    assert flat(measured(model, FEW_SHOT).per_text) == pytest.approx(flat(expected), rel=TOLERANCE)


def test_the_tail_is_the_95th_percentile_over_a_text_s_tokens():
    model = tiny_model(dtype=torch.float64)
    shift = random_shift(model)
    found, expected = measured(model, shift), []
    for ids in map(ids_of, TEXTS):
        plain = text_logprobs(model, ids)
        with shifted_from(model, shift, 0):
            edited = text_logprobs(model, ids)
        expected.append(np.quantile((plain.exp() * (plain - edited)).sum(-1)[:-1], 0.95))
    assert list(found.per_text_kl95) == pytest.approx(expected, rel=TOLERANCE)
    assert found.kl95 == pytest.approx(np.mean(expected), rel=TOLERANCE) and found.kl95 > found.kl


def test_stronger_shifts_drift_further():
    model = tiny_model(dtype=torch.float64)
    kls = [float(measured(model, random_shift(model, strength=s)).kl) for s in (0.0, 0.1, 1.0, 10.0)]
    assert kls[0] == 0.0
    assert kls == sorted(kls)
    # near zero, KL grows with the square of the strength
    assert measured(model, random_shift(model, strength=0.01)).kl == pytest.approx(kls[1] / 100, rel=0.1)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma2"])
def test_padding_and_batch_size_do_not_matter(family):
    model = tiny_model(family, dtype=torch.float64)
    shift = random_shift(model)
    alone = measured(model, shift, batch_size=1)
    for batch_size in (2, 3, 100):
        together = measured(model, shift, batch_size=batch_size)
        assert flat(together.per_text) == pytest.approx(flat(alone.per_text), rel=TOLERANCE)


def test_a_tokenizer_without_padding_token_measures_the_same():
    model = tiny_model(dtype=torch.float64)
    shift = random_shift(model)
    without = drift(model, tiny_tokenizer(pad=False), shift, texts=TEXTS)
    assert flat(without.per_text) == pytest.approx(flat(measured(model, shift).per_text), rel=TOLERANCE)


def test_every_text_weighs_the_same_and_intervals_are_over_texts():
    model = tiny_model(dtype=torch.float64)
    result = measured(model)
    assert result.ce.n == len(TEXTS)
    assert float(result.ce) == pytest.approx(sum(ce for ce, _ in result.per_text) / len(TEXTS), rel=1e-12)
    assert min(ce for ce, _ in result.per_text) <= result.ce.low < float(result.ce) < result.ce.high


def test_float32_models_are_measured_to_float32_accuracy():
    model, exact = tiny_model(), tiny_model(dtype=torch.float64)
    shift = random_shift(model)
    assert flat(measured(model, shift).per_text) == pytest.approx(flat(by_hand(exact, shift)), rel=1e-4)


def test_half_precision_models_are_normalised_in_float32():
    model = tiny_model(dtype=torch.bfloat16)
    ids = ids_of(TEXTS[1])
    logprobs = text_logprobs(model, ids)  # the same bfloat16 logits, in float64 from there
    assert float(measured(model, texts=TEXTS[1:2]).ce) == pytest.approx(hand_ce(logprobs, ids), rel=1e-6)
    # control: a log-softmax in bfloat16 is off by far more
    assert hand_ce(logprobs.bfloat16(), ids) != pytest.approx(hand_ce(logprobs, ids), rel=1e-4)


def test_only_the_first_max_tokens_of_each_text_count():
    model = tiny_model(dtype=torch.float64)
    shift = random_shift(model)
    result = measured(model, shift, max_tokens=4)
    for (ce, kl), text in zip(result.per_text, TEXTS, strict=True):
        ids = ids_of(text)[:4]
        plain = text_logprobs(model, ids)
        with shifted_from(model, shift, 0):
            edited = text_logprobs(model, ids)
        assert (ce, kl) == pytest.approx((hand_ce(edited, ids), hand_kl(plain, edited)), rel=TOLERANCE)


def test_texts_are_cut_to_a_model_of_a_short_context():
    model = tiny_model("gpt2", context=12, dtype=torch.float64)
    assert max(len(ids_of(t)) for t in TEXTS) > 12
    assert measured(model).per_text == measured(model, max_tokens=12).per_text


def test_texts_of_one_token_are_left_out():
    model = tiny_model(dtype=torch.float64)
    assert len(ids_of("")) == 1
    with_empty = measured(model, texts=["", TEXTS[0], "", *TEXTS[1:]])
    assert flat(with_empty.per_text) == pytest.approx(flat(measured(model).per_text), rel=1e-12)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_to_measure_on_is_refused(texts):
    with pytest.raises(BadDataset, match="no neutral text of two tokens or more"):
        measured(tiny_model(), texts=texts)


def test_one_text_is_not_taken_for_a_list_of_its_characters():
    with pytest.raises(BadDataset, match="several texts, got a single one"):
        measured(tiny_model(), texts=TEXTS[3])


@pytest.mark.parametrize("max_tokens", [1, 0, -1])
def test_fewer_tokens_than_two_are_refused(max_tokens):
    with pytest.raises(BadValue, match=f"max_tokens must be at least 2.*got {max_tokens}"):
        measured(tiny_model(), max_tokens=max_tokens)


def test_the_default_texts_are_the_neutral_ones(monkeypatch):
    module, model = sys.modules[drift.__module__], tiny_model()
    assert module.neutral_texts is neutral_texts
    # fewer of them, since type checks make their composition slow
    monkeypatch.setattr(module, "neutral_texts", lambda: neutral_texts(5))
    default = drift(model, tiny_tokenizer())
    assert default == measured(model, texts=neutral_texts(5), max_tokens=128)
    # control: fewer tokens of them give other numbers
    assert default != measured(model, texts=neutral_texts(5), max_tokens=127)


def test_neutral_texts_fill_the_default_length():
    # so that 128 tokens of each are measured, even by a tokenizer that knows most words whole
    assert all(len(text.split()) >= 80 for text in neutral_texts(20))


def test_the_record_is_json():
    model = tiny_model()
    result = measured(model, random_shift(model))
    record = json.loads(json.dumps(result.as_dict()))
    assert record["kl"] == result.kl.as_dict()
    assert record["ce"]["mean"] == float(result.ce)
    assert record["per_text"] == [list(pair) for pair in result.per_text]


def test_an_edit_is_put_in_place_once_for_as_many_batches_as_may_be_held(monkeypatch):
    model, entered = tiny_model("llama"), []

    class Counting(NoEdit):
        unchanged_layers = 0

        def applied(self, model: Any, positions: Any = "generated") -> Any:
            entered.append(positions)
            return super().applied(model, positions)

    texts = ["The sky is blue.", "Snow.", "It rained all night on the old road.", "A cart went by."]
    drifts = sys.modules[drift.__module__].drifts
    several = drifts(model, tiny_tokenizer(), [Counting()], texts=texts, batch_size=1)
    assert entered == ["all"]
    monkeypatch.setattr(divergence, "free_bytes", lambda _: 0)
    assert drifts(model, tiny_tokenizer(), [Counting()], texts=texts, batch_size=1) == several
    assert len(entered) == 1 + 4
    assert drifts(model, tiny_tokenizer(), [], texts=texts) == ()
