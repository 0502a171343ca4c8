"""Every precision on the CPU: capture, steering, generation and scores agree with one prompt at a time, and how far
the precisions themselves are apart."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import peft as hf_peft
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tests.by_hand import padded, prompt_ids, seen_inputs
from tests.families import family_model
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import Head
from trimtab.edits.vectors import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadValue
from trimtab.evaluate import multiple_choice
from trimtab.models.heads import find_heads
from trimtab.models.identity import fingerprint
from trimtab.models.load.checkpoints import load_model
from trimtab.probes import fit_mass_mean
from trimtab.protocols import TokenMask
from trimtab.steer import agreement

# of the largest value: one prompt at a time against batches. float16's and bfloat16's rounding reaches a layer's output
# with 2^-11 and 2^-9; int8 rounds each row's activations to 7 bits
TOLERANCE = {
    "float32": 1e-5, "bfloat16": 0.03, "float16": 0.005, "nf4": 1e-5, "fp4": 1e-5, "nf4-dq": 1e-5, "fp4-dq": 1e-5,
    "nf4 in bfloat16": 0.03, "int8": 0.03,
}  # fmt: skip
# cosine of a head's activations with those of float32, at least: what is lost with the weights' bits
KEPT = {
    "bfloat16": 0.999, "float16": 0.9999, "nf4": 0.9, "fp4": 0.75, "nf4-dq": 0.9, "fp4-dq": 0.75,
    "nf4 in bfloat16": 0.9, "int8": 0.999,
}  # fmt: skip
LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model whose widths are multiples of 64, as a block of 4-bit weights is."""
    path = tmp_path_factory.mktemp("precision")
    torch.manual_seed(0)
    config = tiny_model("llama-gqa").config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    config.initializer_range = 0.1
    type(tiny_model("llama-gqa"))(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@cache
def loaded(folder: Path, precision: str) -> Any:
    kind = precision.split(" in ")[0]
    dtype = "bfloat16" if precision.endswith("in bfloat16") else "float32"
    options: dict[str, Any] = (
        {"dtype": kind} if kind in ("float32", "bfloat16", "float16") else {"quantization": kind, "dtype": dtype}
    )
    model = load_model(folder, device="cpu", **options).model
    model.generation_config.eos_token_id = None
    return model


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def the_shift(model: Any) -> HeadShift:
    heads, unit = (Head(0, 1), Head(2, 3)), torch.full((2, 16), 0.25)
    return HeadShift(heads, unit, torch.ones(2), 2.0, record={"model": fingerprint(model)})


every_precision = pytest.mark.parametrize("precision", TOLERANCE)


@every_precision
def test_heads_captured_in_batches_are_those_of_one_prompt_at_a_time(folder: Path, precision: str) -> None:
    model, statements = loaded(folder, precision), tiny_questions(3).statements()
    found = capture_heads(model, tiny_tokenizer(), statements, batch_size=5).values
    modules = {str(i): layer.self_attn.o_proj for i, layer in enumerate(model.model.layers)}
    rows = []
    for statement in statements:
        ids = torch.tensor([tiny_tokenizer()(statement.text)["input_ids"]])
        seen = seen_inputs(model, modules, lambda ids=ids: model(input_ids=ids))
        rows.append(torch.stack([seen[str(i)][0, -1] for i in range(LAYERS)]))
    expected = torch.stack(rows).unflatten(-1, (4, 16))
    assert relative(found, expected) <= TOLERANCE[precision]
    if precision != "float32":
        whole = capture_heads(loaded(folder, "float32"), tiny_tokenizer(), statements).values
        assert KEPT[precision] <= float(cosine_similarity(found, whole, dim=-1).min()) < 1 - 1e-8


@every_precision
def test_steered_generation_is_one_masked_forward_of_each_prompt(folder: Path, precision: str) -> None:
    model, rows = loaded(folder, precision), [prompt_ids(9), prompt_ids(5, seed=1)]
    ids, mask = padded(rows, "left")
    shift, positions = the_shift(model), TokenMask()
    with torch.no_grad():
        with shift.applied(model):
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, output_logits=True,
                return_dict_in_generate=True, pad_token_id=0,
            )  # fmt: skip
        steps = torch.stack(out.logits, dim=1)
        for i, row in enumerate(rows):
            whole = torch.cat([row, out.sequences[i : i + 1, ids.shape[1] : -1]], dim=1)
            positions.value = torch.arange(whole.shape[1])[None] >= row.shape[1] - 1
            with shift.applied(model, positions):
                expected = model(input_ids=whole).logits[0, row.shape[1] - 1 :]
            plain = model(input_ids=whole).logits[0, row.shape[1] - 1 :]
            assert relative(steps[i], expected) <= TOLERANCE[precision]
            assert relative(plain, expected) > 3 * TOLERANCE[precision]


