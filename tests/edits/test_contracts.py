"""The laws that every Edit keeps, over one list of edits (tests/cases.py) and several model families."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.cases import (
    EDITS,
    FAMILIES,
    TUNING,
    VARIANTS,
    every_edit,
    every_edit_and_family,
    moves,
    one_shift,
    other_shift,
    projections,
    slowly,
    tagged,
)
from tests.foreign import Nudge
from tests.observing import attributes_of, generated, logits, random_state, state_of, tokens
from tests.tiny import tiny_model
from trimtab.activations import Head
from trimtab.edits.disk import load_edit
from trimtab.errors import BadValue, Incompatible, UnsupportedModel
from trimtab.protocols import Cost, Edit

# models of any dtype normalise in float32 inside, so rounding of 1e-7 reaches the logits (of size 5)
CLOSE = {"rtol": 0.0, "atol": 5e-5}
SAVED_TOO = ("no edit", "few-shot", "retrieved few-shot", "few-shot + shift", "shift within a shift")
every_family = pytest.mark.parametrize("family", FAMILIES)
vector_edit = pytest.mark.parametrize("name", tagged("vectors"))
head_edit = pytest.mark.parametrize("name", [n for n in tagged("vectors") if n not in tagged("residual")])


@cache
def the_model(family: str) -> Any:
    # in float64 the smallest number that Gemma-2 masks padding with is minus infinity to its float32 softmax
    model = tiny_model(family, dtype=torch.float32 if family == "gemma2" else torch.float64)
    # random models say the end token at times; rows of a batch should all have the same length here
    model.generation_config.eos_token_id = None
    return model


@cache
def unedited(family: str, frozen_weights: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return what the model that all tests share says and generates, once for all of them.

    torch multiplies by frozen weights in another order (Gemma-2's prefill moves by one unit in the last place).
    """
    model = the_model(family)
    with frozen(model) if frozen_weights else contextlib.nullcontext():
        return logits(model), generated(model, tokens())


@cache
def made(name: str, family: str) -> tuple[Any, Edit]:
    """Return a model that all tests share, and the edit of this name for it, made once."""
    model = the_model(family)
    return model, EDITS[name].make(model)


def layers_of(model: Any) -> Any:
    """Name the layers by hand."""
    kind = model.config.model_type
    return (
        model.transformer.h if kind == "gpt2" else model.gpt_neox.layers if kind == "gpt_neox" else model.model.layers
    )


def some_positions() -> Tensor:
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 4:6], mask[1, 7] = True, True
    return mask


def from_position(ids: Tensor, first: int) -> Tensor:
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[:, first:] = True
    return mask


@contextlib.contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Let no weight require gradients."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def plainly_added(model: Any, adds: Mapping[Any, Tensor], mask: Tensor) -> Iterator[None]:
    """Add the vectors at the mask with bare torch hooks: the oracle."""

    def adder(layer: int) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            x = args[0].clone().unflatten(-1, (4, -1))
            for head, vector in adds.items():
                if isinstance(head, Head) and head.layer == layer:
                    x[:, :, head.head] += mask[..., None] * vector
            return (x.flatten(2),)

        return hook

    def after(layer: int) -> Callable[..., Any]:
        def hook(module: Any, args: Any, out: Any) -> Any:
            moved = (out[0] if isinstance(out, tuple) else out) + mask[..., None] * adds.get(layer, torch.zeros(1))
            moved = moved.to(out[0].dtype if isinstance(out, tuple) else out.dtype)
            return (moved, *out[1:]) if isinstance(out, tuple) else moved

        return hook

    handles = [m.register_forward_pre_hook(adder(layer)) for layer, m in enumerate(projections(model))]
    handles += [m.register_forward_hook(after(i)) for i, m in enumerate(layers_of(model)) if i in adds]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def head_activations(model: Any) -> Tensor:
    """Return what reaches the projections: layer batch seq head d_head, after all hooks in place so far."""
    read: list[Tensor] = []
    handles = [m.register_forward_pre_hook(lambda m, args: read.append(args[0].clone())) for m in projections(model)]
    try:
        logits(model)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(read).unflatten(-1, (4, -1))


