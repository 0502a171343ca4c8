"""The laws that every way of tuning (tests/cases.py) keeps on a live model, over several architectures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.by_hand import padded, prompt_ids
from tests.cases import NO_STRENGTH, VARIANTS, every_tuning, left_to_mend, slowly
from tests.cases import TUNING as METHODS
from tests.observing import generated, state_of
from tests.tiny import VOCAB, tiny_model
from tests.tuning import FAMILIES, on
from trimtab.activations import Head
from trimtab.errors import BadValue, Incompatible
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.methods.bottleneck import Bottleneck
from trimtab.peft.methods.full import FullFineTuning
from trimtab.peft.methods.head_offsets import HeadOffsets
from trimtab.peft.methods.intrinsic import IntrinsicDimension
from trimtab.peft.methods.prefix_tuning import PrefixTuning
from trimtab.peft.methods.prompt_tuning import PromptTuning
from trimtab.peft.parts.attached import Attached

STARTS_ELSEWHERE = {"prompt", "prefix", "prefix mlp"}
STARTS_AT_BASE = [name for name in METHODS if name not in STARTS_ELSEWHERE]
LEAVES_WEIGHTS = [name for name in METHODS if name not in {"intrinsic", "said", "full", "top 2"}]
every_method = every_tuning
quickly = on(FAMILIES, late=("gpt-neox", "gemma2"))
# models of any dtype normalise in float32 inside
CLOSE = {"rtol": 0.0, "atol": 5e-5}


@cache
def shared_model(family: str) -> Any:
    """Return one model for all tests, each of which must leave it as it was."""
    model = tiny_model(family)
    model.generation_config.eos_token_id = None
    return model


@contextlib.contextmanager
def attached(method: TuningMethod, model: Any, seed: int = 0):
    parts = method.attach(model, seed=seed)
    try:
        yield parts
    finally:
        parts.detach()


def batch(seed: int = 7) -> Tensor:
    return torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: Tensor | None = None, **given: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch() if ids is None else ids, use_cache=False, **given).logits


def shake(parts: Attached, seed: int = 3) -> None:
    """Move every trained number, so that what it does shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parts.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def loss_of(parts: Attached, ids: Tensor) -> Tensor:
    out = parts.model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten())


def train(parts: Attached, method: TuningMethod, steps: int = 12) -> tuple[list[float], dict[str, bool]]:
    """Return the losses, and whether each trained tensor had a gradient in the first three steps."""
    optimizer = torch.optim.AdamW(parts.trainable().values(), lr=method.learning_rate, weight_decay=0.0)
    losses, moved = [], dict.fromkeys(parts.trainable(), False)
    for step in range(steps):
        loss = loss_of(parts, batch())
        optimizer.zero_grad()
        loss.backward()
        for key, parameter in parts.trainable().items():
            moved[key] |= step < 3 and parameter.grad is not None and bool(parameter.grad.any())
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, moved


@on(FAMILIES, STARTS_AT_BASE)
def test_tuning_starts_from_the_base_to_the_bit(family, name):
    model = shared_model(family)
    before = logits(model)
    with attached(METHODS[name], model) as parts:
        assert torch.equal(logits(parts.model), before)
        shake(parts)
        assert float((logits(parts.model) - before).abs().max()) > 1e-3  # the control: the parts do act


@quickly
def test_training_lowers_the_loss_through_every_part_and_leaves_no_trace(family, name):
    model, method = shared_model(family), METHODS[name]
    before = state_of(model)
    parts = method.attach(model, seed=0)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parts.trainable().values()}
    losses, moved = train(parts, method)
    assert losses[-1] < losses[0] - 0.01
    assert all(moved.values()), [key for key, had in moved.items() if not had]
    parts.detach()
    assert state_of(model) == before
    parts.detach()  # a second time does nothing
    assert state_of(model) == before


@pytest.mark.parametrize("name", slowly([*LEAVES_WEIGHTS, "top 2"], *VARIANTS))
def test_only_the_declared_parts_change_in_training(name):
    model, method = tiny_model("gpt2"), METHODS[name]
    own = {key: p.detach().clone() for key, p in model.named_parameters()}
    with attached(method, model) as parts:
        train(parts, method, steps=3)
        changed = {key for key, p in model.named_parameters() if key in own and not torch.equal(p, own[key])}
        if name == "top 2":
            top = {k for k in own if k.startswith(("transformer.h.1.", "transformer.h.2."))}
            assert changed <= top
            assert top - changed <= {k for k in top if "c_attn.bias" in k}  # a key's bias has no effect on attention
        else:
            assert not changed


