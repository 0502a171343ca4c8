"""Where a subject ends, what the MLP's last map gets there, and the second moment of it over text."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.observing import random_state, state_of
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.errors import BadDataset, BadValue, Incompatible, UnsupportedModel
from trimtab.knowledge.keys import Lookup, contexts, seen_at, subject_last
from trimtab.knowledge.moments import KeyStatistics, key_statistics, own_statistics
from trimtab.models.mlp import find_mlp_outputs
from trimtab.models.weights import changed_weights

TEXTS = ("The sky is blue and wide today.", "Coal.", "What is the colour of the sea? It is grey.")


@cache
def sentencepiece() -> Any:
    """Return a tokenizer of whole words that writes spaces into its tokens, without a begin token."""
    words = ["▁The", "▁capital", "▁of", "▁Chile", "▁is", "▁Peru", "▁and", "▁not", ".", ",", "'", "s", "▁São", "▁Tomé"]
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **{w: i for i, w in enumerate(words, 1)}}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split("'", "isolated"), pre_tokenizers.Split(",", "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer, sentencepiece], ids=["bytes with <bos>", "words without"])
@pytest.mark.parametrize(
    "text, start, subject",
    [
        ("Chile is not Peru", 0, "Chile"),
        ("The capital of Chile is", 15, "Chile"),
        ("The capital of Chile", 15, "Chile"),
        ("Chile, not Peru", 0, "Chile"),
        ("Chile's capital is", 0, "Chile"),
        ("Peru and Peru is", 9, "Peru"),
        ("Peru and Peru is", 0, "Peru"),
        ("The capital of São Tomé is", 15, "São Tomé"),
    ],
)
def test_the_last_token_of_a_subject_is_the_one_that_holds_its_last_character(tokenizer, text, start, subject):
    end = start + len(subject)
    assert text[start:end] == subject
    found = subject_last(tokenizer(), text, (start, end))
    made = tokenizer()(text, return_offsets_mapping=True)
    assert found.ids == made["input_ids"]
    a, b = made["offset_mapping"][found.place]
    assert a < end <= b
    # what follows stands behind it
    assert all(offset[0] >= end for offset in made["offset_mapping"][found.place + 1 :])
    # and what precedes it before
    _, last = made["offset_mapping"][found.first]
    assert last > start and found.first <= found.place
    assert all(offset[1] <= start for offset in made["offset_mapping"][: found.first])


def test_a_character_of_several_tokens_ends_with_its_last_one():
    text = "日本 is"
    found = subject_last(tiny_tokenizer(), text, (0, 2))
    assert tiny_tokenizer().decode(found.ids[1 : found.place + 1]) == "日本"


def test_a_subject_without_an_end_of_its_own_and_a_slow_tokenizer_are_refused():
    with pytest.raises(BadValue, match="ends within the token 'colour'"):
        merged = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "colour": 1}, unk_token="<unk>")),
            unk_token="<unk>",
        )
        subject_last(merged, "colour", (0, 3))

    class Slow:
        is_fast = False

    with pytest.raises(BadValue, match="slow"):
        subject_last(Slow(), "colour", (0, 3))


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox", "gemma2"])
def test_the_maps_are_found_and_say_whether_a_norm_follows(family):
    model = tiny_model(family)
    before = state_of(model)
    sites = find_mlp_outputs(model)
    assert [s.layer for s in sites] == [0, 1, 2]
    assert all(s.weight.endswith(("down_proj.weight", "c_proj.weight", "dense_4h_to_h.weight")) for s in sites)
    assert all("attn" not in s.weight and "attention" not in s.weight for s in sites)
    assert {(s.d_in, s.d_out) for s in sites} == {(192 if family == "gpt2" else 64, 48)}
    assert {s.additive for s in sites} == {family != "gemma2"}
    assert state_of(model) == before


def test_routed_experts_and_a_map_that_layers_share_are_refused():
    from transformers import AutoModelForCausalLM

    from tests.families import FAMILIES

    experts = AutoModelForCausalLM.from_config(FAMILIES["Qwen3-MoE"].config())
    with pytest.raises(UnsupportedModel, match="several experts"):
        find_mlp_outputs(experts)
    shared = tiny_model("llama")
    shared.model.layers[2].mlp = shared.model.layers[1].mlp
    with pytest.raises(UnsupportedModel, match="several layers"):
        find_mlp_outputs(shared)


def by_hand(model: Any, layer: int, ids: list[int]) -> torch.Tensor:
    """Return the keys of one text, seq d_in, by a bare hook."""
    kept = []
    handle = model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(lambda m, a: kept.append(a[0][0]))
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    handle.remove()
    return kept[0]


def test_keys_are_those_of_each_text_alone():
    model, site = tiny_model(dtype=torch.float64), find_mlp_outputs(tiny_model(dtype=torch.float64))[1]
    site = find_mlp_outputs(model)[1]
    texts = [
        Lookup(tiny_tokenizer()(text)["input_ids"], place, place) for text, place in zip(TEXTS, (3, 1, 7), strict=True)
    ]
    found = seen_at(model, tiny_tokenizer(), texts, [site.module], [site.module])
    for text, key, out in zip(texts, found.inputs[site.module], found.outputs[site.module], strict=True):
        expected = by_hand(model, 1, text.ids)[text.place]
        torch.testing.assert_close(key, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(out, site.module(expected), rtol=0, atol=1e-10)


def test_statistics_are_a_plain_mean_over_positions_and_halves_make_the_whole():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    sites = find_mlp_outputs(model)
    found = key_statistics(model, tokenizer, TEXTS, sites[1:])
    keys = torch.cat([by_hand(model, 1, tokenizer(text)["input_ids"])[1:] for text in TEXTS])
    assert found.n_tokens == len(keys)
    torch.testing.assert_close(found.moments[1], keys.T @ keys / len(keys), rtol=0, atol=1e-10)
    halves = key_statistics(model, tokenizer, TEXTS[:1], sites[1:2]) + key_statistics(
        model, tokenizer, TEXTS[1:], sites[1:2]
    )
    torch.testing.assert_close(halves.moments[1], found.moments[1], rtol=0, atol=1e-10)
    assert halves.n_tokens == found.n_tokens
    with pytest.raises(BadValue, match="too few for keys of 64"):
        found.conditioned(1, 1e-4)
    with pytest.raises(BadDataset, match="two tokens"):
        key_statistics(model, tokenizer, (), sites)


def test_the_ridge_is_a_share_of_the_mean_eigenvalue():
    moment = torch.diag(torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    ridged = KeyStatistics({4: moment}, 30).conditioned(4, 0.5)
    torch.testing.assert_close(ridged, torch.diag(torch.tensor([2.5, 3.5, 7.5], dtype=torch.float64)))


def test_statistics_are_kept_by_model_and_layer_and_are_the_unedited_model_s(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    sites, how = find_mlp_outputs(model), {"n_tokens": 80, "seed": 3}
    draws = random_state()
    first = own_statistics(model, tokenizer, sites[1:2], cache=tmp_path, **how)
    assert random_state() == draws
    assert len(list(tmp_path.iterdir())) == 1
    again = own_statistics(model, tokenizer, sites[1:3], cache=tmp_path, **how)
    assert len(list(tmp_path.iterdir())) == 2
    torch.testing.assert_close(again.moments[1], first.moments[1], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(
        own_statistics(model, tokenizer, sites[1:2], cache=None, n_tokens=80, seed=4).moments[1], first.moments[1]
    )
    own_statistics(tiny_model(seed=1), tokenizer, sites[1:2], cache=tmp_path, **how)
    assert len(list(tmp_path.iterdir())) == 3
    with changed_weights(model, {sites[0].weight: torch.ones(48, 64)}):
        held = state_of(model)
        changed = own_statistics(model, tokenizer, sites[1:2], cache=None, **how)
        assert state_of(model) == held != state_of(tiny_model())
    assert torch.equal(changed.moments[1], first.moments[1])
    assert len(list(tmp_path.iterdir())) == 3


def test_statistics_come_back_from_disk_and_others_are_refused(tmp_path):
    model = tiny_model()
    found = key_statistics(model, tiny_tokenizer(), TEXTS, find_mlp_outputs(model))
    found.save(tmp_path / "c")
    loaded = KeyStatistics.load(tmp_path / "c")
    assert (loaded.n_tokens, loaded.texts) == (found.n_tokens, found.texts)
    torch.testing.assert_close(loaded.moments[2], found.moments[2], rtol=1e-6, atol=1e-6)
    with pytest.raises(Incompatible, match="expected"):
        KeyStatistics.load(tmp_path)


def test_contexts_are_the_model_s_own_and_a_seed_s():
    model = tiny_model()
    before, draws = state_of(model), random_state()
    found = contexts(model, tiny_tokenizer(), 3, 0)
    assert found[0] == "" and len(found) == 4
    assert all(text.endswith(". ") and "\n" not in text for text in found[1:])
    assert contexts(model, tiny_tokenizer(), 3, 0) == found != contexts(model, tiny_tokenizer(), 3, 1)
    assert (state_of(model), random_state()) == (before, draws)
