"""score_answers against plain forwards over one text at a time."""

from __future__ import annotations

import pytest
import torch

from tests.measuring import answer_logprob, random_shift, shifted_from
from tests.tiny import FAMILIES, tiny_model, tiny_questions, tiny_tokenizer
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.engine import sharing as prefix_mode
from trimtab.engine.score import score_answers, token_logprobs
from trimtab.errors import BadValue
from trimtab.evaluate import drift, generate_answers
from trimtab.models.tokens import AnswerTokens, tokenize_answer
from trimtab.protocols import TokenMask

TOLERANCE = 1e-5  # on sums of about -100; float64 models still normalise in float32 inside


@pytest.fixture(autouse=True)
def tried_for_any_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_mode, "TRYING", {"cpu": 1, "cuda": 1})


def answers() -> list[AnswerTokens]:
    """Return answers of different lengths to prompts of different lengths, so that every batch is ragged."""
    tokenizer = tiny_tokenizer()
    prompts = [f"Q: {q.question}\nA:" for q in tiny_questions(3)] + ["Q: Why?\nA:"]
    texts = [" Yes.", " The sky is blue.", " It is number one of many and no other one."]
    return [tokenize_answer(tokenizer, p + t, len(p) + 1) for p in prompts for t in texts]


def score(model, edit=None, *, items=None, batch_size=5, tokenizer=None):
    scores = score_answers(
        model, tokenizer or tiny_tokenizer(), items or answers(), [edit or NoEdit()], batch_size=batch_size
    )
    return list(scores.logprobs[0])


def one_by_one(model, items=None):
    return [answer_logprob(model, a.ids, a.start, a.end) for a in items or answers()]


def shifted_one_by_one(model, shift, items=None, *, first=None):
    """Return the scores with the shift from each answer's last prompt token on, or from position `first` on."""
    scores = []
    for a in items or answers():
        with shifted_from(model, shift, a.start - 1 if first is None else first):
            scores.append(answer_logprob(model, a.ids, a.start, a.end))
    return scores


def far_apart(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_unedited_scores_equal_one_plain_forward_per_answer(family):
    model = tiny_model(family, dtype=torch.float64)
    assert score(model) == pytest.approx(one_by_one(model), abs=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shift_acts_from_the_last_prompt_token_on_and_leaves_the_prompt_before_it(family):
    model = tiny_model(family, dtype=torch.float64)
    shift = random_shift(model)
    scores = score(model, shift)
    assert scores == pytest.approx(shifted_one_by_one(model, shift), abs=TOLERANCE)
    # controls: the shift matters, and so does where it starts
    assert far_apart(scores, one_by_one(model))
    assert far_apart(scores, shifted_one_by_one(model, shift, first=0))


def test_the_shift_starts_at_the_last_prompt_token_and_not_one_later():
    model = tiny_model(dtype=torch.float64)
    shift = random_shift(model)
    late = []
    for a in answers():
        with shifted_from(model, shift, a.start):
            late.append(answer_logprob(model, a.ids, a.start, a.end))
    assert far_apart(score(model, shift), late)


@pytest.mark.parametrize("edited", [pytest.param(False, marks=pytest.mark.slow), True], ids=["unedited", "shifted"])
@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma2"])
def test_batch_size_is_irrelevant(family, edited):
    model = tiny_model(family, dtype=torch.float64)
    edit = random_shift(model) if edited else NoEdit()
    alone = score(model, edit, batch_size=1)
    for batch_size in (2, 7, 100):
        assert score(model, edit, batch_size=batch_size) == pytest.approx(alone, abs=TOLERANCE)


def test_scores_come_back_in_the_order_of_the_answers():
    model = tiny_model(dtype=torch.float64)
    turned = answers()[::-1]
    assert score(model, items=turned) == pytest.approx(score(model)[::-1], abs=TOLERANCE)
    assert far_apart(score(model), score(model)[::-1])


def test_stacked_shifts_act_together():
    model = tiny_model(dtype=torch.float64)
    a, b = random_shift(model, seed=1), random_shift(model, seed=2, name="other")
    expected = shifted_one_by_one(model, a + b)
    assert score(model, Stacked((a, b))) == pytest.approx(expected, abs=TOLERANCE)


def test_tokens_after_the_answer_do_not_count():
    model = tiny_model(dtype=torch.float64)
    closed = [AnswerTokens([*a.ids, 2, 5, 7], a.start, a.end) for a in answers()]
    assert score(model, items=closed) == pytest.approx(score(model), abs=TOLERANCE)


def test_float32_models_are_scored_to_float32_accuracy():
    exact = one_by_one(tiny_model(dtype=torch.float64))
    assert score(tiny_model()) == pytest.approx(exact, rel=1e-5, abs=1e-4)


def test_half_precision_logits_are_normalised_in_float32():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).mul(8).bfloat16()
    # a place of two targets, and places out of order
    places, targets = torch.tensor([5, 0, 0, 1, 2, 3, 4]), torch.arange(7)
    exact = logits.double().log_softmax(-1)[places, targets]
    got = token_logprobs(logits, places, targets)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    # control: bfloat16 arithmetic is off by far more
    assert (logits.log_softmax(-1)[places, targets].double() - exact).abs().max() > 1e-3


def test_float64_models_keep_float64_scores():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert token_logprobs(logits, torch.tensor([0, 1]), torch.tensor([3, 4])).dtype == torch.float64


def test_the_model_is_left_as_it_was():
    model = tiny_model()
    model.train()
    model.get_decoder().layers[1].eval()
    modes = [m.training for m in model.modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    score(model, random_shift(model))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_an_edit_is_entered_once_for_all_batches(monkeypatch):
    entered = []
    applied = NoEdit.applied
    monkeypatch.setattr(
        NoEdit, "applied", lambda self, model, positions="generated": entered.append(positions) or applied(self, model)
    )
    score(tiny_model(), NoEdit(), batch_size=1)
    assert [type(p) for p in entered] == [TokenMask]


def test_a_tokenizer_without_padding_token_scores_the_same():
    model = tiny_model(dtype=torch.float64)
    without = score(model, batch_size=4, tokenizer=tiny_tokenizer(pad=False))
    assert without == pytest.approx(score(model), abs=TOLERANCE)


def test_log_probabilities_that_are_not_numbers_are_refused():
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")  # behind every head: no activation shows it
    with pytest.raises(BadValue, match="log-probabilities of answers came out as NaN: check the model's weights"):
        score(model)
    with pytest.raises(BadValue, match="CE or KL came out as NaN"):
        drift(model, tiny_tokenizer(), texts=["The sky is blue today."] * 3)
    with pytest.raises(BadValue, match="logits of the next token came out as NaN"):
        generate_answers(model, tiny_tokenizer(), tiny_questions(2), max_new_tokens=3)