@every_method
def test_neither_random_numbers_nor_modes_nor_anything_else_are_touched_by_attaching(name):
    model = tiny_model("gpt2")
    model.train()
    model.transformer.h[1].eval()
    before, modules = state_of(model), dict(model.named_modules())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with attached(METHODS[name], model):
        assert torch.equal(torch.rand(3), expected)
        assert {key: module.training for key, module in modules.items()} == before["training"]
    assert state_of(model) == before


@every_method
def test_the_seed_alone_decides_the_start(name):
    model = shared_model("llama-gqa")

    def start(seed: int) -> dict[str, Tensor]:
        with attached(METHODS[name], model, seed) as parts:
            return {k: t.clone() for k, t in parts.resume_tensors().items()}

    one, same, other = start(1), start(1), start(2)
    assert all(torch.equal(one[k], same[k]) for k in one)
    drawn = name not in {
        "heads",
        "head scalings",
        "full",
        "top 2",
        "ia3",
    }  # these start from zeros, or from the weights
    assert any(not torch.equal(one[k], other[k]) for k in one) == drawn


@quickly
def test_stored_tensors_rebuild_the_tuned_model(family, name):
    model, method = shared_model(family), METHODS[name]
    with attached(method, model) as parts:
        shake(parts)
        tuned = logits(parts.model)
        stored = {k: t.clone() for k, t in parts.tensors().items()}
        checkpoint = {k: t.clone() for k, t in parts.resume_tensors().items()}
    for tensors in (stored, checkpoint):
        with attached(method, model, seed=99) as parts:
            assert not torch.equal(logits(parts.model), tuned)
            parts.load(tensors)
            assert torch.equal(logits(parts.model), tuned)
            assert {k: t.shape for k, t in parts.tensors().items()} == {k: t.shape for k, t in stored.items()}


@every_method
def test_loading_other_tensors_is_refused_and_changes_nothing(name):
    model, method = shared_model("gpt2"), METHODS[name]
    with attached(method, model) as parts:
        shake(parts)
        before, right = logits(parts.model), dict(parts.tensors())
        first = next(iter(right))
        wrong_shape = {**right, first: torch.zeros(3, 3, 3)}
        missing = {k: t for k, t in right.items() if k != first}
        for tensors, words in (
            (missing, "lacks"),
            ({**right, "more": torch.zeros(1)}, "unexpected 'more'"),
            (wrong_shape, r"\(3, 3, 3\)"),
        ):
            with pytest.raises(Incompatible, match=words):
                parts.load(tensors)
        assert torch.equal(logits(parts.model), before)


@quickly
def test_padding_on_either_side_equals_one_by_one(family, name):
    model, rows = shared_model(family), [prompt_ids(3), prompt_ids(7, seed=1), prompt_ids(5, seed=2)]
    with attached(METHODS[name], model) as parts:
        shake(parts)
        for side in ("left", "right"):
            ids, mask = padded(rows, side)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            together = logits(parts.model, ids, attention_mask=mask, position_ids=positions)
            assert together.shape[:2] == ids.shape
            for i, row in enumerate(rows):
                torch.testing.assert_close(together[i][mask[i].bool()], logits(parts.model, row)[0], **CLOSE)


@quickly
def test_cached_generation_equals_one_forward(family, name):
    model, rows = shared_model(family), [prompt_ids(3), prompt_ids(6, seed=1)]
    ids, mask = padded(rows, "left")
    with attached(METHODS[name], model) as parts:
        shake(parts)
        whole, steps = generated(parts.model, ids, mask)
        for i, row in enumerate(rows):
            said = whole[i : i + 1, ids.shape[1] - row.shape[1] :]
            expected = logits(parts.model, said)[0, row.shape[1] - 1 : -1].double()
            torch.testing.assert_close(steps[i], expected, **CLOSE)


@on(FAMILIES[:3], late=("gpt-neox",))
def test_gradient_checkpointing_gives_the_same_gradients(family, name):
    model = without_dropout(tiny_model(family).train())
    with attached(METHODS[name], model) as parts:
        shake(parts)
        plain = gradients(parts)
        kept = [t for _, t in plain]
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        entered = counted(model)
        again = gradients(parts)
        model.gradient_checkpointing_disable()
    assert entered[0] >= 2 * 3  # each layer ran forward, and once more in the backward pass
    for (key, _), expected, (_, found) in zip(plain, kept, again, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=key)


def gradients(parts: Attached) -> list[tuple[str, Tensor]]:
    for parameter in parts.trainable().values():
        parameter.grad = None
    loss_of(parts, batch()).backward()
    return [(k, torch.zeros_like(p) if p.grad is None else p.grad) for k, p in parts.trainable().items()]


