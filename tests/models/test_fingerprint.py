"""Which checkpoint a result was made on, and which models it may be used on."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace
from typing import Any

import peft as hf_peft
import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from tests.tiny import COMMON, FAMILIES, tiny_model
from trimtab.errors import Incompatible
from trimtab.models.identity import fingerprint, require_same_model


def accept(made_on: Any, model: Any) -> list[str]:
    """Return the warnings with which the model is taken for the one that the result was made on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        require_same_model(made_on, model, "the shift 'ITI'")
    return [str(w.message) for w in caught]


def llama(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**COMMON, **changes}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_itself_without_a_warning_also_after_json(family: str) -> None:
    model = tiny_model(family)
    made_on = fingerprint(model)
    assert json.loads(json.dumps(made_on, allow_nan=False)) == made_on
    assert accept(json.loads(json.dumps(made_on)), tiny_model(family)) == []


def test_it_names_the_models_geometry_and_dtype() -> None:
    found = fingerprint(tiny_model("gpt2", dtype=torch.bfloat16))
    assert found["geometry"] == {"model_type": "gpt2", "n_layers": 3, "n_heads": 4, "d_model": 48}
    assert (found["dtype"], found["quantization"], found["adapter"]) == ("bfloat16", None, [])
    assert len(found["sample"]) == len(list(tiny_model("gpt2").named_parameters()))


@pytest.mark.parametrize("here", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("there", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_same_checkpoint_in_another_dtype_is_taken_with_a_warning(
    family: str, there: torch.dtype, here: torch.dtype
) -> None:
    heard = accept(fingerprint(tiny_model(family, dtype=there)), tiny_model(family, dtype=here))
    a, b = (str(d).removeprefix("torch.") for d in (there, here))
    assert heard == ([] if there == here else [f"the shift 'ITI' was made with dtype {a}, the model has {b}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_seed_is_another_checkpoint(family: str, dtype: torch.dtype) -> None:
    with pytest.raises(Incompatible, match="the shift 'ITI' was made for another checkpoint of this architecture"):
        accept(fingerprint(tiny_model(family)), tiny_model(family, seed=1, dtype=dtype))


def test_a_slightly_trained_checkpoint_is_another_one() -> None:
    model = tiny_model("llama")
    made_on = fingerprint(model)
    with torch.no_grad():
        model.model.embed_tokens.weight *= 1.02
    with pytest.raises(Incompatible, match="another checkpoint"):
        accept(made_on, model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 2}, "n_layers 3 against 2;"),
        ({"num_attention_heads": 6}, "n_heads 4 against 6;"),
        ({"hidden_size": 96}, "d_model 48 against 96;"),
        ({"num_hidden_layers": 1, "num_attention_heads": 2}, "n_layers 3 against 1, n_heads 4 against 2;"),
    ],
)
def test_another_geometry_is_refused_with_the_numbers(changes: dict[str, int], words: str) -> None:
    with pytest.raises(Incompatible, match=f"made for another model: {words} fit it on this one"):
        accept(fingerprint(llama()), llama(**changes))


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(Incompatible, match="model_type llama against gpt2;"):
        accept(fingerprint(tiny_model("llama")), tiny_model("gpt2"))


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (
            "organisation/first",
            "organisation/second",
            r"architecture \(organisation/first, here organisation/second\): ",
        ),
        ("organisation/first", "", r"architecture \(organisation/first, here unnamed\): "),
        ("", "organisation/second", r"architecture \(unnamed, here organisation/second\): "),
        ("", "", "architecture: "),
    ],
)
def test_the_names_of_the_checkpoints_stand_in_the_refusal_if_they_have_any(theirs: str, ours: str, words: str) -> None:
    made_on = {**fingerprint(tiny_model("llama")), "name": theirs}
    other = tiny_model("llama", seed=1)
    other.config.name_or_path = ours
    with pytest.raises(Incompatible, match=words):
        accept(made_on, other)


def test_a_moved_folder_is_still_the_same_checkpoint() -> None:
    model = tiny_model("llama")
    assert accept({**fingerprint(model), "name": "/elsewhere", "revision": "abc"}, model) == []


