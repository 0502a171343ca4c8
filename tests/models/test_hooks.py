"""add_to_heads against hooks written out by hand, and the forwards in which it must refuse to act."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import peft as hf_peft
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tests.by_hand import (
    GEOMETRY,
    N_HEADS,
    N_LAYERS,
    delta,
    head_slice,
    hook_counts,
    input_changed,
    padded,
    projection,
    prompt_ids,
    seen_inputs,
)
from tests.tiny import FAMILIES, tiny_model
from trimtab.activations import Head
from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.models.adding import add_to_heads
from trimtab.models.heads import find_heads
from trimtab.models.hooks import on_inputs, on_outputs
from trimtab.protocols import TokenMask

EXACT = {"rtol": 0.0, "atol": 1e-12}
HEADS = (Head(0, 1), Head(1, 0), Head(1, 3))


def deltas(family: str, dtype: torch.dtype = torch.float64) -> dict[Head, Tensor]:
    return {head: delta(family, seed, dtype) for seed, head in enumerate(HEADS)}


def double(family: str) -> Any:
    return tiny_model(family, dtype=torch.float64)


@contextlib.contextmanager
def by_hand(model: Any, family: str, scale: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Add the deltas with plain hooks; `scale` gives a factor for each position (batch, seq) of the input."""
    with contextlib.ExitStack() as stack:
        for head, vector in deltas(family).items():

            def change(x: Tensor, head: Head = head, vector: Tensor = vector) -> None:
                x[..., head_slice(family, head.head)] += scale(x)[..., None] * vector

            stack.enter_context(input_changed(projection(model, family, head.layer), change))
        yield


def everywhere(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=x.dtype)


def at_the_last(x: Tensor) -> Tensor:
    scale = torch.zeros(x.shape[:2], dtype=x.dtype)
    scale[:, -1] = 1
    return scale


