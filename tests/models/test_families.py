"""Every family that trimtab promises keeps the five promises, and docs/families.md says so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers

from tests.by_hand import prompt_ids, seen_inputs
from tests.families import FAMILIES, GQA, family_model
from tests.family_checks import CHECKS, DOCS, TOLERANCE, measured, shifted, sites, table, the_model
from tests.tiny import COMMON
from trimtab.activations import Head
from trimtab.errors import UnsupportedModel
from trimtab.models.adding import add_to_heads
from trimtab.models.heads import find_heads
from trimtab.protocols import TokenMask


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_are_found_in_the_attention_modules_and_nowhere_else(name: str) -> None:
    family = FAMILIES[name]
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        found = find_heads(family_model(name))  # a new one, since it is said once a model
    assert tuple(s.layer for s in found) == family.layers
    assert all(s.name.startswith(family.attention.format(s.layer) + ".") for s in found)
    assert {(s.n_heads, s.d_head) for s in found} == {(4, family.d_head)}
    without = [layer for layer in range(3) if layer not in family.layers]
    expected = [f"layers {without} {family.left_out}"] if without else []
    assert [str(w.message) for w in noted if "are left out" in str(w.message)] == expected


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_it_keeps_its_promise(name: str, check: str) -> None:
    assert measured(name, check) <= TOLERANCE


def test_the_checks_can_fail() -> None:
    """The control: a shift on the wrong head moves the logits by more than any tolerance here."""
    model, ids = the_model("Llama"), prompt_ids(8)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with shifted("Llama", "all"):
            assert (model(input_ids=ids).logits - plain).abs().max() > 0.1 * plain.abs().max()


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPT-NeoX / Pythia", "Falcon (grouped heads, new layout)"])
def test_each_slice_is_one_head_of_the_attention_weights_times_the_values(name: str) -> None:
    """Heads by the definition of attention: the head's weights (eager attention gives them) times its values."""
    model = family_model(name, attn_implementation="eager")
    site, n, d = find_heads(model)[0], 4, FAMILIES[name].d_head
    attention = model.get_submodule(FAMILIES[name].attention.format(0))
    fused = getattr(attention, "query_key_value", None)
    source = attention.v_proj if fused is None else fused
    outputs: list[torch.Tensor] = []
    handle = source.register_forward_hook(lambda m, a, out: outputs.append(out.detach()))
    ids = prompt_ids(8)
    x = seen_inputs(model, {"x": site.module}, lambda: model(input_ids=ids))["x"][0].view(8, n, d)
    handle.remove()
    with torch.no_grad():
        weights = model(input_ids=ids, output_attentions=True).attentions[0][0]
    if fused is None:
        values = outputs[0][0].view(8, -1, d)
    elif "Falcon" in name:
        values = outputs[0][0].view(8, 2, -1, d)[:, :, -1]
    else:
        values = outputs[0][0].view(8, n, 3, d)[:, :, 2]
    values = values.repeat_interleave(n // values.shape[1], dim=1)
    expected = torch.einsum("hqk,khd->qhd", weights, values)
    assert (x - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_a_state_space_beside_attention_is_not_taken_for_it_even_when_as_wide() -> None:
    config = transformers.FalconH1Config(
        **GQA, mamba_d_ssm=48, mamba_n_heads=4, mamba_d_head=12, mamba_d_state=8, mamba_chunk_size=8
    )
    found = find_heads(transformers.AutoModelForCausalLM.from_config(config).eval())
    assert [s.name for s in found] == [f"model.layers.{i}.self_attn.o_proj" for i in range(3)]


def test_heads_of_another_size_are_taken_by_name() -> None:
    model = family_model("Gemma 4 (text)")
    names = {layer: (f"model.layers.{layer}.self_attn.o_proj", 4) for layer in range(3)}
    assert [(s.layer, s.n_heads, s.d_head) for s in find_heads(model, {2: names[2]})] == [(2, 4, 24)]
    with pytest.raises(
        UnsupportedModel, match=r"differ in size \(layer 0: 4 x 16, layer 2: 4 x 24\); name layers of one"
    ):
        find_heads(model, names)


SMALL = {k: COMMON[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")}
WITHOUT_HEADS = {
    "Mamba": lambda: transformers.MambaConfig(**SMALL),
    "Mamba 2": lambda: transformers.Mamba2Config(**SMALL, num_heads=8, head_dim=12, n_groups=1, state_size=8),
    "Falcon-Mamba": lambda: transformers.FalconMambaConfig(**SMALL),
    "RWKV": lambda: transformers.RwkvConfig(**SMALL, attention_hidden_size=48, context_length=64),
}


@pytest.mark.parametrize("name", WITHOUT_HEADS)
def test_a_model_without_attention_is_refused_by_name(name: str) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_config(WITHOUT_HEADS[name]()).eval()
    with pytest.raises(UnsupportedModel, match=rf"{type(model).__name__} is not a decoder with attention heads"):
        find_heads(model)


def test_the_vision_towers_own_attention_is_left_alone() -> None:
    assert all("language_model" in s.name for s in sites("LLaVA (text tower)"))
    towers = [n for n, m in the_model("LLaVA (text tower)").named_modules() if n.endswith("self_attn")]
    assert any("vision" in n for n in towers)


def test_the_table_in_the_docs_is_the_one_that_these_checks_give() -> None:
    kept = table(kept=lambda name, check: True)  # as the tests of the promises hold
    assert DOCS.read_text(encoding="utf-8") == kept, "run python -m tests.family_checks and commit the table"


def test_zamba_2_generates_as_far_from_a_whole_forward_without_an_edit_as_with_one() -> None:
    """The cached step of transformers' own Mamba layers is another sum than its whole forward, in float64 too."""
    torch.manual_seed(0)
    config = transformers.Zamba2Config(
        **COMMON, num_key_value_heads=4, hybrid_layer_ids=[1], layers_block_type=["mamba", "hybrid", "mamba"],
        mamba_d_state=8, n_mamba_heads=8, mamba_headdim=12, mamba_ngroups=1, chunk_size=8, num_mem_blocks=1,
        use_shared_attention_adapter=False,
    )  # fmt: skip
    model = transformers.Zamba2ForCausalLM(config).eval().double()
    model.generation_config.eos_token_id = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*have no attention heads and are left out")
        heads = find_heads(model)
    delta = {Head(1, 2): torch.randn(heads[0].d_head, generator=torch.Generator().manual_seed(0))}
    mask, ids = TokenMask(), prompt_ids(9, seed=9)

    def apart(deltas: dict[Head, torch.Tensor]) -> list[float]:
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "output_logits": True}
        with torch.no_grad(), add_to_heads(model, deltas, "generated", heads=heads):
            real = torch.ones_like(ids)
            out = model.generate(input_ids=ids, attention_mask=real, return_dict_in_generate=True, **options)
        mask.value = torch.arange(out.sequences.shape[1] - 1)[None] >= 8
        with torch.no_grad(), add_to_heads(model, deltas, mask, heads=heads):
            whole = model(input_ids=out.sequences[:, :-1], use_cache=False).logits[0, 8:]
        steps = torch.stack(out.logits)[:, 0]
        return ((steps - whole).abs().amax(-1) / whole.abs().max()).tolist()

    plain, steered = apart({}), apart(delta)
    assert plain[0] < 1e-6 and steered[0] < 1e-6
    assert 1e-5 < max(plain) < 1e-3
    assert max(steered) < 5 * max(plain)