def counted(model: Any) -> list[int]:
    """Return a counter of the layers' attention projections' forwards, which checkpointing runs twice."""
    from tests.by_hand import GEOMETRY

    family = {"llama": "llama-gqa", "gpt2": "gpt2", "gpt_neox": "gpt-neox"}[model.config.model_type]
    count = [0]

    def hook(*_: Any) -> None:
        count[0] += 1

    for layer in model.get_submodule(GEOMETRY[family].layers):
        layer.get_submodule(GEOMETRY[family].projection).register_forward_pre_hook(hook)
    return count


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


# LoRA finds the linear layers of the adapters that stand there already, and takes them for the model's
@pytest.mark.parametrize("name", left_to_mend(slowly(list(METHODS), *VARIANTS), "lora"))
def test_each_nested_edit_leaves_the_outer_one_in_place(name):
    model, inner, outer = shared_model("gpt2"), METHODS[name], Bottleneck("pfeiffer", 3)
    before, plain = state_of(model), logits(model)
    with attached(outer, model, seed=1) as first:
        shake(first)
        alone = logits(model)
        with attached(inner, model, seed=2) as second:
            shake(second, seed=4)
            assert not torch.equal(logits(second.model), alone)
        assert torch.equal(logits(model), alone)
    assert state_of(model) == before
    assert torch.equal(logits(model), plain)


@every_method
def test_an_error_while_attached_or_attaching_leaves_the_model_as_it_was(name, monkeypatch):
    model, method = shared_model("llama-gqa"), METHODS[name]
    before = state_of(model)
    with pytest.raises(IndexError), attached(method, model) as parts:
        parts.model(input_ids=torch.full((1, 3), 10_000))
    assert state_of(model) == before

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    places = ("bottleneck", "head_offsets", "prompt_tuning", "prefix_tuning", "intrinsic", "full")
    for place in places:
        for part in ("AttachedParts", "PrefixParts"):
            monkeypatch.setattr(f"trimtab.peft.methods.{place}.{part}", fail, raising=False)
    monkeypatch.setattr("peft.get_peft_model", fail)
    with pytest.raises(KeyboardInterrupt):
        method.attach(model, seed=0)
    assert state_of(model) == before


@pytest.mark.parametrize("name", slowly([name for name in METHODS if name not in NO_STRENGTH], *VARIANTS))
def test_scaled_by_zero_is_the_base_to_the_bit_and_by_two_is_more(name):
    model, method = shared_model("llama-gqa"), METHODS[name]
    plain = logits(model)
    with attached(method, model) as parts:
        shake(parts)
        stored = {k: t.clone() for k, t in parts.tensors().items()}
        shaken = logits(parts.model)
    results = []
    for factor in (0, 1, 2.0):
        with attached(method, model) as parts:
            method.load(parts, stored, factor)
            results.append(logits(parts.model))
    assert torch.equal(results[0], plain) and torch.equal(results[1], shaken)
    moved = [float((r - plain).abs().mean()) for r in results]
    assert moved[2] > moved[1] > 0


@pytest.mark.parametrize("name", slowly(sorted(NO_STRENGTH), *VARIANTS))
def test_methods_without_a_strength_say_so(name):
    with pytest.raises(BadValue, match="cannot be scaled"):
        METHODS[name].require_scalable({})


@on(FAMILIES)
def test_the_count_of_parameters_is_what_is_attached(family, name):
    model, method = shared_model(family), METHODS[name]
    with attached(method, model) as parts:
        n = parts.trained().n
        assert n <= sum(p.numel() for p in parts.trainable().values())
    assert method.parameter_count(model) == method.parameter_count(model.config) == n


@every_method
def test_descriptions_are_plain_values_and_capabilities_are_declared(name):
    method = METHODS[name]
    described = json.loads(json.dumps(method.describe()))
    assert described["method"] == type(method).__name__
    assert method.capabilities.four_bit == (name in LEAVES_WEIGHTS)
    assert method.capabilities.packing
    assert method.capabilities.checkpointing


@on(FAMILIES[:3], late=("gpt-neox",))
def test_packed_examples_are_as_if_alone(family, name):
    model, rows = shared_model(family), [prompt_ids(4), prompt_ids(6, seed=1)]
    row, positions = torch.cat(rows, dim=1), torch.cat([torch.arange(4), torch.arange(6)])[None]
    with attached(METHODS[name], model) as parts:
        shake(parts)
        packed = logits(parts.model, row, position_ids=positions)
        apart = torch.cat([logits(parts.model, row) for row in rows], dim=1)
        run_on = logits(parts.model, row)
    torch.testing.assert_close(packed, apart, **CLOSE)
    assert float((run_on[:, 4:] - apart[:, 4:]).abs().max()) > 0.01  # the control: one text is not two examples


@every_method
def test_the_head_runs_on_the_last_positions_only_where_asked(name):
    model = shared_model("llama-gqa")
    with attached(METHODS[name], model) as parts:
        shake(parts)
        torch.testing.assert_close(logits(parts.model, logits_to_keep=3), logits(parts.model)[:, -3:], **CLOSE)


