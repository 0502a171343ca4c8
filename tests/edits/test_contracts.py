"""The laws that every Edit keeps, over one list of edits and several model families."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import DynamicCache

from tests.tiny import VOCAB, tiny_model
from trimtab.activations import Head
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.edits.residual import ResidualShift
from trimtab.edits.retrieval import Retrieved
from trimtab.edits.shifts import HeadShift
from trimtab.errors import BadValue
from trimtab.models.identity import fingerprint
from trimtab.peft import IA3, Bottleneck, LoRA, TunedEdit, TuningMethod
from trimtab.protocols import Cost, Edit

FEW_SHOT = Prompted((("What is snow?", "Snow is white."),))
RETRIEVED = Retrieved(
    ("What is snow?", "What is coal?"), ("Q: What is snow?\nA: White.", "Q: What is coal?\nA: Black."), 1
)
# models of any dtype normalise in float32 inside, so rounding of 1e-7 reaches the logits (of size 5)
CLOSE = {"rtol": 0.0, "atol": 5e-5}


def one_shift(model: Any) -> HeadShift:
    return _shift(model, (Head(0, 1), Head(1, 3)), seed=1)


def other_shift(model: Any) -> HeadShift:
    # shares one head with the first, so that sums have something to add up
    return _shift(model, (Head(1, 3), Head(2, 0)), seed=2)


def _shift(model: Any, heads: tuple[Head, ...], seed: int) -> HeadShift:
    generator = torch.Generator().manual_seed(seed)
    d_head = projections(model)[0].weight.numel() // model.config.hidden_size // 4
    directions = normalize(torch.randn(len(heads), d_head, generator=generator, dtype=torch.float64), dim=1)
    sigma = 1 + torch.rand(len(heads), generator=generator, dtype=torch.float64)
    return HeadShift(heads, directions, sigma, 2.0, record={"model": fingerprint(model)})


def residual_shift(model: Any) -> ResidualShift:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(2, model.config.hidden_size, generator=generator, dtype=torch.float64)
    return ResidualShift((1, 0), values, 0.5, record={"model": fingerprint(model)})


def vectors(shift: HeadShift, alpha: float = 1.0) -> dict[Head, Tensor]:
    """Write out what a shift adds, times alpha (Li et al. 2023, eq. 3)."""
    return {h: alpha * 2.0 * shift.sigma[i] * shift.directions[i] for i, h in enumerate(shift.heads)}


def total(a: dict[Head, Tensor], b: dict[Head, Tensor]) -> dict[Head, Tensor]:
    zero = torch.zeros((), dtype=torch.float64)
    return {h: a.get(h, zero) + b.get(h, zero) for h in a.keys() | b.keys()}


def one_tuned(method: TuningMethod) -> Callable[[Any], TunedEdit]:
    """Return what makes an edit of this method whose parts were moved at random instead of trained."""

    def make(model: Any) -> TunedEdit:
        attached, generator = method.attach(model, seed=0), torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in attached.trainable().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        tensors = {name: t.clone() for name, t in attached.tensors().items()}
        attached.detach()
        return TunedEdit(method, tensors, record={"model": fingerprint(model)})

    return make


class Case(NamedTuple):
    """An edit, the same edit at strength 0, and the vectors that it ought to add to which heads."""

    make: Callable[[Any], Edit]
    at_zero: Callable[[Any], Edit]
    adds: Callable[[Any], dict[Any, Tensor]] = lambda model: {}
    """By head, or by layer (a number) for what is added to the residual stream."""
    tags: frozenset[str] = frozenset()


TUNED = frozenset({"tunes", "saves"})
HOULSBY = Bottleneck("houlsby", 4)

CASES: dict[str, Case] = {
    "no edit": Case(lambda m: NoEdit(), lambda m: NoEdit()),
    "few-shot": Case(lambda m: FEW_SHOT, lambda m: FEW_SHOT, tags=frozenset({"prompts"})),
    "retrieved few-shot": Case(lambda m: RETRIEVED, lambda m: RETRIEVED, tags=frozenset({"prompts"})),
    "shift": Case(
        one_shift,
        lambda m: one_shift(m).scaled(0),
        lambda m: vectors(one_shift(m)),
        frozenset({"acts", "saves"}),
    ),
    "scaled": Case(
        lambda m: one_shift(m).scaled(2.5),
        lambda m: one_shift(m).scaled(2.5).scaled(0),
        lambda m: vectors(one_shift(m), 2.5),
        frozenset({"acts", "saves"}),
    ),
    "negative": Case(
        lambda m: one_shift(m).scaled(-1),
        lambda m: one_shift(m).scaled(-0.0),
        lambda m: vectors(one_shift(m), -1.0),
        frozenset({"acts", "saves"}),
    ),
    "sum": Case(
        lambda m: one_shift(m) + other_shift(m),
        lambda m: (one_shift(m) + other_shift(m)).scaled(0),
        lambda m: total(vectors(one_shift(m)), vectors(other_shift(m))),
        frozenset({"acts", "saves"}),
    ),
    "residual": Case(
        residual_shift,
        lambda m: residual_shift(m).scaled(0),
        lambda m: {layer: 0.5 * residual_shift(m).vectors[i] for i, layer in enumerate((1, 0))},
        frozenset({"acts", "saves", "residual"}),
    ),
    "LoRA": Case(one_tuned(LoRA(r=4)), lambda m: one_tuned(LoRA(r=4))(m).scaled(0), tags=TUNED),
    "IA3": Case(one_tuned(IA3()), lambda m: one_tuned(IA3())(m).scaled(0), tags=TUNED),
    "bottleneck": Case(one_tuned(HOULSBY), lambda m: one_tuned(HOULSBY)(m).scaled(0), tags=TUNED),
    "few-shot + shift": Case(
        lambda m: Stacked((FEW_SHOT, one_shift(m))),
        lambda m: Stacked((FEW_SHOT, one_shift(m).scaled(0))),
        lambda m: vectors(one_shift(m)),
        frozenset({"acts", "prompts"}),
    ),
    "shift within a shift": Case(
        lambda m: Stacked((one_shift(m), other_shift(m))),
        lambda m: Stacked((one_shift(m).scaled(0), other_shift(m).scaled(0))),
        lambda m: total(vectors(one_shift(m)), vectors(other_shift(m))),
        frozenset({"acts"}),
    ),
}


def moves(name: str) -> bool:
    """Return whether the edit changes what the model says to a prompt."""
    return bool(CASES[name].tags & {"acts", "tunes"})


def tagged(tag: str) -> list[str]:
    return [name for name, case in CASES.items() if tag in case.tags]


# grouped queries; Conv1D and learned positions; parallel attention and MLP; soft caps, sliding windows, wide heads
every_family = pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox", "gemma2"])
every_edit = pytest.mark.parametrize("name", CASES)
acting_edit = pytest.mark.parametrize("name", tagged("acts"))
head_edit = pytest.mark.parametrize("name", [n for n in tagged("acts") if n not in tagged("residual")])


@cache
def the_model(family: str) -> Any:
    # in float64 the smallest number that Gemma-2 masks padding with is minus infinity to its float32 softmax
    model = tiny_model(family, dtype=torch.float32 if family == "gemma2" else torch.float64)
    # random models say the end token at times; rows of a batch should all have the same length here
    model.generation_config.eos_token_id = None
    return model


def projections(model: Any) -> list[Any]:
    """Name the attention output projections by hand, independently of how the product finds them."""
    kind = model.config.model_type
    if kind == "gpt2":
        return [block.attn.c_proj for block in model.transformer.h]
    if kind == "gpt_neox":
        return [block.attention.dense for block in model.gpt_neox.layers]
    return [block.self_attn.o_proj for block in model.model.layers]


def layers_of(model: Any) -> Any:
    """Name the layers by hand."""
    kind = model.config.model_type
    return (
        model.transformer.h if kind == "gpt2" else model.gpt_neox.layers if kind == "gpt_neox" else model.model.layers
    )


def tokens(batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(7))


def some_positions() -> Tensor:
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 4:6], mask[1, 7] = True, True
    return mask


def from_position(ids: Tensor, first: int) -> Tensor:
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[:, first:] = True
    return mask


@torch.no_grad()
def logits(model: Any, ids: Tensor | None = None) -> Tensor:
    return model(input_ids=tokens() if ids is None else ids, use_cache=False).logits.double()


def generated(model: Any, ids: Tensor, padding: Tensor | None = None, n: int = 5) -> tuple[Tensor, Tensor]:
    """Return (whole sequences, logits of the new tokens) of cached greedy decoding."""
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if padding is None else padding,
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences, torch.stack(out.logits, dim=1).double()


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


def state_of(model: Any) -> dict[str, Any]:
    """Return everything an edit could leave behind: hooks, modes, configs, and the weights' bytes."""
    hooks = {
        name: tuple(
            tuple(getattr(m, kind))
            for kind in ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks")
        )
        for name, m in model.named_modules()
    }
    return {
        "hooks": hooks,
        "forwards": {name: "forward" in vars(m) for name, m in model.named_modules()},
        "training": {name: m.training for name, m in model.named_modules()},
        "config": json.dumps([model.config.to_dict(), model.generation_config.to_dict()], default=str),
        "weights": {name: t.numpy().tobytes() for name, t in model.state_dict().items()},
        "gradients": {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()},
    }


