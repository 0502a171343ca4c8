"""WeightEdit beyond the contracts: sums, ranks, random counterparts, adapters, quantised weights, refusals."""

from __future__ import annotations

import peft as hf_peft
import pytest
import torch

from tests.cases import down_projections, weight_edit, whole_weight_edit
from tests.observing import logits, state_of
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.edits import WeightEdit
from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.export.checkpoint import checkpoint
from trimtab.models.identity import fingerprint
from trimtab.models.weights import LowRank, changed_weights, turned, with_changes


def dense(edit: WeightEdit, name: str) -> torch.Tensor:
    change = edit.changes[name]
    return edit.strength * (change.left.double() @ change.right.double())


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_a_change_is_that_of_the_map_whatever_way_round_it_is_stored(family):
    model = tiny_model(family, dtype=torch.float64)
    edit, x = weight_edit(model), torch.randn(5, 192 if family == "gpt2" else 64, dtype=torch.float64)
    for name in edit.changes:
        module = model.get_submodule(name.removesuffix(".weight"))
        before = module(x)
        with edit.applied(model):
            torch.testing.assert_close(module(x) - before, x @ dense(edit, name).T)
        assert turned(module, module.weight).shape == dense(edit, name).shape


def test_a_sum_adds_the_changes_and_compressing_keeps_them_at_the_least_rank():
    model = tiny_model("llama-gqa")
    a, b = weight_edit(model), weight_edit(model, layers=(2,), seed=8).scaled(3)
    shared = down_projections(model)[2]
    total = a + b + a.scaled(-1)
    torch.testing.assert_close(dense(total, shared), dense(b, shared), rtol=0, atol=1e-5)
    assert total.changes[shared].right.shape[0] == 6
    less = total.compressed()
    assert less.changes[shared].right.shape[0] == 2
    torch.testing.assert_close(dense(less, shared), dense(b, shared), rtol=0, atol=1e-5)
    assert less.norms[shared] == pytest.approx(float(dense(b, shared).norm()), rel=1e-5)
    assert total.unchanged_layers == 1
    with pytest.raises(BadValue, match="not added up"):
        whole_weight_edit(model) + weight_edit(model, layers=(0,))


def test_a_random_counterpart_has_the_keys_and_singular_values_of_the_change_and_other_values():
    edit = weight_edit(tiny_model("llama-gqa"))
    drawn, again, other = (edit.randomised(seed) for seed in (1, 1, 2))
    for name in edit.changes:
        assert torch.equal(drawn.changes[name].right, edit.changes[name].right)
        assert torch.equal(drawn.changes[name].left, again.changes[name].left)
        assert not torch.equal(drawn.changes[name].left, other.changes[name].left)
        ours, theirs = (torch.linalg.svdvals(dense(e, name)) for e in (edit, drawn))
        torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-5, atol=0)
    with pytest.raises(BadValue, match="low rank"):
        whole_weight_edit(tiny_model()).randomised(0)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_the_adapter_that_it_writes_is_the_edit_to_plain_peft(family, tmp_path):
    model = tiny_model(family)
    edit = weight_edit(model) + weight_edit(model, layers=(2,), seed=9)
    with edit.applied(model) as edited:
        expected = logits(edited)
    edit.to_peft(tmp_path / "adapter")
    wrapped = hf_peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "adapter")
    torch.testing.assert_close(logits(wrapped), expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(logits(wrapped.merge_and_unload()), expected, rtol=0, atol=5e-5)
    with pytest.raises(BadValue, match="no adapter holds that"):
        whole_weight_edit(model).to_peft(tmp_path / "other")


def test_it_leaves_as_a_checkpoint(tmp_path):
    model = tiny_model("llama-gqa")
    found = checkpoint(model, tiny_tokenizer(), weight_edit(model), tmp_path / "merged")
    assert found.relative <= 1e-3
    assert found.architecture == "LlamaForCausalLM"


def test_the_model_keeps_its_identity_while_its_weights_are_changed():
    model = tiny_model("llama-gqa")
    before, edit = fingerprint(model), weight_edit(model)
    changed = tiny_model("llama-gqa")
    with_changes(changed, edit.changes)
    with edit.applied(model):
        assert fingerprint(model) == before
    assert fingerprint(changed) != before  # the control: these values do tell checkpoints apart
    with pytest.raises(Incompatible, match="another checkpoint"), edit.applied(changed):
        pass


def test_blocks_left_in_another_order_than_they_were_entered_are_refused():
    model = tiny_model("llama-gqa")
    first, second = (weight_edit(model).applied(model) for _ in range(2))
    before = state_of(model)
    first.__enter__()
    second.__enter__()
    with pytest.raises(Incompatible, match="leave the inner one first"):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert state_of(model) != before  # the outer change is still in place, and that was said


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({}, BadValue, "one weight or more"),
        ({"no.such.weight": torch.ones(2, 2)}, Incompatible, "no such weight"),
        ({"lm_head.weight": torch.ones(2, 2)}, ShapeError, r"\(2, 2\)"),
        ({"lm_head.weight": torch.full((300, 48), float("nan"))}, BadValue, "finite"),
    ],
)
def test_what_cannot_be_changed_is_refused_in_one_sentence(changes, error, words):
    model = tiny_model("llama-gqa")
    before = state_of(model)
    with pytest.raises(error, match=words), WeightEdit(changes).applied(model):
        pass
    assert state_of(model) == before


def test_quantised_weights_take_low_rank_changes_through_hooks_and_others_not():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = tiny_model("llama-gqa", width=64)
    name = down_projections(model)[1]
    module, weight = model.get_submodule(name.removesuffix(".weight")), model.get_parameter(name)
    # what a quantised module says of itself is enough: that its weight is no plain one
    linear = bitsandbytes.nn.Linear8bitLt(module.in_features, module.out_features, bias=False, has_fp16_weights=False)
    linear.weight = bitsandbytes.nn.Int8Params(
        torch.zeros(weight.shape, dtype=torch.int8), requires_grad=False, has_fp16_weights=False
    )
    linear.forward = lambda x: x @ weight.T
    model.model.layers[1].mlp.down_proj = linear
    change = LowRank(torch.randn(64, 2), torch.randn(2, module.in_features))
    x = torch.randn(3, module.in_features)
    with changed_weights(model, {name: change}, 0.5):
        torch.testing.assert_close(linear(x), x @ (weight + 0.5 * change.left @ change.right).T, rtol=0, atol=1e-4)
    torch.testing.assert_close(linear(x), x @ weight.T)
    with pytest.raises(BadValue, match="quantised"), changed_weights(model, {name: torch.zeros(weight.shape)}):
        pass