def at_zero(name: str, model: Any) -> Edit | None:
    """Return the edit of this name at strength 0, or None if it has no strength."""
    case = EDITS[name]
    if case.at_zero is not None:
        return case.at_zero(model)
    return case.make(model).scaled(0) if "scales" in case.tags else None


@every_edit_and_family
def test_strength_zero_is_bit_identical_to_no_edit(family, name):
    model, edit = made(name, family)
    before, said = unedited(family, "tunes" in EDITS[name].tags)  # a tuned model's base is frozen
    zero = at_zero(name, model)
    if zero is not None:
        for positions in ("all", some_positions()):
            with zero.applied(model, positions) as edited:
                assert torch.equal(logits(edited), before)
        with zero.applied(model) as edited:
            again = generated(edited, tokens())
        assert torch.equal(again[0], said[0])
        assert torch.equal(again[1], said[1])
    # the control: at their own strength the edits that act do move the logits, far beyond rounding
    with edit.applied(model, some_positions()) as edited:
        moved = float((logits(edited) - before).abs().max())
    assert moved > 0.01 if moves(name) else moved == 0


@pytest.mark.parametrize("name", slowly(tagged("scales"), *VARIANTS))
def test_strengths_multiply_and_can_be_set(name):
    model, edit = made(name, "llama-gqa")

    def says(some: Edit) -> Tensor:
        with some.applied(model, "all") as edited:
            return logits(edited)

    torch.testing.assert_close(says(edit.scaled(2).scaled(0.5)), says(edit), **CLOSE)
    assert torch.equal(says(edit.at_strength(edit.strength)), says(edit))
    assert torch.equal(says(edit.at_strength(2 * edit.strength)), says(edit.scaled(2)))
    assert torch.equal(says(edit.scaled(2)), says(edit)) != moves(name)
    for mistake in (float("nan"), float("inf")):
        if moves(name):
            with pytest.raises(BadValue, match="finite"):
                edit.scaled(mistake)


@pytest.mark.parametrize("name", slowly([n for n in EDITS if "scales" not in EDITS[n].tags], *VARIANTS))
def test_edits_without_a_strength_say_so(name):
    _, edit = made(name, "llama-gqa")
    assert edit.at_strength(edit.strength) is edit
    with pytest.raises(BadValue, match="strength"):
        edit.scaled(2)


@every_edit_and_family
def test_hooks_and_weights_are_as_before_on_exit(family, name):
    model, edit = made(name, family)
    before, draws = state_of(model), random_state()
    with edit.applied(model) as edited:
        generated(edited, tokens())
        if EDITS[name].tags & {"vectors", "erases"}:
            assert state_of(model)["hooks"] != before["hooks"]
    assert state_of(model) == before
    assert random_state() == draws


@pytest.mark.parametrize("name", slowly(list(EDITS), *VARIANTS))
def test_no_attribute_is_left_on_the_model_or_a_module(name):
    model = tiny_model("llama-gqa")
    generated(model, tokens())  # what generation itself leaves there
    before = attributes_of(model)
    with EDITS[name].make(model).applied(model) as edited:
        generated(edited, tokens())
    assert attributes_of(model) == before


@every_edit
def test_hooks_and_weights_are_as_before_after_an_exception(name):
    model, edit = made(name, "gpt2")
    before = state_of(model)
    with pytest.raises(ZeroDivisionError), edit.applied(model) as edited:
        generated(edited, tokens())
        1 / 0  # noqa: B018
    assert state_of(model) == before


@pytest.mark.parametrize("name", [n for n in tagged("vectors", "erases") if n not in tagged("foreign")])
def test_hooks_are_as_before_after_the_edit_refuses_a_forward(name):
    model, edit = made(name, "llama")
    before = state_of(model)
    with pytest.raises(BadValue, match="pass a mask"), edit.applied(model, "generated") as edited:
        logits(edited)
    assert state_of(model) == before


def nesting() -> Iterator[Any]:
    for name, case in EDITS.items():
        slow = [pytest.mark.slow] * (name in VARIANTS)
        yield pytest.param(name, "generated", marks=slow)
        if case.tags & {"vectors", "erases"}:  # the others act everywhere
            yield pytest.param(name, "all", marks=slow)