@cache
def compiled_model() -> Any:
    model = tiny_model("llama-gqa")
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("name", slowly(list(METHODS), *VARIANTS))
def test_a_compiled_model_is_refused(name):
    with pytest.raises(Incompatible, match="was compiled before"), attached(METHODS[name], compiled_model()):
        pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@every_method
def test_half_precision_models_have_parts_in_single_and_double_ones_in_double(name, dtype):
    model, method = tiny_model("llama-gqa", dtype=dtype), METHODS[name]
    with attached(method, model) as parts:
        expected = dtype if name in ("full", "top 2") else torch.promote_types(dtype, torch.float32)
        assert {p.dtype for p in parts.trainable().values()} == {expected}
        out = logits(parts.model)
        assert out.dtype == dtype
        assert bool(out.isfinite().all())
        loss_of(parts, batch()).backward()


Refusal = Callable[[], Any]
REFUSED: dict[str, tuple[Refusal, str]] = {
    "an unknown style": (lambda: Bottleneck("other"), "unknown adapter style 'other'; choose houlsby"),  # type: ignore[arg-type]
    "no width": (lambda: Bottleneck(width=0), "must be 1 or more, got 0"),
    "too wide": (lambda: Bottleneck(width=49).attach(shared_model("gpt2"), seed=0), "wider than the model"),
    "too wide for a config": (lambda: Bottleneck(width=49).parameter_count(tiny_model("gpt2").config), "wider"),
    "no virtual token": (lambda: PromptTuning(0), "n_tokens must be 1 or more"),
    "no prefix": (lambda: PrefixTuning(-1), "n_tokens must be 1 or more"),
    "no hidden unit": (lambda: PrefixTuning(d_hidden=0), "d_hidden must be 1 or more"),
    "no dimension": (lambda: IntrinsicDimension(0), "must be 1 or more, got 0"),
    "fewer dimensions than scales": (
        lambda: IntrinsicDimension(4, structure_aware=True).attach(shared_model("gpt2"), seed=0),
        "4 of them are the layers' scales",
    ),
    "more dimensions than weights": (
        lambda: IntrinsicDimension(10**8).attach(shared_model("gpt2"), seed=0),
        "the model has 111600 weights",
    ),
    "no layer": (lambda: FullFineTuning(0), "how many of the topmost layers to tune, got 0"),
    "too many layers": (lambda: FullFineTuning(4).attach(shared_model("gpt2"), seed=0), "the model has 3"),
    "no heads": (lambda: HeadOffsets().attach(shared_model("gpt2"), seed=0), "give heads=, or call fit"),
    "no such head": (
        lambda: HeadOffsets(heads=(Head(0, 9),)).attach(shared_model("gpt2"), seed=0),
        "no head 9 in layer 0: the model has layers 0-2 of 4 heads",
    ),
    "a head twice": (lambda: HeadOffsets(heads=(Head(0, 1), Head(0, 1))), "stands twice"),
    "no top heads": (lambda: HeadOffsets(0), "top_k must be 1 or more"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSED)
def test_bad_values_are_refused_in_one_sentence(case):
    call, words = REFUSED[case]
    before = state_of(shared_model("gpt2"))
    with pytest.raises(BadValue, match=words):
        call()
    assert state_of(shared_model("gpt2")) == before


@on(FAMILIES, [n for n in METHODS if METHODS[n].capabilities.mergeable])
def test_merging_leaves_a_plain_model_that_is_the_tuned_one(family, name):
    model, method = tiny_model(family), METHODS[name]
    plain, before = logits(model), state_of(model)
    parts = method.attach(model, seed=0)
    shake(parts)
    tuned = logits(parts.model)
    merged = parts.merged()
    assert float((tuned - plain).abs().max()) > 1e-3
    if name in ("lora", "ia3", *VARIANTS):  # which PEFT works into the weights, so that products are rounded elsewhere
        torch.testing.assert_close(logits(merged), tuned, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(logits(merged), tuned)
    after = state_of(merged)
    # PEFT hands back weights that are frozen
    kept = before.keys() - {"weights"} - ({"gradients"} if name in ("lora", "ia3", *VARIANTS) else set())
    assert {k: after[k] for k in kept} == {k: before[k] for k in kept}
    assert list(after["weights"]) == list(before["weights"])


@pytest.mark.parametrize("name", slowly([n for n in METHODS if not METHODS[n].capabilities.mergeable], *VARIANTS))
def test_methods_that_are_no_change_of_weights_refuse_to_merge(name):
    model = tiny_model("gpt2")
    with attached(METHODS[name], model) as parts, pytest.raises(BadValue, match="cannot be worked into the weights"):
        parts.merged()
