"""Prompt and prefix tuning against tokens that are really there, and against Hugging Face PEFT."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.by_hand import padded, prompt_ids
from tests.observing import generated
from tests.tiny import tiny_model
from tests.tune.test_own_methods import attached, logits, shake
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.hooks import on_arguments
from trimtab.peft.methods.prefix_tuning import PrefixTuning, flattened, layered
from trimtab.peft.methods.prompt_tuning import PROMPT, PromptTuning
from trimtab.peft.parts.virtual_tokens import _extended, keys_and_values
from trimtab.peft.tunable import HubAdapter

FAMILIES = ("llama-gqa", "llama-odd-head-dim", "gpt2", "gpt-neox", "gemma2", "qwen3")
every_family = pytest.mark.parametrize("family", FAMILIES)
CLOSE = {"rtol": 0.0, "atol": 5e-5}
N = 4


def real_tokens() -> Tensor:
    return prompt_ids(N, seed=11)


def prompt_of(model: Any, ids: Tensor) -> dict[str, Tensor]:
    return {PROMPT: model.get_input_embeddings()(ids[0]).detach()}


@every_family
def test_a_prompt_of_real_embeddings_is_those_tokens_before_the_text(family):
    model, text = tiny_model(family), prompt_ids(6)
    expected = logits(model, torch.cat([real_tokens(), text], dim=1))[:, N:]
    with attached(PromptTuning(N), model) as parts:
        parts.load(prompt_of(model, real_tokens()))
        torch.testing.assert_close(logits(parts.model, text), expected, **CLOSE)
    assert float((logits(model, text) - expected).abs().max()) > 0.1  # the control: the tokens matter


@pytest.mark.parametrize("positions", ["counted by the caller", "left to the method"])
@pytest.mark.parametrize("side", ["left", "right"])
@every_family
def test_padding_stands_outside_prompt_and_text(family, side, positions):
    model, rows = tiny_model(family), [prompt_ids(3), prompt_ids(6, seed=1)]
    ids, mask = padded(rows, side)
    given = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if positions == "counted by the caller" else {}
    with attached(PromptTuning(N), model) as parts:
        parts.load(prompt_of(model, real_tokens()))
        together = logits(parts.model, ids, attention_mask=mask, **given)
    for i, row in enumerate(rows):
        alone = logits(model, torch.cat([real_tokens(), row], dim=1))[0, N:]
        torch.testing.assert_close(together[i][mask[i].bool()], alone, **CLOSE)


@every_family
def test_a_plain_prefix_starts_as_the_prompt_of_the_same_seed(family):
    model = tiny_model(family)
    with attached(PromptTuning(N), model, seed=3) as parts:
        prompted = logits(parts.model)
    with attached(PrefixTuning(N), model, seed=3) as parts:
        torch.testing.assert_close(logits(parts.model), prompted, **CLOSE)


@pytest.mark.parametrize("method", [PromptTuning(N), PrefixTuning(N)], ids=["prompt", "prefix"])
@pytest.mark.parametrize(("family", "attention"), [("gpt2", "sdpa"), ("llama-gqa", "sdpa"), ("gemma2", "eager")])
def test_eager_attention_and_caches_of_fixed_size_give_the_same(family, attention, method):
    model, rows = tiny_model(family), [prompt_ids(3), prompt_ids(6, seed=1)]
    model.generation_config.eos_token_id = None
    ids, mask = padded(rows, "left")
    model.set_attn_implementation(attention)
    with attached(method, model) as parts:
        _, expected = generated(parts.model, ids, mask)
    model.set_attn_implementation("eager")
    model.generation_config.cache_implementation = "static"
    model.generation_config.disable_compile = True
    with attached(method, model) as parts:
        torch.testing.assert_close(generated(parts.model, ids, mask)[1], expected, **CLOSE)


@pytest.mark.parametrize("name", ["prompt", "prefix", "prefix through a network"])
@pytest.mark.parametrize("family", ["llama-gqa", "llama-odd-head-dim", "gpt2"])
def test_hugging_face_peft_reads_what_is_written(family, name, tmp_path):
    import peft as hf_peft

    method: Any = {
        "prompt": PromptTuning(N),
        "prefix": PrefixTuning(N),
        "prefix through a network": PrefixTuning(N, reparameterised=True, d_hidden=16),
    }[name]
    model, text = tiny_model(family), prompt_ids(6)
    with attached(method, model) as parts:
        shake(parts)
        ours = logits(parts.model, text)
        adapter = method.to_hub(parts.tensors(), "base/model")
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.config))
    save_file({k: t.contiguous() for k, t in adapter.tensors.items()}, tmp_path / "adapter_model.safetensors")
    theirs = hf_peft.PeftModel.from_pretrained(tiny_model(family), str(tmp_path)).eval()
    with torch.no_grad():
        out = theirs(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, -text.shape[1] :]
    torch.testing.assert_close(ours, out, **CLOSE)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_what_hugging_face_peft_writes_is_read(family, kind, tmp_path):
    import peft as hf_peft

    config = {"prompt": hf_peft.PromptTuningConfig, "prefix": hf_peft.PrefixTuningConfig}[kind]
    method: Any = {"prompt": PromptTuning(N), "prefix": PrefixTuning(N)}[kind]
    text = prompt_ids(6)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = hf_peft.get_peft_model(tiny_model(family), config(task_type="CAUSAL_LM", num_virtual_tokens=N)).eval()
    theirs.save_pretrained(str(tmp_path))
    with torch.no_grad():
        expected = theirs(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, -text.shape[1] :]
    stored = HubAdapter(
        json.loads((tmp_path / "adapter_config.json").read_text()),
        load_file(tmp_path / "adapter_model.safetensors"),
    )
    with attached(method, tiny_model(family)) as parts:
        parts.load(method.from_hub(stored))
        torch.testing.assert_close(logits(parts.model, text), expected, **CLOSE)


def test_training_through_a_network_goes_on_from_its_checkpoint_to_the_bit():
    method, model = PrefixTuning(N, reparameterised=True, d_hidden=16), tiny_model("llama-gqa")

    def steps(parts: Any, n: int) -> None:
        for _ in range(n):
            loss = parts.model(input_ids=prompt_ids(8), labels=prompt_ids(8), use_cache=False).loss
            for p in parts.trainable().values():
                p.grad = None
            loss.backward()
            with torch.no_grad():
                for p in parts.trainable().values():
                    p.sub_(0.1 * p.grad)

    with attached(method, model) as parts:
        steps(parts, 2)
        checkpoint = {k: t.clone() for k, t in parts.resume_tensors().items()}
        finished = {k: t.clone() for k, t in parts.tensors().items()}
        steps(parts, 2)
        whole = {k: t.clone() for k, t in parts.tensors().items()}
    assert set(finished) == {PROMPT}
    assert set(checkpoint) > {"tokens", "hidden.weight", "out.weight"}
    with attached(method, model, seed=9) as parts:
        parts.load(finished)  # a finished prefix may stand there before: the checkpoint takes its place
        parts.load(checkpoint)
        steps(parts, 2)
        assert torch.equal(parts.tensors()[PROMPT], whole[PROMPT])


def test_flattening_is_undone_by_layering():
    model = tiny_model("llama-gqa")
    with torch.no_grad():
        layers = keys_and_values(model, model.get_input_embeddings()(real_tokens()[0]))
    assert len(layers) == 3
    assert layers[0].keys.shape == (1, 2, N, 12)
    for one, other in zip(layers, layered(flattened(layers), 2, 12), strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


def test_more_positions_than_a_table_has_are_refused_and_rotary_ones_are_not():
    text = prompt_ids(15)
    with attached(PromptTuning(N), tiny_model("gpt2", context=18)) as parts, pytest.raises(BadValue, match="exceed"):
        logits(parts.model, text)
    with attached(PromptTuning(N), tiny_model("gpt2", context=19)) as parts:
        logits(parts.model, text)
    with attached(PromptTuning(N), tiny_model("llama", context=18)) as parts:
        logits(parts.model, text)


@pytest.mark.parametrize("method", [PromptTuning(18), PrefixTuning(18)], ids=["prompt", "prefix"])
def test_virtual_tokens_that_leave_no_position_for_text_are_refused_at_once(method):
    with pytest.raises(BadValue, match="18 virtual tokens leave no room for text in the model's 18 positions"):
        method.attach(tiny_model("gpt2", context=18), seed=0)
    method.attach(tiny_model("llama", context=18), seed=0).detach()


@pytest.mark.usefixtures("unchecked")
def test_attention_without_a_mask_for_each_query_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match="attn_implementation='sdpa' or 'eager'"):
        _extended(torch.ones(2, 5), 3, 0, 5, torch.device("cpu"))


def test_a_model_without_attention_in_every_layer_is_refused():
    from transformers import AutoModelForCausalLM, Lfm2Config

    config = Lfm2Config(
        vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.warns(UserWarning), pytest.raises(UnsupportedModel, match="one size in every layer; 2 of 3"):
        PromptTuning(N).attach(model, seed=0)


def test_virtual_tokens_are_computed_once_a_sequence_when_generating():
    model = tiny_model("llama-gqa")
    with attached(PromptTuning(N), model) as parts:
        rows: list[int] = []
        model.model.layers[0].register_forward_pre_hook(lambda m, args: rows.append(args[0].shape[1]))
        generated(parts.model, prompt_ids(6), n=4)
    assert rows == [N, 6, 1, 1, 1]


def test_arguments_are_read_and_replaced_by_name_whether_given_by_place_or_by_name():
    class Sum(torch.nn.Module):
        def forward(self, x: int, y: int = 0, **more: int) -> tuple[int, int, dict[str, int]]:
            return x, y, more

    module, seen = Sum(), []

    def change(given: dict[str, Any]) -> dict[str, Any] | None:
        seen.append(given)
        return {"y": 7, "z": 8} if given["x"] else None

    with on_arguments([(module, change)]):
        assert module(1, 2) == (1, 7, {"z": 8})
        assert module(x=1, more=3) == (1, 7, {"more": 3, "z": 8})
        assert module(0, y=2) == (0, 2, {})
    assert seen == [{"x": 1, "y": 2}, {"x": 1, "more": 3}, {"x": 0, "y": 2}]
    assert module(1, 2) == (1, 2, {})