@every_family
@every_edit
def test_strength_zero_is_bit_identical_to_no_edit(family, name):
    model, case = the_model(family), CASES[name]
    # torch multiplies by frozen weights in another order (Gemma-2's prefill moves by one unit in the last place), and a
    # tuned model's base is frozen
    with frozen(model) if "tunes" in case.tags else contextlib.nullcontext():
        before, said = logits(model), generated(model, tokens())
    for positions in ("all", some_positions()):
        with case.at_zero(model).applied(model, positions) as edited:
            assert torch.equal(logits(edited), before)
    # the control: at their own strength the edits that act do move the logits, far beyond rounding
    with case.make(model).applied(model, some_positions()) as edited:
        moved = float((logits(edited) - before).abs().max())
    assert moved > 0.01 if moves(name) else moved == 0
    with case.at_zero(model).applied(model) as edited:
        again = generated(edited, tokens())
    assert torch.equal(again[0], said[0])
    assert torch.equal(again[1], said[1])


@every_family
@every_edit
def test_hooks_and_weights_are_as_before_on_exit(family, name):
    model, edit = the_model(family), CASES[name].make(the_model(family))
    before = state_of(model)
    with edit.applied(model) as edited:
        generated(edited, tokens())
        if "acts" in CASES[name].tags:
            assert state_of(model)["hooks"] != before["hooks"]
    assert state_of(model) == before