@pytest.mark.parametrize("name, positions", list(nesting()))
def test_each_nested_edit_leaves_the_outer_one_in_place(name, positions):
    model, edit = made(name, "llama-gqa")
    before = state_of(model)
    with other_shift(model).applied(model, positions):
        outer, alone = state_of(model), generated(model, tokens())[1]
        with edit.applied(model, positions) as edited:
            both = generated(edited, tokens())[1]
        assert state_of(model) == outer
        assert torch.equal(generated(model, tokens())[1], alone)
        with pytest.raises(ZeroDivisionError), edit.applied(model, positions):
            1 / 0  # noqa: B018
        assert state_of(model) == outer
    assert state_of(model) == before
    assert torch.equal(both, alone) != moves(name)


@every_edit
def test_modes_of_modules_survive_an_edit(name):
    model = tiny_model("llama", dtype=torch.float64)
    model.train()
    model.model.layers[1].eval()
    modules, before = dict(model.named_modules()), state_of(model)["training"]
    with EDITS[name].make(model).applied(model, "all"):
        assert {key: module.training for key, module in modules.items()} == before
    assert state_of(model)["training"] == before


@every_family
@head_edit
def test_only_the_declared_heads_and_positions_change(family, name):
    model, case, mask = the_model(family), EDITS[name], some_positions()
    adds = case.adds(model)
    plain = head_activations(model)
    with case.make(model).applied(model, mask):
        steered = head_activations(model)
    # downstream of the first edited layer activations move as a consequence; the first one moves by the vector alone
    first = min(head.layer for head in adds)
    expected = torch.zeros_like(plain[first])
    rounding = 1e-12 if plain.dtype == torch.float64 else 2e-6
    for head, vector in adds.items():
        if head.layer == first:
            expected[:, :, head.head] = mask[..., None] * vector
    assert torch.allclose(steered[first] - plain[first], expected, rtol=0, atol=rounding)
    assert torch.equal(steered[first][~mask], plain[first][~mask])
    assert torch.equal(steered[:first], plain[:first])
    for row, earliest in enumerate((4, 7)):
        assert torch.equal(steered[:, row, :earliest], plain[:, row, :earliest])


@every_family
@vector_edit
def test_an_edit_equals_its_vectors_added_by_bare_hooks(family, name):
    model, case, mask = the_model(family), EDITS[name], some_positions()
    with plainly_added(model, case.adds(model), mask):
        expected = logits(model)
    with case.make(model).applied(model, mask) as edited:
        assert torch.allclose(logits(edited), expected, **CLOSE)


@vector_edit
def test_all_positions_are_those_of_a_mask_of_ones(name):
    model, case = the_model("gpt2"), EDITS[name]
    with plainly_added(model, case.adds(model), torch.ones(2, 9)):
        expected = logits(model)
    with case.make(model).applied(model, "all") as edited:
        assert torch.allclose(logits(edited), expected, **CLOSE)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
@pytest.mark.parametrize("name", slowly(tagged("saves"), *VARIANTS))
def test_a_saved_and_loaded_edit_gives_equal_logits(family, name, tmp_path):
    model, edit = made(name, family)
    edit.save(tmp_path / "edit")
    loaded = load_edit(tmp_path / "edit", kinds=[Nudge])
    with edit.applied(model, "all") as edited:
        expected = logits(edited)
    with loaded.applied(model, "all") as edited:
        assert torch.equal(logits(edited), expected)
    assert loaded.describe() == json.loads(json.dumps(edit.describe()))
    if name in TUNING or name in (
        "shift",
        "residual",
        "foreign",
        "weights",
        "whole weights",
        "eraser",
        "ablation",
    ):  # prompts count their texts, stacks their parts
        written = sum(file.stat().st_size for file in (tmp_path / "edit").rglob("*") if file.is_file())
        assert edit.stored_bytes == written


@pytest.mark.parametrize("name", [n for n in EDITS if "saves" not in EDITS[n].tags and n not in SAVED_TOO])
def test_edits_without_a_form_on_disk_say_so(name, tmp_path):
    _, edit = made(name, "llama-gqa")
    with pytest.raises(Incompatible, match="has no form on disk"):
        edit.save(tmp_path / "edit")
    assert not list(tmp_path.iterdir())


