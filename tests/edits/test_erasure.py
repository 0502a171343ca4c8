"""Ablation and erasers beyond the contracts: what the stream is without a direction, weights in place of hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.cases import ablation, eraser
from tests.observing import logits, state_of, tokens
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.edits import DirectionalAblation, Eraser
from trimtab.edits.disk import load_edit
from trimtab.errors import BadValue, Incompatible, ShapeError, UnsupportedModel
from trimtab.export.checkpoint import checkpoint
from trimtab.models.writes import find_writes

CLOSE = {"rtol": 0.0, "atol": 5e-5}
WIDTH = 48


def layers_of(model: Any) -> Any:
    kind = model.config.model_type
    place = {"gpt2": lambda: model.transformer.h, "gpt_neox": lambda: model.gpt_neox.layers}
    return place.get(kind, lambda: model.model.layers)()


def everywhere(**given: Any) -> DirectionalAblation:
    """Return the ablation of one direction in all three layers."""
    direction = normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)), dim=0)
    return DirectionalAblation((0, 1, 2), direction.repeat(3, 1), **given)


@torch.no_grad()
def streams(model: Any) -> Tensor:
    """Return what every layer gives, by bare hooks: layer batch seq width."""
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers_of(model)
    ]
    try:
        logits(model)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen)


@pytest.mark.parametrize("family", ["llama", "llama-gqa", "qwen3", "gpt2", "gpt-neox", "gemma2"])
def test_nothing_of_the_direction_is_in_the_stream_after_any_layer(family):
    model, edit = tiny_model(family), everywhere()
    before = streams(model) @ edit.directions[0]
    with edit.applied(model, "all") as ablated:
        after = streams(ablated)
    assert float((after @ edit.directions[0]).abs().max()) < 1e-5
    assert float(before.abs().min(2).values.max()) > 0.05  # the control: there was something
    with edit.scaled(0.5).applied(model, "all") as ablated:
        half = streams(ablated)
    assert float((half @ edit.directions[0]).abs().max()) > 0.05


def test_in_half_precision_what_is_left_of_the_direction_is_rounding():
    model, edit = tiny_model("llama-gqa", dtype=torch.bfloat16), everywhere()
    before = streams(model).float() @ edit.directions[0]
    with edit.applied(model, "all") as ablated:
        after = streams(ablated).float() @ edit.directions[0]
    assert float(after.abs().max()) < 0.02 * float(before.abs().max())


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("strength", [1, 0.5])
def test_orthogonalised_weights_do_what_the_hooks_do(family, strength):
    model, edit = tiny_model(family), everywhere().scaled(strength)
    before = state_of(model)
    with edit.applied(model, "all") as ablated:
        expected = logits(ablated)
    plain = edit.merged(model)
    torch.testing.assert_close(logits(plain), expected, **CLOSE)
    assert state_of(model) == before
    if family == "gpt2":  # one matrix for input and output: merging unties it, a change in place cannot
        assert not plain.config.tie_word_embeddings
        with pytest.raises(UnsupportedModel, match="one matrix for the embeddings"):
            edit.to_weights(model)
        edit = everywhere(components=("attention", "mlp")).scaled(strength)
        with edit.applied(model, "all") as ablated:
            expected = logits(ablated)
    weights = edit.to_weights(model)
    with weights.applied(model) as changed:
        torch.testing.assert_close(logits(changed), expected, **CLOSE)
    assert weights.unchanged_layers == 0
    assert state_of(model) == before


def test_each_component_can_be_ablated_alone_and_all_differ():
    model, said = tiny_model("llama-gqa"), []
    for components in (("embedding",), ("attention",), ("mlp",), ("embedding", "attention", "mlp")):
        edit = everywhere(components=components)
        with edit.applied(model, "all") as ablated:
            said.append(logits(ablated))
        torch.testing.assert_close(logits(edit.to_weights(model).merged(model)), said[-1], **CLOSE)
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(said) for b in said[:i])


def test_weights_are_refused_where_a_norm_stands_between_and_so_are_single_components():
    model = tiny_model("gemma2")
    assert not find_writes(model)
    assert len(find_writes(tiny_model("gpt2"))) == 6
    with pytest.raises(UnsupportedModel, match=r"a norm or experts stand between .* use the edit as it is"):
        everywhere(components=("mlp",)).to_weights(model)
    with (
        pytest.raises(UnsupportedModel, match="cannot be ablated one by one"),
        everywhere(components=("mlp",)).applied(model, "all"),
    ):
        pass


def test_an_ablation_leaves_as_a_checkpoint_and_as_an_adapter(tmp_path):
    model = tiny_model("llama-gqa")
    found = checkpoint(model, tiny_tokenizer(), everywhere(), tmp_path / "merged")
    assert found.relative <= 1e-3 and found.architecture == "LlamaForCausalLM"
    everywhere(components=("attention", "mlp")).to_weights(model).to_peft(tmp_path / "adapter")
    with pytest.raises(BadValue, match="no adapter holds that"):
        everywhere().to_weights(model).to_peft(tmp_path / "other")


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_an_eraser_is_its_formula_at_the_masked_positions(family):
    model, edit = tiny_model(family, dtype=torch.float64), eraser(tiny_model(family)).scaled(0.3)
    mask = torch.zeros(2, 9)
    mask[0, 2:5], mask[1, 8] = 1.0, 0.5

    def hook(i: int) -> Any:
        left, right, centre = (getattr(edit, name)[i].double() for name in ("left", "right", "centre"))

        def change(module: Any, args: Any, out: Any) -> Any:
            x = out[0] if isinstance(out, tuple) else out
            new = x - 0.3 * mask[..., None] * ((x - centre) @ right.T @ left.T)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return change

    handles = [layers_of(model)[layer].register_forward_hook(hook(i)) for i, layer in enumerate(edit.layers)]
    try:
        expected = logits(model)
    finally:
        for handle in handles:
            handle.remove()
    with edit.applied(model, mask) as erased:
        torch.testing.assert_close(logits(erased), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [ablation, eraser])
def test_a_random_counterpart_has_the_same_places_and_rank_and_another_direction(make):
    model = tiny_model("llama-gqa")
    edit = make(model)
    drawn, again, other = (edit.randomised(seed) for seed in (1, 1, 2))
    assert drawn.layers == edit.layers and drawn.strength == edit.strength
    said = []
    for some in (edit, drawn, again, other):
        with some.applied(model, "all") as edited:
            said.append(logits(edited))
    assert torch.equal(said[1], said[2])
    assert not torch.equal(said[0], said[1]) and not torch.equal(said[1], said[3])
    if make is ablation:
        assert torch.equal(drawn.directions[0], drawn.directions[1])  # one direction, as before
    else:
        taken = drawn.left @ drawn.right
        torch.testing.assert_close(taken @ taken, taken)
        assert [float(one.trace()) for one in taken] == pytest.approx([edit.left.shape[-1]] * len(edit), rel=1e-5)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: DirectionalAblation((0,), torch.ones(1, WIDTH)), BadValue, "unit vectors"),
        (lambda: everywhere(components=()), BadValue, "components are some of"),
        (lambda: everywhere(components=("head",)), BadValue, "got head"),
        (lambda: DirectionalAblation((), torch.ones(0, WIDTH)), BadValue, "the ablation needs one layer or more"),
        (lambda: Eraser((0, 1), *(torch.ones(1, *s) for s in ((WIDTH, 1), (1, WIDTH), (WIDTH,)))), ShapeError,
         "expected one row each"),
        (lambda: Eraser((0, 0), *(torch.ones(2, *s) for s in ((WIDTH, 1), (1, WIDTH), (WIDTH,)))), BadValue, "twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_other_models_and_damaged_folders_are_refused(tmp_path):
    edit = ablation(tiny_model("llama-gqa"))
    with pytest.raises(Incompatible, match="the ablation 'Ablation' was made for another checkpoint"):
        edit.applied(tiny_model("llama-gqa", seed=1))
    with pytest.raises(BadValue, match="no layer 3"), everywhere_at(3).applied(tiny_model(), "all"):
        pass
    edit.save(tmp_path / "edit")
    record = tmp_path / "edit" / "record.json"
    record.write_text(record.read_text().replace('"mlp"', '"tail"'))
    with pytest.raises(Incompatible, match="holds a damaged ablation"):
        load_edit(tmp_path / "edit")


def everywhere_at(layer: int) -> DirectionalAblation:
    return DirectionalAblation((layer,), everywhere().directions[:1])


def test_generation_is_edited_from_the_last_prompt_token_on_and_the_stream_has_nothing_there():
    model, edit = tiny_model("llama-gqa"), everywhere()
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 8:] = True
    plain = streams(model)
    with edit.applied(model, mask) as ablated:
        after = streams(ablated)
    assert float((after[:, :, 8] @ edit.directions[0]).abs().max()) < 1e-5
    assert torch.equal(after[:, :, :8], plain[:, :, :8])
    assert tokens().shape == (2, 9)
