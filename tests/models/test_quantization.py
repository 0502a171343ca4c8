"""load_model(quantization=): what stands in memory, what is computed, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, get_args

import bitsandbytes as bnb
import pytest
import torch

from tests.by_hand import N_LAYERS, prompt_ids
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.heads import find_heads
from trimtab.models.identity import fingerprint
from trimtab.models.load.checkpoints import load_model
from trimtab.models.load.quantization import Quantization, quantization_config

KINDS = get_args(Quantization)
FOUR_BITS = tuple(kind for kind in KINDS if kind != "int8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a whole tiny model."""
    path = tmp_path_factory.mktemp("quantization") / "model"
    tiny_model("llama-gqa", width=64).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def linears(model: Any) -> list[Any]:
    """Return the linear modules inside the layers, which are the ones that are quantised."""
    return [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]


def dequantised(module: Any) -> torch.Tensor:
    if isinstance(module, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return module.weight.CB.float() * module.weight.SCB[:, None] / 127


@pytest.mark.parametrize("kind", KINDS)
def test_every_projection_is_quantised_to_within_the_kinds_step_and_the_head_is_not(folder: Path, kind: Any) -> None:
    model, plain = load_model(folder, quantization=kind, device="cpu").model, load_model(folder, device="cpu").model
    assert len(linears(model)) == 7 * N_LAYERS
    for ours, theirs in zip(linears(model), linears(plain), strict=True):
        assert isinstance(ours, bnb.nn.Linear8bitLt if kind == "int8" else bnb.nn.Linear4bit)
        error = (dequantised(ours) - theirs.weight).abs().max() / theirs.weight.abs().max()
        # half the widest gap between neighbouring codes, as a share of the largest weight (int8: 1/127 by row)
        assert 0 < error < (0.006 if kind == "int8" else 0.2)
    assert torch.equal(model.lm_head.weight, plain.lm_head.weight)
    assert [s.layer for s in find_heads(model)] == list(range(N_LAYERS))
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("kind", FOUR_BITS)
def test_type_of_code_and_double_quantisation_are_those_asked_for(folder: Path, kind: str) -> None:
    states = [m.weight.quant_state for m in linears(load_model(folder, quantization=kind, device="cpu").model)]
    assert {s.quant_type for s in states} == {kind.removesuffix("-dq")}
    assert {s.nested for s in states} == {kind.endswith("-dq")}


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_four_bit_weights_compute_in_the_dtype_asked_for_or_the_checkpoints(folder: Path, dtype: Any) -> None:
    model = load_model(folder, quantization="nf4", dtype=dtype, device="cpu").model
    expected = torch.float32 if dtype is None else getattr(torch, dtype)
    assert {m.compute_dtype for m in linears(model)} == {expected}
    with torch.no_grad():
        assert model(prompt_ids(6)).logits.dtype == expected


def test_without_quantisation_nothing_is_quantised(folder: Path) -> None:
    model = load_model(folder, device="cpu").model
    assert {type(m) for m in linears(model)} == {torch.nn.Linear}
    assert fingerprint(model)["quantization"] is None


@pytest.mark.parametrize("kind", FOUR_BITS)
def test_an_evaluation_forward_changes_neither_weights_nor_later_gradients(folder: Path, kind: Any) -> None:
    """On CPUs with AVX512-BF16 an unguarded forward repacks the weights, and every gradient after it is wrong."""
    model, ids = load_model(folder, quantization=kind, device="cpu").model, prompt_ids(6)
    before = [dequantised(m).clone() for m in linears(model)]
    plain = load_model(folder, device="cpu").model
    with torch.no_grad():
        for ours, theirs in zip(linears(model), linears(plain), strict=True):
            theirs.weight.copy_(dequantised(ours))
        logits, expected = model(ids).logits, plain(ids).logits
    assert torch.allclose(logits, expected, rtol=0, atol=1e-4)
    assert all(torch.equal(dequantised(m), w) for m, w in zip(linears(model), before, strict=True))
    for either in (model, plain):
        either.model.embed_tokens.weight.requires_grad_(True)
        either(ids).logits.square().sum().backward()
    ours, theirs = (m.model.embed_tokens.weight.grad for m in (model, plain))
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_a_folder_that_was_saved_quantised_is_guarded_too_and_not_quantised_again(folder: Path, tmp_path: Path) -> None:
    load_model(folder, quantization="nf4-dq", device="cpu").model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu").model
    assert {m.support_avx512bf16_for_cpu for m in linears(model)} == {False}
    with pytest.raises(BadValue, match="quantised already; load it without quantization"):
        load_model(tmp_path, quantization="int8", device="cpu")
    with pytest.raises(BadValue, match="beside others in float32, which loading does not change; leave dtype out"):
        load_model(tmp_path, dtype="bfloat16", device="cpu")
    assert load_model(tmp_path, dtype="float32", device="cpu").model.dtype == torch.float32


# refusals


def test_without_bitsandbytes_the_message_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(folder, quantization="fp4", device="cpu").model.save_pretrained(tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "trimtab.models.load.quantization.find_spec", lambda name: None if name == "bitsandbytes" else real(name)
    )
    words = r"quantization 'nf4' needs bitsandbytes, which is not installed: pip install 'trimtab\[quantization\]'"
    with pytest.raises(UnsupportedModel, match=words):
        load_model(folder, quantization="nf4", device="cpu")
    with pytest.raises(UnsupportedModel, match=r"the quantised model in .* needs bitsandbytes, which is not installed"):
        load_model(tmp_path, device="cpu")
    assert len(find_heads(load_model(folder, device="cpu").model)) == N_LAYERS


def test_a_device_without_kernels_is_refused() -> None:
    with pytest.raises(BadValue, match="quantization 'fp4' does not run on device 'mps'; choose cpu, cuda, xpu"):
        quantization_config("fp4", torch.float32, torch.device("mps"))


def test_float64_is_refused_with_the_dtypes_that_work(folder: Path) -> None:
    with pytest.raises(BadValue, match="computes in float32, bfloat16 or float16, not in float64"):
        load_model(folder, quantization="nf4", dtype="float64", device="cpu")


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(BadValue, match="unknown quantization 'int3'; choose nf4, fp4, nf4-dq, fp4-dq, int8 or None"):
        load_model(folder, quantization="int3", device="cpu")