def merging() -> Iterator[Any]:
    for family in FAMILIES:
        for name in tagged("merges"):
            if (name, family) == (
                "residual",
                "gemma2",
            ):  # no stock class gives its MLP a bias
                continue
            slow = name in VARIANTS or (name in TUNING and family in ("gpt-neox", "gemma2"))
            yield pytest.param(family, name, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize("family, name", list(merging()))
def test_a_merged_edit_is_the_edit_at_all_positions_in_a_plain_model(family, name):
    model, edit = made(name, family)
    before = state_of(model)
    with edit.applied(model, "all") as edited:
        expected = logits(edited)
    if family == "gemma2" and EDITS[name].tags & {"residual", "erases"}:  # no bias of its MLP, and a norm behind it
        with pytest.raises(UnsupportedModel, match=r"cannot carry a bias|use the edit as it is"):
            edit.merged(model)
        return
    plain = edit.merged(model)
    assert torch.allclose(logits(plain), expected, **CLOSE)
    assert state_of(model) == before


@pytest.mark.parametrize("name", slowly([n for n in EDITS if "merges" not in EDITS[n].tags], *VARIANTS))
def test_edits_that_are_no_change_of_weights_refuse_to_be_merged(name):
    model, edit = made(name, "llama-gqa")
    before = state_of(model)
    with pytest.raises((BadValue, UnsupportedModel), match="as it is"):
        edit.merged(model)
    assert state_of(model) == before


@every_edit_and_family
def test_a_left_padded_batch_equals_one_by_one(family, name):
    model, edit = made(name, family)
    lengths = (4, 9, 6)
    ids, padding = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 9 - length :], padding[row, 9 - length :] = tokens(3)[row, :length], 1
    with edit.applied(model) as edited:
        together, scores = generated(edited, ids, padding)
        for row, length in enumerate(lengths):
            alone, alone_scores = generated(edited, ids[row : row + 1, 9 - length :])
            assert torch.equal(together[row, 9:], alone[0, length:])
            assert torch.allclose(scores[row], alone_scores[0], **CLOSE)