@torch.no_grad()
def generated(model: Any, ids: Tensor, mask: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the sequences and the logits (batch, new, vocab; in float32 always) of five greedy steps."""
    mask = torch.ones_like(ids) if mask is None else mask
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits, 1)


@torch.no_grad()
def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    return model(input_ids=ids, **options).logits


def assert_moved(a: Tensor, b: Tensor) -> None:
    """Hold that two results differ by far more than any tolerance here: the edit under test does something."""
    assert (a - b).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_at_all_positions_it_equals_a_plain_pre_hook(family: str) -> None:
    model, ids = double(family), torch.cat([prompt_ids(7), prompt_ids(7, seed=1)])
    with add_to_heads(model, deltas(family), "all"):
        edited = logits(model, ids)
    with by_hand(model, family, everywhere):
        expected = logits(model, ids)
    torch.testing.assert_close(edited, expected, **EXACT)
    assert_moved(edited, logits(model, ids))


MASKS = {
    "boolean": torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 1, 0]], dtype=torch.bool),
    "weights": torch.tensor([[0.0, 0.5, 1.0, -2.0, 1.0], [3.0, 0.0, 0.0, 1.0, 0.25]]),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_under_a_mask_it_equals_a_plain_pre_hook_scaled_by_the_mask(family: str, kind: str) -> None:
    model, ids, mask = double(family), torch.cat([prompt_ids(5), prompt_ids(5, seed=1)]), MASKS[kind]
    with add_to_heads(model, deltas(family), mask):
        edited = logits(model, ids)
    with by_hand(model, family, lambda x: mask.to(x.dtype)):
        expected = logits(model, ids)
    torch.testing.assert_close(edited, expected, **EXACT)
    assert_moved(edited, logits(model, ids))


def test_a_token_mask_is_read_anew_before_each_forward() -> None:
    model, mask = double("llama"), TokenMask()
    with add_to_heads(model, deltas("llama"), mask):
        for n in (4, 6):
            ids = prompt_ids(n)
            mask.value = torch.arange(n)[None] >= 2
            edited = logits(model, ids)
            with add_to_heads(tiny := double("llama"), deltas("llama"), torch.arange(n)[None] >= 2):
                torch.testing.assert_close(edited, logits(tiny, ids), **EXACT)


def test_a_mask_of_ones_equals_all_and_a_mask_of_zeros_equals_no_edit_to_the_bit() -> None:
    model, ids = tiny_model("llama"), prompt_ids(6)
    results = []
    for positions in (
        "all",
        torch.ones(1, 6, dtype=torch.bool),
        torch.zeros(1, 6, dtype=torch.bool),
        torch.zeros(1, 6),
    ):
        with add_to_heads(model, deltas("llama", torch.float32), positions):
            results.append(logits(model, ids))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], logits(model, ids))
    assert torch.equal(results[3], logits(model, ids))


@pytest.mark.parametrize(
    ("family", "options"), [*((family, {}) for family in FAMILIES), ("llama", {"num_beams": 3})], ids=str
)
def test_in_generation_it_equals_a_plain_pre_hook_on_the_last_position(family: str, options: dict[str, Any]) -> None:
    model, ids = double(family), prompt_ids(6)
    with add_to_heads(model, deltas(family)):
        edited = generated(model, ids, **options)
    with by_hand(model, family, at_the_last):
        expected = generated(model, ids, **options)
    assert torch.equal(edited[0], expected[0])
    torch.testing.assert_close(edited[1], expected[1], **EXACT)
    assert_moved(edited[1][:, 0], generated(model, ids, **options)[1][:, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_at_all_positions_in_generation_the_prompt_is_edited_too(family: str) -> None:
    model, ids = double(family), prompt_ids(6)
    with add_to_heads(model, deltas(family), "all"):
        edited = generated(model, ids)
    with by_hand(model, family, everywhere):
        expected = generated(model, ids)
    assert torch.equal(edited[0], expected[0])
    torch.testing.assert_close(edited[1], expected[1], **EXACT)
    with add_to_heads(model, deltas(family)):
        assert_moved(edited[1][:, 0], generated(model, ids)[1][:, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_generation_equals_one_forward_masked_from_the_last_prompt_token_on(family: str) -> None:
    model, ids = double(family), prompt_ids(6)
    with add_to_heads(model, deltas(family)):
        sequences, steps = generated(model, ids)
    seen = sequences[:, :-1]
    for first, same in ((5, True), (6, False), (4, False)):
        with add_to_heads(model, deltas(family), torch.arange(seen.shape[1])[None] >= first):
            forward = logits(model, seen, use_cache=False)[:, 5:].float()
        if same:
            torch.testing.assert_close(forward, steps, rtol=0, atol=2e-6)
        else:
            assert_moved(forward, steps)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_left_padded_batch_generates_as_its_rows_do_one_by_one(family: str) -> None:
    # transformers' eager attention turns rows that are all padding into NaN in float64
    dtype, atol = (torch.float32, 2e-5) if family == "gemma2" else (torch.float64, 2e-6)
    model, rows = tiny_model(family, dtype=dtype), [prompt_ids(3), prompt_ids(7, seed=1), prompt_ids(5, seed=2)]
    with add_to_heads(model, deltas(family)):
        batch = generated(model, *padded(rows, "left"))
        for i, row in enumerate(rows):
            sequence, steps = generated(model, row)
            assert torch.equal(batch[0][i, -5:], sequence[0, -5:])
            torch.testing.assert_close(batch[1][i], steps[0], rtol=0, atol=atol)


def test_a_cached_conversation_goes_on_with_the_last_position_of_each_forward() -> None:
    model, first, second = double("llama"), prompt_ids(5), prompt_ids(4, seed=1)
    cache, plain_cache = DynamicCache(), DynamicCache()
    with add_to_heads(model, deltas("llama")):
        for part in (first, second):
            edited = logits(model, part, past_key_values=cache)
    with by_hand(model, "llama", at_the_last):
        for part in (first, second):
            expected = logits(model, part, past_key_values=plain_cache)
    torch.testing.assert_close(edited, expected, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_changes_but_the_declared_heads_at_the_declared_positions_and_what_follows_from_them(
    family: str,
) -> None:
    model, ids, site = tiny_model(family), prompt_ids(8), 1
    modules = {f"{i}": projection(model, family, i) for i in range(N_LAYERS)}
    modules["final"] = model.get_output_embeddings()
    vector = delta(family, 0, torch.float32)

    def run() -> dict[str, Tensor]:
        return seen_inputs(model, modules, lambda: model(ids, use_cache=False))

    plain = run()
    # registered before the look at the inputs, so that the look sees what the projection sees
    with add_to_heads(model, {Head(site, 2): vector}, (torch.arange(8) == 5)[None]):
        edited = run()
    changed = {name: (edited[name] != plain[name]) for name in modules}
    assert not changed["0"].any()
    inside = torch.zeros_like(changed["1"])
    inside[:, 5, head_slice(family, 2)] = True
    assert not changed["1"][~inside].any()
    torch.testing.assert_close(
        edited["1"][:, 5, head_slice(family, 2)], plain["1"][:, 5, head_slice(family, 2)] + vector
    )
    for name in ("2", "final"):
        assert not changed[name][:, :5].any()
        assert changed[name][:, 5:].any(-1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shift_before_the_projection_is_a_constant_after_it(family: str) -> None:
    model, ids = double(family), prompt_ids(6)
    module, whole = projection(model, family, 1), torch.zeros(N_HEADS * GEOMETRY[family].d_head, dtype=torch.float64)
    whole[head_slice(family, 2)] = delta(family, 0)
    x = torch.randn(1, 6, len(whole), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        constant = module(x + whole) - module(x)
    torch.testing.assert_close(constant, constant[:, :1].expand_as(constant), rtol=0, atol=1e-12)
    with add_to_heads(model, {Head(1, 2): delta(family, 0)}, "all"):
        before = logits(model, ids)
    with on_outputs([(module, lambda y: y + constant[0, 0])]):
        after = logits(model, ids)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-10)
    assert_moved(before, logits(model, ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_vector_follows_the_models_dtype(dtype: torch.dtype) -> None:
    model, ids = tiny_model("llama", dtype=dtype), prompt_ids(6)
    with add_to_heads(model, deltas("llama"), "all"):
        edited = logits(model, ids)
    with add_to_heads(model, deltas("llama", dtype), "all"):
        expected = logits(model, ids)
    assert edited.dtype == dtype
    assert torch.equal(edited, expected)


def test_nested_edits_add_up_and_end_one_after_the_other() -> None:
    model, ids = double("llama"), prompt_ids(6)
    inner, outer, hooks = {Head(1, 3): delta("llama", 7)}, deltas("llama"), hook_counts(model)
    both = {**outer, Head(1, 3): outer[Head(1, 3)] + inner[Head(1, 3)]}
    plain = generated(model, ids)[1]
    with add_to_heads(model, outer):
        once = generated(model, ids)[1]
        with add_to_heads(model, inner):
            twice = generated(model, ids)[1]
        assert torch.equal(generated(model, ids)[1], once)
    with add_to_heads(model, both):
        torch.testing.assert_close(twice, generated(model, ids)[1], rtol=0, atol=1e-10)
    assert hook_counts(model) == hooks
    assert torch.equal(generated(model, ids)[1], plain)
    assert_moved(once, plain)


def test_nested_edits_may_act_at_different_positions() -> None:
    model, ids, mask = double("llama"), prompt_ids(6), (torch.arange(6) > 3)[None]
    with add_to_heads(model, deltas("llama"), mask), add_to_heads(model, deltas("llama"), "all"):
        edited = logits(model, ids)
    with by_hand(model, "llama", lambda x: 1 + mask.to(x.dtype)):
        torch.testing.assert_close(edited, logits(model, ids), rtol=0, atol=1e-10)


@pytest.mark.parametrize("chosen", [{}, {Head(0, 1): torch.zeros(12)}], ids=["none", "zero"])
def test_nothing_to_add_changes_nothing_to_the_bit(chosen: dict[Head, Tensor]) -> None:
    model, ids = tiny_model("llama"), prompt_ids(6)
    with add_to_heads(model, chosen, "all"):
        assert torch.equal(logits(model, ids), logits(tiny_model("llama"), ids))


def test_an_exception_inside_the_block_passes_and_leaves_no_hooks() -> None:
    model = tiny_model("llama")
    hooks = hook_counts(model)
    with pytest.raises(KeyError, match="theirs"), add_to_heads(model, deltas("llama", torch.float32)):
        raise KeyError("theirs")
    assert hook_counts(model) == hooks


def test_the_users_own_hooks_stay() -> None:
    model, calls = tiny_model("llama"), []
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda *_: calls.append("pre"))
    model.model.register_forward_hook(lambda *_: calls.append("decoder"))
    hooks = hook_counts(model)
    with add_to_heads(model, deltas("llama", torch.float32), "all"):
        logits(model, prompt_ids(4))
    assert hook_counts(model) == hooks
    calls.clear()
    logits(model, prompt_ids(4))
    assert calls == ["pre", "decoder"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_of_an_adapted_model_passes_through_the_adapter(family: str) -> None:
    model, ids = double(family), prompt_ids(6)
    target = {"llama": "o_proj", "gpt2": "attn.c_proj"}[family]
    config = hf_peft.LoraConfig(
        r=2, target_modules=[target], init_lora_weights=False, fan_in_fan_out=family == "gpt2", lora_alpha=8
    )
    adapted = hf_peft.get_peft_model(model, config).double().eval()
    with add_to_heads(adapted, deltas(family)):
        steps = generated(adapted, ids)[1]
    # once merged, the adapter is part of the projection's own weights
    merged = adapted.merge_and_unload()
    with by_hand(merged, family, at_the_last):
        torch.testing.assert_close(steps, generated(merged, ids)[1], rtol=0, atol=1e-10)
    with by_hand(double(family), family, at_the_last):
        assert_moved(steps, generated(double(family), ids)[1])


# refusals


def edit_and_run(run: Callable[[Any], Any], positions: Any = "generated", **chosen: Any) -> Any:
    model = tiny_model("llama")
    with add_to_heads(model, chosen.get("deltas", deltas("llama", torch.float32)), positions), torch.no_grad():
        return run(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_positions_without_a_cache_are_refused_under_generated(family: str) -> None:
    model, ids = double(family), prompt_ids(5)
    with add_to_heads(model, deltas(family)):
        with pytest.raises(BadValue, match=r"one forward over 5 positions without a cache.*mask.*positions='all'"):
            logits(model, ids)
        with pytest.raises(BadValue, match="over 5 positions without a cache"):
            logits(model, ids, use_cache=False)
        with pytest.raises(BadValue, match="over 5 positions without a cache"):
            model.generate(ids, max_new_tokens=2, use_cache=False)
        with pytest.raises(BadValue, match="over 5 positions without a cache"), torch.no_grad():
            model(inputs_embeds=model.get_input_embeddings()(ids))


def test_one_position_needs_no_cache() -> None:
    model, ids = double("llama"), prompt_ids(1)
    with add_to_heads(model, deltas("llama")):
        edited = logits(model, ids, use_cache=False)
    with by_hand(model, "llama", everywhere):
        torch.testing.assert_close(edited, logits(model, ids, use_cache=False), **EXACT)


@pytest.mark.parametrize(
    ("family", "cache"),
    [*((family, "dynamic") for family in FAMILIES), ("llama", "static"), ("gpt2", "static"), ("gemma2", "static")],
)
def test_right_padding_is_refused_under_generated_and_left_padding_is_not(family: str, cache: str) -> None:
    model, rows = tiny_model(family), [prompt_ids(3), prompt_ids(5, seed=1)]
    with add_to_heads(model, deltas(family, torch.float32)):
        generated(model, *padded(rows, "left"), cache_implementation=cache)
        with pytest.raises(BadValue, match="needs left padding: some rows of this batch end in padding"):
            generated(model, *padded(rows, "right"), cache_implementation=cache)


@pytest.mark.parametrize("speculated", ["by a model", "from the prompt"])
def test_assisted_generation_is_refused_under_generated_and_is_what_it_says_under_all(speculated: str) -> None:
    """It predicts several tokens in one forward, of which "generated" would edit the last."""
    model, ids = double("llama"), prompt_ids(6)
    kind = {"assistant_model": double("llama")} if speculated == "by a model" else {"prompt_lookup_num_tokens": 3}
    with add_to_heads(model, deltas("llama")):
        with pytest.raises(BadValue, match=r"to predict [0-9]+ tokens at once, as assisted .* generation does"):
            generated(model, ids.repeat(1, 2), **kind)
        generated(model, ids)
    with add_to_heads(model, deltas("llama"), "all"):
        assisted, expected = (generated(model, ids.repeat(1, 2), **options)[0] for options in (kind, {}))
    assert torch.equal(assisted, expected)


def test_a_batch_packed_into_one_row_is_refused_under_generated() -> None:
    class PagedCache:
        """Has no length of its own, as that of transformers' generate_batch."""

    with pytest.raises(BadValue, match=r"PagedCache \(continuous batching\) packs several sequences into one"):
        edit_and_run(lambda model: model.model(prompt_ids(5), past_key_values=PagedCache()))


def test_right_padding_is_fine_where_a_mask_says_what_to_edit() -> None:
    model, rows = double("llama"), [prompt_ids(3), prompt_ids(5, seed=1)]
    ids, padding = padded(rows, "right")
    with add_to_heads(model, deltas("llama"), padding.bool()):
        batch = logits(model, ids, attention_mask=padding)
    for i, row in enumerate(rows):
        with add_to_heads(model, deltas("llama"), "all"):
            torch.testing.assert_close(batch[i, : row.shape[1]], logits(model, row)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 4), torch.bool), ((2, 5), torch.float32), ((1, 6), torch.bool), ((5, 1), torch.float32)]
)
def test_a_mask_of_another_shape_is_refused_with_both_shapes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    words = rf"the mask is \({shape[0]}, {shape[1]}\), the forward is \(1, 5\)"
    with pytest.raises(ShapeError, match=words):
        edit_and_run(lambda model: model(prompt_ids(5)), torch.ones(shape).to(dtype))