def test_an_adapter_on_top_is_recorded_and_warned_of() -> None:
    made_on = fingerprint(tiny_model("llama"))
    config = hf_peft.LoraConfig(r=2, target_modules=["o_proj"])
    adapted = hf_peft.get_peft_model(tiny_model("llama"), config, adapter_name="tuned")
    assert fingerprint(adapted)["adapter"] == ["tuned"]
    assert made_on["sample"].items() <= fingerprint(adapted)["sample"].items()
    assert accept(made_on, adapted) == ["the shift 'ITI' was made with no adapter, the model has tuned"]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "nf4"),
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), "nf4-dq"),
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"), "fp4"),
        (BitsAndBytesConfig(load_in_8bit=True), "int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ],
)
def test_quantisation_is_recorded_by_name_and_warned_of(config: Any, name: str) -> None:
    made_on, model = fingerprint(tiny_model("llama")), tiny_model("llama")
    model.config.quantization_config = config
    found = fingerprint(model)
    assert found["quantization"] == name
    assert json.loads(json.dumps(found)) == found
    assert accept(made_on, model) == [f"the shift 'ITI' was made with no quantization, the model has {name}"]
    del model.config.quantization_config
    assert accept(found, model) == [f"the shift 'ITI' was made with quantization {name}, the model has none"]


def test_a_compiled_model_has_the_fingerprint_of_the_model_inside() -> None:
    model = tiny_model("llama")
    assert fingerprint(torch.compile(model, backend="eager")) == fingerprint(model)


def test_the_sample_holds_two_values_of_every_weight() -> None:
    model = tiny_model("llama")
    sample = fingerprint(model)["sample"]
    assert list(sample) == [name for name, _ in model.named_parameters()]
    weight = model.model.layers[1].self_attn.o_proj.weight.detach()
    expected = [float(weight[16, 16]), float(weight[32, 32])]
    assert sample["model.layers.1.self_attn.o_proj.weight"] == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_that_differs_in_one_late_projection_only_is_another_one() -> None:
    model = tiny_model("llama")
    made_on = fingerprint(model)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight *= 1.001
    with pytest.raises(Incompatible, match=r"model\.layers\.2\.mlp\.down_proj\.weight differs"):
        accept(made_on, model)


def test_weights_that_one_side_has_not_are_not_compared_but_some_must_be_shared() -> None:
    model = tiny_model("llama")
    made_on = fingerprint(model)
    norms = {name: values for name, values in made_on["sample"].items() if "norm" in name or "embed" in name}
    assert accept({**made_on, "sample": norms}, model) == []
    with pytest.raises(Incompatible, match="every weight differs"):
        accept({**made_on, "sample": {"another.weight": [0.0, 1.0]}}, model)


def test_a_four_bit_copy_is_the_same_checkpoint_and_its_norms_still_tell_others_apart(tmp_path) -> None:
    model = llama(hidden_size=64)
    model.save_pretrained(tmp_path)
    made_on = fingerprint(model)
    four_bit = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    assert "model.layers.0.self_attn.o_proj.weight" not in fingerprint(four_bit)["sample"]
    assert any("no quantization, the model has nf4" in warning for warning in accept(made_on, four_bit))
    with torch.no_grad():
        four_bit.model.norm.weight *= 1.1
    with pytest.raises(Incompatible, match=r"model\.norm\.weight differs"):
        accept(made_on, four_bit)


def test_folders_of_this_machine_stay_out_of_records(tmp_path) -> None:
    model = tiny_model("llama")
    for given, kept in ((str(tmp_path / "my-model"), "my-model"), ("organisation/name", "organisation/name")):
        model.config.name_or_path = given
        assert fingerprint(model)["name"] == kept


def test_neither_weights_nor_random_numbers_are_touched() -> None:
    model = tiny_model("llama")
    before = SimpleNamespace(weights=[p.clone() for p in model.parameters()], random=torch.random.get_rng_state())
    fingerprint(model)
    assert torch.equal(torch.random.get_rng_state(), before.random)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before.weights, strict=True))