@every_edit
def test_hooks_and_weights_are_as_before_after_an_exception(name):
    model, edit = the_model("gpt2"), CASES[name].make(the_model("gpt2"))
    before = state_of(model)
    with pytest.raises(ZeroDivisionError), edit.applied(model) as edited:
        generated(edited, tokens())
        1 / 0  # noqa: B018
    assert state_of(model) == before


@acting_edit
def test_hooks_are_as_before_after_the_edit_refuses_a_forward(name):
    model, edit = the_model("llama"), CASES[name].make(the_model("llama"))
    before = state_of(model)
    with pytest.raises(BadValue, match="pass a mask"), edit.applied(model, "generated") as edited:
        logits(edited)
    assert state_of(model) == before


@pytest.mark.parametrize("positions", ["generated", "all"])
@every_edit
def test_each_nested_edit_leaves_the_outer_one_in_place(name, positions):
    model, edit = the_model("llama-gqa"), CASES[name].make(the_model("llama-gqa"))
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


@pytest.mark.parametrize("name", ["no edit", "few-shot", "shift", "sum", "few-shot + shift", "shift within a shift"])
def test_modes_of_modules_survive_an_edit(name):
    model = tiny_model("llama", dtype=torch.float64)
    model.train()
    model.model.layers[1].eval()
    before = state_of(model)["training"]
    with CASES[name].make(model).applied(model, "all"):
        assert state_of(model)["training"] == before
    assert state_of(model)["training"] == before


@every_family
@head_edit
def test_only_the_declared_heads_and_positions_change(family, name):
    model, case, mask = the_model(family), CASES[name], some_positions()
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
@acting_edit
def test_an_edit_equals_its_vectors_added_by_bare_hooks(family, name):
    model, case, mask = the_model(family), CASES[name], some_positions()
    with plainly_added(model, case.adds(model), mask):
        expected = logits(model)
    with case.make(model).applied(model, mask) as edited:
        assert torch.allclose(logits(edited), expected, **CLOSE)


@acting_edit
def test_all_positions_are_those_of_a_mask_of_ones(name):
    model, case = the_model("gpt2"), CASES[name]
    with plainly_added(model, case.adds(model), torch.ones(2, 9)):
        expected = logits(model)
    with case.make(model).applied(model, "all") as edited:
        assert torch.allclose(logits(edited), expected, **CLOSE)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
@pytest.mark.parametrize("name", tagged("saves"))
def test_a_saved_and_loaded_edit_gives_equal_logits(family, name, tmp_path):
    model, edit = the_model(family), CASES[name].make(the_model(family))
    edit.save(tmp_path / "edit")
    loaded = type(edit).load(tmp_path / "edit")
    with edit.applied(model, "all"):
        expected = logits(model)
    with loaded.applied(model, "all"):
        assert torch.equal(logits(model), expected)
    assert loaded.describe() == json.loads(json.dumps(edit.describe()))


@every_family
@every_edit
def test_a_left_padded_batch_equals_one_by_one(family, name):
    model, edit = the_model(family), CASES[name].make(the_model(family))
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


@every_family
@every_edit
def test_cached_generation_equals_one_forward_with_a_mask_from_the_final_prompt_position_on(family, name):
    model, case = the_model(family), CASES[name]
    edit, ids = case.make(model), tokens()
    last = ids.shape[1] - 1
    with edit.applied(model) as edited:
        whole, scores = generated(edited, ids)
    seen = whole[:, :-1]

    def scored_from(first: int) -> Tensor:
        with edit.applied(model, from_position(seen, first)) as edited:
            return logits(edited, seen)[:, last:]

    assert torch.allclose(scored_from(last), scores, **CLOSE)
    if "acts" in case.tags:
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


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if "tunes" not in case.tags])
def test_an_edit_that_leaves_the_prompt_unedited_leaves_its_cache_as_it_was(name):
    model, case, ids = the_model("llama-gqa"), CASES[name], tokens()
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
    assert torch.equal(after[..., -1, :], before[..., -1, :]) == ("acts" not in case.tags)


@every_edit
def test_every_edit_keeps_the_protocol_and_describes_itself_in_plain_values(name):
    case, model = CASES[name], the_model("llama")
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