@every_edit_and_family
def test_cached_generation_equals_one_forward_with_a_mask_from_the_final_prompt_position_on(family, name):
    model, case = the_model(family), EDITS[name]
    edit, ids = case.make(model), tokens()
    last = ids.shape[1] - 1
    with edit.applied(model) as edited:
        whole, scores = generated(edited, ids)
    seen = whole[:, :-1]

    def scored_from(first: int) -> Tensor:
        with edit.applied(model, from_position(seen, first)) as edited:
            return logits(edited, seen)[:, last:]

    assert torch.allclose(scored_from(last), scores, **CLOSE)
    if case.tags & {"vectors", "erases"}:
        for elsewhere in (last - 1, last + 1):
            assert not torch.allclose(scored_from(elsewhere), scores, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt-neox", "gemma2"])
@pytest.mark.parametrize("positions", ["all", "mask", "generated"])
def test_two_shifts_applied_nested_equal_their_sum(family, positions):
    model = the_model(family)
    a, b = one_shift(model), other_shift(model)
    where = some_positions() if positions == "mask" else positions
    run = (lambda m: generated(m, tokens())[1]) if positions == "generated" else logits
    with (a + b).applied(model, where) as edited:
        expected = run(edited)
    for outer, inner in ((a, b), (b, a)):
        with outer.applied(model, where) as once, inner.applied(once, where) as twice:
            assert torch.allclose(run(twice), expected, **CLOSE)
    with a.applied(model, where) as edited:
        assert not torch.allclose(run(edited), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [n for n, case in EDITS.items() if not case.tags & {"tunes", "weights"}])
def test_an_edit_that_leaves_the_prompt_unedited_leaves_its_cache_as_it_was(name):
    model, case, ids = the_model("llama-gqa"), EDITS[name], tokens()
    edit = case.make(model)
    assert edit.leaves_prompt_unedited

    def keys(m: Any) -> Tensor:
        with torch.no_grad():
            cache = m(input_ids=ids, use_cache=True, past_key_values=DynamicCache(config=m.config)).past_key_values
        return torch.stack([layer.keys for layer in cache.layers])

    before = keys(model)
    with edit.applied(model) as edited:
        after = keys(edited)
    assert torch.equal(after[..., :-1, :], before[..., :-1, :])
    # the last position is where generation starts; from the second layer on its keys feel the edit
    assert torch.equal(after[..., -1, :], before[..., -1, :]) == (not case.tags & {"vectors", "erases"})


@every_edit
def test_every_edit_keeps_the_protocol_and_describes_itself_in_plain_values(name):
    case, model = EDITS[name], the_model("llama")
    edit = case.make(model)
    assert isinstance(edit, Edit)
    assert isinstance(edit.cost, Cost)
    assert edit.name
    assert json.loads(json.dumps(edit.describe()))["kind"]
    prompt = edit.prompt("What is coal?")
    if "prompts" in case.tags:
        assert prompt.endswith("Q: What is coal?\nA:")
    else:
        assert prompt is None


@every_edit
def test_a_renamed_edit_and_one_with_more_in_its_record_do_the_same(name):
    model, edit = made(name, "llama-gqa")
    other = edit.renamed("Another").with_record(note="mine")
    assert (other.name, edit.name) == ("Another", EDITS[name].make(model).name)
    assert other.record["note"] == "mine" and "note" not in edit.record
    assert other.strength == edit.strength
    with edit.applied(model, "all") as edited:
        expected = logits(edited)
    with other.applied(model, "all") as edited:
        assert torch.equal(logits(edited), expected)


@every_edit
def test_an_edit_on_its_best_places_is_part_of_it_and_more_than_all_are_refused(name):
    model, edit = made(name, "llama-gqa")
    with edit.applied(model, "all") as edited:
        expected = logits(edited)
    with edit.first(edit.n_sites).applied(model, "all") as edited:
        assert torch.equal(logits(edited), expected)
    with pytest.raises(BadValue, match=rf"first {edit.n_sites + 1} "):
        edit.first(edit.n_sites + 1)
    if edit.n_sites > 1:
        with edit.first(1).applied(model, "all") as edited:
            assert edit.first(1).n_sites == 1
            assert not torch.equal(logits(edited), expected)


@vector_edit
def test_a_random_counterpart_adds_as_much_at_the_same_places_in_another_direction(name):
    model, edit = made(name, "llama-gqa")
    if "draws" not in EDITS[name].tags:
        with pytest.raises(BadValue):
            edit.randomised(0)
        return
    drawn, again, other = (edit.randomised(seed) for seed in (11, 11, 12))
    adds = {site: float(vector.norm()) for site, vector in EDITS[name].adds(model).items()}
    assert {site: float(vector.norm()) for site, vector in drawn.deltas.items()} == pytest.approx(adds, rel=1e-5)
    said = []
    for some in (edit, drawn, again, other):
        with some.applied(model, "all") as edited:
            said.append(logits(edited))
    assert torch.equal(said[1], said[2])
    assert all(not torch.equal(said[i], said[j]) for i, j in ((0, 1), (1, 3)))
    assert drawn.strength == edit.strength


@every_family
@pytest.mark.parametrize("name", tagged("constants"))
def test_constants_added_to_modules_outputs_are_the_edit_at_all_positions(family, name):
    model, edit = made(name, family)
    with edit.applied(model, "all") as edited:
        expected = logits(edited)

    def adding(constant: Tensor) -> Callable[..., Any]:
        def hook(module: Any, args: Any, out: Any) -> Any:
            first = out[0] if isinstance(out, tuple) else out
            moved = first + constant.to(first)
            return (moved, *out[1:]) if isinstance(out, tuple) else moved

        return hook

    handles = [model.get_submodule(n).register_forward_hook(adding(c)) for n, c in edit.constants(model).items()]
    try:
        assert handles
        assert torch.allclose(logits(model), expected, **CLOSE)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", [name for name in EDITS if name not in tagged("constants")])
def test_edits_that_are_no_constants_say_so(name):
    model, edit = made(name, "llama-gqa")
    with pytest.raises(BadValue, match="use it as it is"):
        edit.constants(model)