def test_a_mask_does_not_last_for_a_second_step_of_generation() -> None:
    with pytest.raises(ShapeError, match=r"the mask is \(1, 5\), the forward is \(1, 1\)"):
        edit_and_run(lambda model: generated(model, prompt_ids(5)), torch.ones(1, 5, dtype=torch.bool))


def test_a_token_mask_without_a_value_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"no value: set mask\.value before each forward"):
        edit_and_run(lambda model: model(prompt_ids(5)), TokenMask())


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_word_for_the_positions_is_refused() -> None:
    with pytest.raises(BadValue, match=r"'generated', 'all' or a mask \(batch, seq\), got 'last'"):
        edit_and_run(lambda model: None, "last")


@pytest.mark.parametrize("head", [Head(3, 0), Head(0, 4), Head(-1, 0), Head(0, -1)])
def test_a_head_that_the_model_lacks_is_refused_with_what_it_has(head: Head) -> None:
    words = f"no head {head.head} in layer {head.layer}: the model has layers 0-2 of 4 heads"
    with pytest.raises(BadValue, match=words):
        edit_and_run(lambda model: None, deltas={head: torch.ones(12)})


@pytest.mark.parametrize("width", [10, 48])
def test_a_delta_of_another_width_is_refused_with_both_widths(width: int) -> None:
    with pytest.raises(ShapeError, match=rf"layer 1 head 2: expected \(12,\), got \({width},\)"):
        edit_and_run(lambda model: None, deltas={Head(1, 2): torch.ones(width)})


