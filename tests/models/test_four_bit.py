"""bitsandbytes against 4-bit quantisation written out, and tuning on 4-bit weights against a dequantised model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor

from tests import four_bit
from tests.by_hand import padded, prompt_ids
from tests.observing import generated, state_of
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tune.test_own_methods import (
    LEAVES_WEIGHTS,
    METHODS,
    attached,
    batch,
    gradients,
    logits,
    loss_of,
    shake,
    train,
    without_dropout,
)
from tests.tuning import on
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.load.checkpoints import load_model
from trimtab.models.stored_bits import bits_per_parameter
from trimtab.peft.methods.bottleneck import Bottleneck

KINDS = ("nf4", "fp4", "nf4-dq", "fp4-dq")
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders with tiny models by family."""
    found = {}
    for family in ("llama-gqa", "gpt2", "gpt-neox"):
        found[family] = tmp_path_factory.mktemp("four_bit") / family
        tiny_model(family, width=64).save_pretrained(found[family])
        tiny_tokenizer().save_pretrained(found[family])
    return found


def quantised(folder: Path, kind: Any = "nf4-dq") -> Any:
    model = load_model(folder, quantization=kind, device="cpu").model
    model.generation_config.eos_token_id = None
    return model


def linears(model: Any) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}


def held(module: Any) -> Tensor:
    return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)


def dequantised_twin(model: Any, folder: Path) -> Any:
    """Return the plain model whose weights are what the quantised one stands for."""
    twin = load_model(folder, device="cpu").model
    with torch.no_grad():
        for name, module in linears(model).items():
            place = twin.get_submodule(name).weight
            place.copy_(held(module).T if type(twin.get_submodule(name)).__name__ == "Conv1D" else held(module))
    return twin


def test_the_code_book_is_the_published_one():
    # Dettmers et al. 2023, appendix E
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    torch.testing.assert_close(four_bit.nf4_code(), torch.tensor(published), rtol=0, atol=1e-6)


def check_rounding(weight: Tensor, found: Tensor, state: Any) -> None:
    """Hold what bitsandbytes made of a weight to the oracle, at both levels."""
    exact = scales = four_bit.scales_of(weight)
    if state.nested:
        second = four_bit.SecondLevel(state.state2.code, state.offset)
        torch.testing.assert_close(state.offset, exact.mean(), rtol=1e-6, atol=0)
        scales = four_bit.stored_scales(state.absmax, state.state2.absmax, second)
        near, largest = four_bit.rounded_scales(exact, second)
        # of two levels about equally near bitsandbytes takes either
        excess = (scales - exact).abs() - (near - exact).abs()
        assert bool((excess <= 2e-5 * largest).all())
        assert float((scales == near).double().mean()) > 0.9
        assert not torch.equal(scales, exact)
    else:
        assert torch.equal(state.absmax, exact)
    # the levels are stored as float32 products on one side and sums on the other
    torch.testing.assert_close(found, four_bit.rounded(weight, state.quant_type, scales), rtol=1e-5, atol=1e-6)
    assert float((found - weight).abs().max()) > 1e-3  # the control: rounding does show


@pytest.mark.parametrize("shape", [(64, 64), (50, 44), pytest.param((8, 33), marks=pytest.mark.slow), (200, 256)])
@every_kind
def test_weights_are_rounded_as_the_paper_says(kind, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    packed, state = bnb.functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=kind.endswith("-dq"), quant_type=kind[:3]
    )
    check_rounding(weight, bnb.functional.dequantize_4bit(packed, state), state)


@every_kind
def test_a_loaded_models_weights_are_those(folders, kind):
    model, plain = quantised(folders["llama-gqa"], kind), load_model(folders["llama-gqa"], device="cpu").model
    assert len(linears(model)) == 21
    for name, module in linears(model).items():
        check_rounding(plain.get_submodule(name).weight.detach(), held(module), module.weight.quant_state)


@pytest.mark.parametrize("kind", ["nf4", "fp4-dq"])
def test_rows_that_are_no_whole_blocks_are_read_rightly_or_refused(tmp_path, kind):
    """bitsandbytes' kernel for CPUs with AVX-512 takes the scales of other blocks for them; other kernels do not."""
    tiny_model("llama-gqa").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    try:
        model = quantised(tmp_path, kind)
    except UnsupportedModel as refusal:
        assert "layers.0.self_attn.q_proj has rows of 48; use quantization" in str(refusal)
        weight = torch.randn(48, 48, generator=torch.Generator().manual_seed(0))
        packed, state = bnb.functional.quantize_4bit(weight, blocksize=64, quant_type=kind[:3])
        expected = four_bit.rounded(weight, kind[:3], state.absmax)
        # the control: what is refused is wrong by more than rounding
        assert (bnb.functional.dequantize_4bit(packed, state) - expected).abs().max() > 0.1
        return
    plain = tiny_model("llama-gqa")
    for name, module in linears(model).items():
        check_rounding(plain.get_submodule(name).weight.detach(), held(module), module.weight.quant_state)


@every_kind
def test_bits_per_parameter_are_those_of_arithmetic(folders, kind):
    model = quantised(folders["llama-gqa"], kind)
    sizes = [module.weight.quant_state.shape.numel() for module in linears(model).values()]
    total = sum(four_bit.bits(n, double=kind.endswith("-dq")) for n in sizes)
    found = bits_per_parameter(model)
    assert found.quantised == total / sum(sizes)
    rest = tiny_model("llama-gqa", width=64).num_parameters() - sum(sizes)
    assert found.whole == pytest.approx((total + 32 * rest) / (sum(sizes) + rest))


