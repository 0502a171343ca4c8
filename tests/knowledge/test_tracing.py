"""Traces against a slow implementation by bare hooks, and against what must come out whatever the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.cases import projections
from tests.observing import random_state, state_of
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.datasets import Fact, FactSet
from trimtab.errors import BadDataset, BadValue, Incompatible, UnsupportedModel
from trimtab.intervals import bootstrap_mean
from trimtab.knowledge import Trace, Tracing, trace
from trimtab.knowledge.keys import subject_last
from trimtab.knowledge.traced import ROLES
from trimtab.models.mlp import find_mlp_outputs

# answers that no one knows: the model's own first token is traced
FACTS = FactSet(
    (
        Fact("snow white", "The colour of {} is it", "blue"),
        Fact("The sun", "{} is", "green"),
        Fact("Q", "{}, the", "green"),
    )
)
QUICK = Tracing(samples=3, window=2)


def decoder_modules(model: Any) -> dict[str, list[Any]]:
    """Return what is restored, layers and attentions by hand."""
    layers = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}.get(model.config.model_type, "model.layers")
    return {
        "layer": list(model.get_submodule(layers)),
        "mlp": [site.module for site in find_mlp_outputs(model)],
        "attention": projections(model),
    }


class Slow:
    """Traces one fact by whole plain forwards, a cell at a time."""

    def __init__(self, model: Any, fact: Fact, noise: torch.Tensor) -> None:
        self.model, self.noise = model, noise
        self.text = subject_last(tiny_tokenizer(), fact.asked, fact.span)
        self.ids = torch.tensor([self.text.ids])
        self.clean: dict[Any, torch.Tensor] = {}
        modules = [m for own in decoder_modules(model).values() for m in own]
        handles = [m.register_forward_hook(self._keep) for m in modules]
        (logits,) = self._logits(1)
        for handle in handles:
            handle.remove()
        self.answer = int(logits.argmax())
        self.p_clean = float(logits.softmax(-1)[self.answer])

    def _keep(self, module: Any, args: Any, out: Any) -> None:
        self.clean[module] = (out[0] if isinstance(out, tuple) else out).detach().clone()

    def _logits(self, n: int) -> torch.Tensor:
        with torch.no_grad():
            return self.model(self.ids.expand(n, -1), use_cache=False).logits[:, -1].double()

    def restored(self, modules: list[Any], tokens: list[int]) -> float:
        """Return the answer's probability in corrupted runs with these states restored, mean over samples."""

        def corrupt(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            out = out.clone()
            out[:, self.text.first : self.text.place + 1] += self.noise
            return out

        def put_back(module: Any, args: Any, out: Any) -> Any:
            first = (out[0] if isinstance(out, tuple) else out).clone()
            first[:, tokens] = self.clean[module][:, tokens]
            return (first, *out[1:]) if isinstance(out, tuple) else first

        handles = [self.model.get_input_embeddings().register_forward_hook(corrupt)]
        handles += [m.register_forward_hook(put_back) for m in modules]
        found = self._logits(len(self.noise)).softmax(-1)[:, self.answer]
        for handle in handles:
            handle.remove()
        return float(found.mean())


def noise_of(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], torch.Tensor]:
    """Return what will hold the noise that traces draw, in units of its spread, by shape."""
    drawn: dict[tuple[int, ...], torch.Tensor] = {}
    plain = torch.randn

    def randn(*args: Any, **given: Any) -> torch.Tensor:
        out = plain(*args, **given)
        if out.ndim == 3:
            drawn[tuple(out.shape)] = out
        return out

    monkeypatch.setattr(torch, "randn", randn)
    return drawn


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox", "gemma2"])
def test_traces_are_those_of_whole_plain_forwards(family, monkeypatch):
    model = tiny_model(family)
    before, draws = state_of(model), random_state()
    drawn = noise_of(monkeypatch)
    found = trace(model, tiny_tokenizer(), FACTS, how=QUICK)
    assert (state_of(model), random_state()) == (before, draws)
    assert not found.skipped and found.layers == (0, 1, 2)
    modules = decoder_modules(model)
    for fact, one in zip(FACTS, found.facts, strict=True):
        text = subject_last(tiny_tokenizer(), fact.asked, fact.span)
        noise = found.record["noise"] * drawn[3, text.place + 1 - text.first, 48]
        slow, every = Slow(model, fact, noise), list(range(len(text.ids)))
        assert one.clean == pytest.approx(slow.p_clean, abs=1e-6)
        assert one.corrupted == pytest.approx(slow.restored([], []), abs=1e-6)
        assert slow.restored(modules["layer"], every) == pytest.approx(one.clean, abs=1e-6)
        assert np.abs(np.array(one.effects["layer"])).max() > 1e-3  # the noise does something
        for kind, own in modules.items():
            for layer in range(3):
                window = own[layer : layer + 1] if kind == "layer" else own[max(0, layer - 1) : layer + 1]
                for i, place in enumerate(range(text.first, len(text.ids))):
                    expected = slow.restored(window, [place]) - one.corrupted
                    assert one.effects[kind][i][layer] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_last_layer_at_the_last_token_restores_all_and_at_others_nothing(family):
    for fact in trace(tiny_model(family), tiny_tokenizer(), FACTS, how=QUICK).facts:
        last = [of_token[-1] for of_token in fact.effects["layer"]]
        assert last[-1] == pytest.approx(fact.clean - fact.corrupted, abs=1e-6)
        assert last[:-1] == pytest.approx([0] * (len(last) - 1), abs=1e-6)