@pytest.mark.parametrize("bad", [{Head(9, 0): torch.ones(12)}, {Head(0, 0): torch.ones(5)}])
def test_a_refused_edit_leaves_no_hooks(bad: dict[Head, Tensor]) -> None:
    model = tiny_model("llama")
    hooks = hook_counts(model)
    with pytest.raises((BadValue, ShapeError)), add_to_heads(model, {Head(0, 1): torch.ones(12), **bad}, "all"):
        pass
    assert hook_counts(model) == hooks


def compiled_wrapper() -> Any:
    return torch.compile(tiny_model("llama"), backend="eager")


def compiled_in_place() -> Any:
    model = tiny_model("llama")
    model.compile(backend="eager")
    return model


def compiled_layer() -> Any:
    model = tiny_model("llama")
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    return model


def compiled_module() -> Any:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.compile(backend="eager")
    return model


@pytest.mark.parametrize("make", [compiled_wrapper, compiled_in_place, compiled_layer, compiled_module])
def test_a_model_compiled_before_is_refused(make: Callable[[], Any]) -> None:
    model = make()
    with (
        pytest.raises(Incompatible, match="compiled before the edit was applied"),
        add_to_heads(model, deltas("llama", torch.float32), "all"),
    ):
        pass


@pytest.mark.usefixtures("unchecked")
def test_compiling_inside_the_block_keeps_the_edit_and_leaving_it_drops_the_edit() -> None:
    model, ids = double("llama"), prompt_ids(6)
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:1], 1
    with add_to_heads(model, {Head(0, 1): delta("llama", 0)}, "all"):
        expected = logits(model, ids)
        compiled = torch.compile(model, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(logits(compiled, ids), expected, **EXACT)
    assert_moved(expected, logits(model, ids))
    torch.testing.assert_close(logits(compiled, ids), logits(model, ids), **EXACT)


def test_hooks_that_never_fire_while_forwards_run_are_an_error() -> None:
    model = tiny_model("llama")
    sites = find_heads(model)
    attention = model.model.layers[1].self_attn
    attention.o_proj = nn.Linear(48, 48, bias=False)
    hooks = hook_counts(model)
    with (
        pytest.raises(Incompatible, match=r"never acted on layer\(s\) \[1\]"),
        add_to_heads(model, deltas("llama", torch.float32), "all", heads=sites),
    ):
        logits(model, prompt_ids(4))
    assert hook_counts(model) == hooks
    with add_to_heads(model, {Head(0, 1): torch.ones(12)}, "all", heads=sites):
        logits(model, prompt_ids(4))


def test_a_forward_that_failed_is_not_taken_for_one_in_which_hooks_did_not_fire() -> None:
    model = tiny_model("llama")
    with add_to_heads(model, deltas("llama", torch.float32)):
        with pytest.raises(BadValue, match="without a cache"):
            logits(model, prompt_ids(4))
        with pytest.raises(IndexError):
            logits(model, torch.full((1, 1), 10_000))


def test_a_block_without_any_forward_is_no_error() -> None:
    model = tiny_model("llama")
    with add_to_heads(model, deltas("llama", torch.float32)):
        pass
    assert torch.equal(logits(model, prompt_ids(4)), logits(tiny_model("llama"), prompt_ids(4)))


# the two general hooks


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, float]:
        return x * scale, scale


def test_a_first_input_given_by_name_is_read_and_replaced_like_one_given_by_place() -> None:
    module, seen = TwoOutputs(), []
    x = torch.ones(2)
    with on_inputs([(module, lambda x: seen.append(x.clone())), (module, lambda x: x + 1)]):
        assert torch.equal(module(x, scale=3.0)[0], torch.full((2,), 6.0))
        assert torch.equal(module(x=x, scale=3.0)[0], torch.full((2,), 6.0))
    assert all(torch.equal(s, x) for s in seen) and len(seen) == 2
    assert torch.equal(module(x)[0], x)


def test_the_first_of_several_outputs_is_replaced_and_the_rest_kept() -> None:
    module, linear = TwoOutputs(), nn.Identity()
    x = torch.ones(2)
    with on_outputs([(module, lambda y: y + 1), (linear, lambda y: y * 5)]):
        replaced, scale = module(x, scale=2.0)
        assert torch.equal(linear(x), 5 * x)
    assert torch.equal(replaced, torch.full((2,), 3.0)) and scale == 2.0
    assert torch.equal(linear(x), x)
