"""Tuning on 4-bit weights: right with evaluations in between, against a dequantised reference."""

from __future__ import annotations

import peft as hf_peft
import pytest
import torch

from tests.observing import state_of
from tests.tiny import tiny_questions, tiny_tokenizer
from tests.tuning import METHODS, ON_FOUR_BITS, QUICK, default_of, fitted, logits, quantised, some, some_tokens
from trimtab import peft
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadValue
from trimtab.evaluate import multiple_choice
from trimtab.models.plain import dequantized


def _id(parameter):
    return parameter if isinstance(parameter, str) else parameter.values[0]


def steps(attached, *, evaluate, n=4):
    """Train n steps with a forward in evaluation mode after each; return losses and the last gradients."""
    optimizer = torch.optim.AdamW(attached.trainable().values(), lr=1e-2)
    ids, losses = some_tokens(4, 12), []
    for _ in range(n):
        attached.model.train()
        out = attached.model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if evaluate:
            attached.model.eval()
            logits(attached.model, some_tokens())
    return losses, {k: p.grad.clone() for k, p in attached.trainable().items()}


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
@pytest.mark.parametrize("kind", ["nf4-dq", "fp4"])
def test_train_eval_train_equals_a_dequantised_reference(family, kind, tmp_path):
    model = quantised(tmp_path / "m", family, kind)
    reference = dequantized(model, torch.float32)
    for part in (*model.modules(), *reference.modules()):
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    results = []
    for each in (model, reference):
        attached = METHODS["lora"].attach(each, seed=0)
        results.append(steps(attached, evaluate=True))
        attached.detach()
    (losses, gradients), (expected, expected_gradients) = results
    assert losses == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
    for name, gradient in expected_gradients.items():
        assert torch.allclose(gradients[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    "name", [p for p in default_of("lora qv", "ia3", "houlsby", "prefix") if _id(p) in ON_FOUR_BITS]
)
def test_every_method_that_says_so_trains_on_4_bits_and_leaves_them_alone(name, tmp_path):
    model = quantised(tmp_path / "m", "llama-gqa")
    before, plain = state_of(model), logits(model)
    edit = fitted(name, model, max_steps=8, batch_size=12, learning_rate=max(METHODS[name].learning_rate, 3e-3))
    assert edit.record["losses"][-1] < edit.record["losses"][0]
    assert edit.record["model"]["quantization"] == "nf4-dq"
    assert state_of(model) == before
    assert torch.equal(logits(model), plain)
    with edit.applied(model) as edited:
        assert not torch.equal(logits(edited), plain)


def test_measuring_between_runs_changes_no_result(tmp_path):
    model = quantised(tmp_path / "m", "llama-gqa")
    first = fitted("lora", model)
    multiple_choice(model, tiny_tokenizer(), tiny_questions(3), first)
    multiple_choice(model, tiny_tokenizer(), tiny_questions(3), NoEdit())
    again = fitted("lora", model)
    assert all(torch.equal(first.tensors[k], again.tensors[k]) for k in first.tensors)
    assert first.record["losses"] == again.record["losses"]


def test_parts_stay_in_single_precision_on_half_precision_weights_and_the_base_is_not_cast_up(tmp_path):
    model = quantised(tmp_path / "m", "llama-gqa", dtype="bfloat16")
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    attached = METHODS["lora"].attach(model, seed=0)
    assert {p.dtype for p in attached.trainable().values()} == {torch.float32}
    kept = {
        n.removeprefix("base_model.model.").replace(".base_layer", ""): p.dtype
        for n, p in attached.model.named_parameters()
    }
    assert all(kept[name] == dtype for name, dtype in dtypes.items())
    attached.detach()
    edit = fitted("lora", model)
    assert edit.record["plan"]["dtypes"] == ("bfloat16", "float32")


@pytest.mark.parametrize("optimizer", some(["paged_adamw", "adamw_8bit", "paged_adamw_8bit"], "paged_adamw_8bit"))
def test_bitsandbytes_optimisers_train(optimizer, tmp_path):
    edit = fitted("lora", quantised(tmp_path / "m", "llama-gqa"), optimizer=optimizer, max_steps=8, batch_size=12)
    assert edit.record["losses"][-1] < edit.record["losses"][0]
    assert QUICK.optimizer == "adamw"


ON_QUANTISED = {
    "BOFT": (hf_peft.BOFTConfig, {"target_modules": ["q_proj"]}),
    "FOURIERFT": (hf_peft.FourierFTConfig, {"target_modules": ["q_proj"]}),
    "GRALORA": (hf_peft.GraloraConfig, {"target_modules": ["q_proj"]}),
    "HIRA": (hf_peft.HiraConfig, {"target_modules": ["q_proj"]}),
    "LN_TUNING": (hf_peft.LNTuningConfig, {"target_modules": ["input_layernorm"]}),
    "MISS": (hf_peft.MissConfig, {"target_modules": ["q_proj"]}),
    "OFT": (hf_peft.OFTConfig, {"target_modules": ["q_proj"]}),
    "PVERA": (hf_peft.PveraConfig, {"target_modules": ["q_proj"]}),
    "RANDLORA": (hf_peft.RandLoraConfig, {"target_modules": ["q_proj"]}),
    "ROAD": (hf_peft.RoadConfig, {"target_modules": ["q_proj"]}),
    "SHIRA": (hf_peft.ShiraConfig, {"target_modules": ["q_proj"]}),
    "VERA": (hf_peft.VeraConfig, {"target_modules": ["q_proj"]}),
    "WAVEFT": (hf_peft.WaveFTConfig, {"target_modules": ["q_proj"]}),
}


@pytest.fixture(scope="module")
def by_kind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    return {kind: quantised(folder / kind, "llama", kind) for kind in ("nf4", "int8")}


@pytest.mark.parametrize("kind", some(list(ON_QUANTISED), "OFT", "ROAD"))
def test_configurations_that_say_so_compute_on_4_bits_what_they_do_on_dequantised_weights(kind, by_kind):
    config, options = ON_QUANTISED[kind]
    method = peft.Adapter(config(task_type="CAUSAL_LM", **options), recipe=QUICK)
    edit = method.fit(by_kind["nf4"], tiny_tokenizer(), tiny_questions(6))
    with edit.applied(by_kind["nf4"]) as tuned:
        expected = logits(tuned)
    merged = logits(edit.merged(dequantized(by_kind["nf4"])))
    assert float((merged - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("bits", ["nf4", "int8"])
@pytest.mark.parametrize("config", [hf_peft.HRAConfig, hf_peft.LoHaConfig, hf_peft.DeftConfig])
def test_configurations_that_read_quantised_bytes_as_numbers_are_refused(config, bits, by_kind):
    model = by_kind[bits]
    before = state_of(model)
    words = "4-bit weights" if bits == "nf4" else r"quantised weights \(.* is torch.int8\)"
    with pytest.raises(BadValue, match=f"cannot run on {words}: it works on the weights themselves"):
        peft.Adapter(config(target_modules=["q_proj"])).attach(model, seed=0)
    assert state_of(model) == before