def test_without_noise_nothing_is_corrupted_and_nothing_to_restore():
    for fact in trace(tiny_model(), tiny_tokenizer(), FACTS, how=replace(QUICK, noise=0)).facts:
        assert fact.corrupted == pytest.approx(fact.clean, abs=1e-6)
        assert np.abs(np.array(list(fact.effects.values()))).max() < 1e-6


def test_a_fact_s_trace_is_its_own_and_a_seed_s_and_of_any_batch_size():
    model, one = tiny_model(), FACTS[1:2]
    found = trace(model, tiny_tokenizer(), one, how=QUICK)
    assert trace(model, tiny_tokenizer(), one, how=QUICK).facts == found.facts
    small = trace(model, tiny_tokenizer(), one, how=replace(QUICK, batch_size=1)).facts[0]
    for kind, effects in found.facts[0].effects.items():
        np.testing.assert_allclose(small.effects[kind], effects, atol=1e-6)
    assert trace(model, tiny_tokenizer(), one, how=QUICK, seed=1).facts[0].corrupted != found.facts[0].corrupted
    # every second layer is every second column
    sparse = trace(model, tiny_tokenizer(), one, how=replace(QUICK, every=2))
    assert sparse.layers == (0, 2)
    for kind, effects in found.facts[0].effects.items():
        np.testing.assert_allclose(sparse.facts[0].effects[kind], np.array(effects)[:, ::2], atol=1e-6)


def test_the_spread_of_the_noise_is_that_of_the_subjects_embeddings():
    model, fact = tiny_model(), FACTS[0]
    text = subject_last(tiny_tokenizer(), fact.asked, fact.span)
    rows = model.get_input_embeddings().weight[text.ids[text.first : text.place + 1]].detach()
    found = trace(model, tiny_tokenizer(), fact, how=replace(QUICK, noise=2))
    assert found.record["noise"] == pytest.approx(2 * float(rows.std()), rel=1e-6)


def test_tokens_have_roles_and_means_are_over_the_facts_that_have_them(tmp_path):
    found = trace(tiny_model(), tiny_tokenizer(), FACTS, how=QUICK)
    for fact in found.facts:
        assert fact.roles[-1] == "last token"
        assert fact.roles.count("last subject token") == 1
        assert set(fact.roles) <= set(ROLES)
    (one_token,) = [fact for fact in found.facts if fact.fact.startswith("Q")]
    assert one_token.roles[:2] == ("last subject token", "first token after")
    means = found.estimates("mlp")
    assert means["last token"][0].n == 3 and means["first subject token"][0].n == 2
    column = [fact.effects["mlp"][-1][2] for fact in found.facts]
    assert float(means["last token"][2]) == pytest.approx(np.mean(column))
    assert min(column) <= means["last token"][2].low <= means["last token"][2].high <= max(column)
    assert means["last token"][2].as_dict() == pytest.approx(bootstrap_mean(column).as_dict())
    assert found.to_markdown().count("\n| ") == len(found.cells) + 2
    found.save(tmp_path / "trace")
    assert Trace.load(tmp_path / "trace").facts == found.facts
    assert Trace.load(tmp_path / "trace").skipped == found.skipped
    with pytest.raises(Incompatible):
        Trace.load(tmp_path)
    for some in (found, trace(tiny_model(), tiny_tokenizer(), FACTS[:1], how=QUICK)):
        some.plot().savefig(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 5000


def test_facts_that_the_model_does_not_know_are_skipped_and_none_left_is_refused():
    model, wrong = tiny_model(), replace(FACTS[0], true="zebra")
    found = trace(model, tiny_tokenizer(), FactSet((wrong, *FACTS[1:])), how=QUICK)
    assert len(found.facts) == 2
    assert "not 'zebra'" in found.skipped[wrong.key]
    with pytest.raises(BadDataset, match="none of 1 fact"):
        trace(model, tiny_tokenizer(), wrong, how=QUICK)


def test_what_cannot_be_traced_is_refused_in_one_sentence():
    with pytest.raises(BadDataset, match="takes facts, got QuestionSet"):
        trace(tiny_model(), tiny_tokenizer(), tiny_questions(2))
    for wrong in ({"samples": 0}, {"window": 0}, {"noise": -1}, {"restored": ()}):
        with pytest.raises(BadValue):
            Tracing(**wrong)
    found = trace(tiny_model(), tiny_tokenizer(), FACTS[1], how=replace(QUICK, restored=("layer",)))
    with pytest.raises(BadValue, match="was not restored"):
        found.by_role("mlp")


def test_experts_have_no_mlp_to_restore_and_their_layers_can_be():
    from transformers import AutoModelForCausalLM

    from tests.families import FAMILIES

    model = AutoModelForCausalLM.from_config(FAMILIES["Qwen3-MoE"].config()).eval()
    with pytest.raises(UnsupportedModel, match="experts"):
        trace(model, tiny_tokenizer(), FACTS[1], how=QUICK)
    found = trace(model, tiny_tokenizer(), FACTS[1], how=replace(QUICK, restored=("layer", "attention")))
    assert set(found.facts[0].effects) == {"layer", "attention"}