@every_precision
def test_scores_are_those_of_plain_forwards(folder: Path, precision: str) -> None:
    model, questions = loaded(folder, precision), tiny_questions(3)
    shift, positions, tokenizer = the_shift(model), TokenMask(), tiny_tokenizer()
    for row in multiple_choice(model, tokenizer, questions, shift).rows:
        start = len(tokenizer(row.prompt)["input_ids"])
        for answer in row.answers:
            ids = tokenizer(f"{row.prompt} {answer.text}", return_tensors="pt")["input_ids"]
            positions.value = torch.arange(ids.shape[1])[None] >= start - 1
            with torch.no_grad(), shift.applied(model, positions):
                logprobs = model(input_ids=ids).logits[0].float().log_softmax(-1)
            expected = sum(float(logprobs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
            assert answer.logprob == pytest.approx(expected, rel=TOLERANCE[precision])


@every_precision
def test_the_constant_after_the_projection_is_exact_unless_activations_are_quantised(
    folder: Path, precision: str
) -> None:
    """In int8 projection(x + delta) - projection(x) depends on x, so the shift acts on the live module's input."""
    project, move = loaded(folder, precision).model.layers[0].self_attn.o_proj, torch.zeros(1, 1, 64)
    move[..., 16:32] = 2 * torch.randn(16, generator=torch.Generator().manual_seed(0))
    dtype = loaded(folder, precision).dtype
    places = torch.randn(2, 1, 1, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        inputs = (torch.zeros(1, 1, 64), *places)
        constants = [project((x + move).to(dtype)).float() - project(x.to(dtype)).float() for x in inputs]
    apart = max(relative(c, constants[0]) for c in constants[1:])
    assert apart <= (0.1 if precision == "int8" else max(TOLERANCE[precision], 2e-3))
    if precision == "int8":
        assert apart > 1e-3


@pytest.mark.parametrize("precision", ["nf4", "fp4-dq", "int8"])
def test_steering_makes_no_copy_of_the_quantised_weights(folder: Path, precision: str) -> None:
    model = loaded(folder, precision)
    before = {name: (p.data_ptr(), p.dtype, p.shape) for name, p in model.named_parameters()}
    made: list[Tensor] = []
    shift = the_shift(model)

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                made.append(out)
            return out

    with Watch(), shift.applied(model):
        pass
    # entering the shift tries the layers out on four tokens; nothing as large as a weight matrix comes of it
    assert made and max(t.numel() for t in made if t.is_floating_point()) <= 300 * 64
    assert {name: (p.data_ptr(), p.dtype, p.shape) for name, p in model.named_parameters()} == before


def test_a_shift_fitted_in_bfloat16_acts_on_the_four_bit_model_with_a_warning(folder: Path) -> None:
    fitted, model, ids = the_shift(loaded(folder, "bfloat16")), loaded(folder, "nf4"), prompt_ids(6)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with pytest.warns(UserWarning, match="was made with no quantization, the model has nf4"):  # noqa: SIM117
            with fitted.applied(model, "all"):
                found = model(input_ids=ids).logits
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with the_shift(model).applied(model, "all"):
                expected = model(input_ids=ids).logits
    assert torch.equal(found, expected) and relative(found, plain) > 0.1


@pytest.mark.parametrize("precision", ["bfloat16", "nf4", "int8"])
def test_agreement_says_how_far_the_precisions_are_apart(folder: Path, precision: str) -> None:
    statements = tiny_questions(10).statements()
    one, other = (capture_heads(loaded(folder, p), tiny_tokenizer(), statements) for p in ("float32", precision))
    found = agreement(one, fit_mass_mean(one), other, fit_mass_mean(other), top_k=4)
    assert {"bfloat16": 0.95, "nf4": 0.3, "int8": 0.95}[precision] < float(found.cosine.median()) < 1
    assert 0 <= found.overlap <= 1 and len(found.top) == len(found.other_top) == 4


# a projection that was wrapped, merged or renamed


@pytest.mark.parametrize("precision", ["float32", "nf4", "int8"])
def test_adapters_on_the_projection_are_part_of_what_is_steered(folder: Path, precision: str) -> None:
    kind = {} if precision == "float32" else {"quantization": precision}
    model, ids = load_model(folder, device="cpu", **kind).model, prompt_ids(7)
    torch.manual_seed(0)
    config = hf_peft.LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    wrapped = hf_peft.get_peft_model(model, config).eval()
    assert [s.name for s in find_heads(wrapped)] == [f"model.layers.{i}.self_attn.o_proj" for i in range(LAYERS)]
    shift, site = the_shift(wrapped), find_heads(wrapped)[0]
    moved = torch.zeros(1, 1, 64)
    moved[..., 16:32] = next(iter(shift.deltas.values()))
    with torch.no_grad():
        with shift.applied(wrapped, "all"):
            inside = seen_inputs(model, {"x": site.module.base_layer}, lambda: wrapped(input_ids=ids))["x"]
            assert wrapped(input_ids=ids).logits.isfinite().all()
        outside = seen_inputs(model, {"x": site.module.base_layer}, lambda: wrapped(input_ids=ids))["x"]
    # base layer and adapter both get the shifted heads
    assert relative(inside - outside, moved.expand_as(inside)) < 1e-4


def test_a_merged_adapter_leaves_the_projection_where_it_was(folder: Path) -> None:
    model, statements = load_model(folder, device="cpu").model, tiny_questions(2).statements()
    torch.manual_seed(0)
    config = hf_peft.LoraConfig(r=2, target_modules=["o_proj", "v_proj"], init_lora_weights=False)
    wrapped = hf_peft.get_peft_model(model, config).eval()
    before = capture_heads(wrapped, tiny_tokenizer(), statements).values
    merged = wrapped.merge_and_unload()
    assert all(isinstance(s.module, torch.nn.Linear) for s in find_heads(merged))
    assert relative(capture_heads(merged, tiny_tokenizer(), statements).values, before) < 1e-4


def test_a_renamed_projection_is_found_by_what_it_does() -> None:
    model = family_model("Llama")
    kind = type(model.model.layers[0].self_attn)

    class Renamed(kind):
        @property
        def o_proj(self) -> Any:
            return self.out

    for layer in model.model.layers:
        projection = layer.self_attn._modules.pop("o_proj")
        layer.self_attn.__class__ = Renamed
        layer.self_attn.out = projection
    assert [s.name for s in find_heads(model)] == [f"model.layers.{i}.self_attn.out" for i in range(3)]


def test_float16_that_overflows_is_told_by_layer(folder: Path) -> None:
    model = load_model(folder, dtype="float16", device="cpu").model
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight.mul_(3e5)
    with pytest.raises(BadValue, match=r"layer 1 gives NaN or infinite values .* load the model in float32"):
        capture_heads(model, tiny_tokenizer(), tiny_questions(2).statements())