@pytest.mark.parametrize(("double", "expected"), [(False, 4.5), (True, 4 + 8 / 64 + 32 / 64 / 256)])
def test_large_weights_take_the_published_bits(double, expected):
    layer = bnb.nn.Linear4bit(1024, 1024, bias=False, compress_statistics=double, quant_type="nf4")
    layer.to("cpu")
    found = bits_per_parameter(layer).quantised
    assert found == pytest.approx(expected, abs=1e-4)  # double quantisation's one offset is spread over a million
    assert four_bit.bits(1024 * 1024, double=double) / 1024**2 == pytest.approx(expected, abs=1e-4)


def test_plain_and_eight_bit_models_are_counted_too(folders):
    plain = bits_per_parameter(load_model(folders["llama-gqa"], device="cpu").model)
    assert (plain.quantised, plain.whole) == (None, 32)
    assert bits_per_parameter(tiny_model("gpt2", dtype=torch.bfloat16)).whole == 16
    eight = bits_per_parameter(quantised(folders["llama-gqa"], "int8")).quantised
    assert eight is not None
    assert 8 < eight < 9  # 8 bits, and one float32 for each of 48 to 64 inputs


# training, evaluating and training again


def one_run(model: Any) -> tuple[list[float], list[Tensor]]:
    """Train, evaluate and train again; return all losses and all gradients."""
    method, losses, grads = Bottleneck("houlsby", 8), [], []
    model = without_dropout(model)
    with attached(method, model) as parts:
        shake(parts)
        optimizer = torch.optim.SGD(parts.trainable().values(), lr=0.05)
        for _ in range(2):
            model.train()
            for _ in range(2):
                grads += [g.clone() for _, g in gradients(parts)]
                optimizer.step()
                losses.append(float(loss_of(parts, batch()).detach()))
            model.eval()
            with torch.no_grad():
                losses.append(float(loss_of(parts, batch(seed=8))))
        losses.append(float(loss_of(parts, batch()).detach()))
    return losses, grads


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("kind", ["nf4-dq", "fp4"])
def test_train_evaluate_train_equals_a_dequantised_model(folders, family, kind):
    model = quantised(folders[family], kind)
    twin = dequantised_twin(model, folders[family])
    losses, grads = one_run(model)
    expected_losses, expected_grads = one_run(twin)
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    for found, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(
    not bnb.functional.has_avx512bf16(), reason="this CPU has no AVX512-BF16: bitsandbytes does not repack on it"
)
def test_without_the_guard_gradients_after_an_evaluation_are_wrong(tmp_path):
    # the control to the test above; widths of 64, since the kernel's forward fails on most others
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.15,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    guarded, unguarded = quantised(tmp_path), quantised(tmp_path)
    for module in linears(unguarded).values():
        module.support_avx512bf16_for_cpu = True
    expected = one_run(guarded)
    try:
        found = one_run(unguarded)
    except (AssertionError, RuntimeError):
        return  # it fails rather than misleads, which is as good a reason for the guard
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(found[1], expected[1], strict=True))
    assert error > 0.1


# every method that says it runs on 4-bit weights


@cache
def shared(folder: Path) -> Any:
    return quantised(folder)


@on(("llama-gqa", "gpt2", "gpt-neox"), LEAVES_WEIGHTS, late=("gpt-neox",))
def test_methods_train_on_four_bit_weights_as_on_dequantised_ones_and_leave_no_trace(folders, name, family):
    model, method = shared(folders[family]), METHODS[name]
    twin = dequantised_twin(model, folders[family])
    before = {key: value.clone() for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    hooks = state_of(twin)["hooks"]
    results = []
    for either in (model, twin):
        with attached(method, either) as parts:
            if name in STARTS_AT_BASE_OF_TWIN:
                assert torch.equal(logits(parts.model), logits(either))
            losses, moved = train(parts, method, steps=6)
            assert losses[-1] < losses[0]
            assert all(moved.values())
            results.append(losses)
    assert results[0] == pytest.approx(results[1], abs=2e-3)
    assert state_of(twin)["hooks"] == hooks
    after = model.state_dict()
    assert after.keys() >= before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


STARTS_AT_BASE_OF_TWIN = [n for n in LEAVES_WEIGHTS if not n.startswith(("prompt", "prefix"))]


@on(("llama-gqa", "gpt2"), LEAVES_WEIGHTS)
def test_padding_generation_and_checkpointing_hold_on_four_bit_weights(folders, name, family):
    model, rows = shared(folders[family]), [prompt_ids(3), prompt_ids(6, seed=1)]
    ids, mask = padded(rows, "left")
    close = {"rtol": 0.0, "atol": 2e-4}
    with attached(METHODS[name], model) as parts:
        shake(parts)
        together = logits(parts.model, ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
        whole, steps = generated(parts.model, ids, mask)
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i][mask[i].bool()], logits(parts.model, row)[0], **close)
            said = whole[i : i + 1, ids.shape[1] - row.shape[1] :]
            expected = logits(parts.model, said)[0, row.shape[1] - 1 : -1].double()
            torch.testing.assert_close(steps[i], expected, **close)
        without_dropout(model).train()
        plain = gradients(parts)
        plain = [(key, g.clone()) for key, g in plain]
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        again = gradients(parts)
        model.gradient_checkpointing_disable()
        model.eval()
        for (key, expected), (_, found) in zip(plain, again, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["full", "top 2", "intrinsic", "said"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_methods_that_change_the_weights_refuse_quantised_ones_by_name(folders, kind, name):
    model = quantised(folders["llama-gqa"], kind)
    with pytest.raises(BadValue, match=f"{METHODS[name].name} cannot run on (4-bit|quantised) weights"):
        METHODS[name].attach(model, seed=0)
