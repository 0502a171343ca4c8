"""Weights as vectors: task vectors of tuned edits and checkpoints, their sums, TIES and DARE, by hand and by PEFT."""

from __future__ import annotations

import copy
from typing import Any

import peft as hf_peft
import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from tests.cases import EDITS, QUICK, TUNING, one_shift, one_tuned, tagged, weight_edit, whole_weight_edit
from tests.observing import logits, state_of
from tests.tiny import tiny_model
from trimtab import NoEdit, Prompted, peft
from trimtab.edits import WeightEdit
from trimtab.errors import BadValue, Incompatible
from trimtab.knowledge import DARE, TIES, combined, cosine, task_vector, task_vector_between
from trimtab.models.weights import LowRank

CLOSE = {"rtol": 0.0, "atol": 5e-5}


def said(model: Any, edit: Any) -> Tensor:
    with edit.applied(model, "all") as edited:
        return logits(edited)


def lora(model: Any, seed: int, method: Any = TUNING["lora"]) -> Any:
    """Return a LoRA edit whose factors were drawn with a seed of their own."""
    edit, generator = one_tuned(method)(model), torch.Generator().manual_seed(seed)
    drawn = {name: 0.2 * torch.randn(t.shape, generator=generator) for name, t in edit.tensors.items()}
    return type(edit)(edit.method, drawn, f"LoRA {seed}", record=edit.record)


def moved(seed: int, family: str = "llama-gqa") -> Any:
    """Return a model of the same base with every weight moved a little."""
    model, generator = tiny_model(family), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def vector(*entries: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(entries)}


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
@pytest.mark.parametrize("name", ["lora", "rslora", "lora qv", "dora", "ia3", "peft vera", "full", "top 2", "weights"])
def test_a_task_vector_is_the_edit_and_knows_its_factors_where_there_are_some(family, name):
    model = tiny_model(family)
    edit = EDITS[name].make(model)
    before = state_of(model)
    tau = task_vector(model, edit)
    assert state_of(model) == before
    torch.testing.assert_close(said(model, tau), said(model, edit), **CLOSE)
    torch.testing.assert_close(logits(tau.merged(model)), said(model, edit), **CLOSE)
    assert all(isinstance(c, LowRank) for c in tau.changes.values()) == (
        name in ("lora", "rslora", "lora qv", "weights")
    )
    assert tau.unchanged_layers == {"top 2": 1, "weights": 1}.get(name, 0)
    with pytest.raises(Incompatible, match="another checkpoint"):
        task_vector(tiny_model(family, seed=1), edit)


def test_a_strength_is_worked_into_a_task_vector():
    model = tiny_model("llama-gqa")
    half = task_vector(model, lora(model, 1).scaled(0.5))
    torch.testing.assert_close(said(model, half), said(model, lora(model, 1).scaled(0.5)), **CLOSE)
    torch.testing.assert_close(said(model, half.scaled(2)), said(model, lora(model, 1)), **CLOSE)


@pytest.mark.parametrize("edit", [NoEdit(), Prompted((("What is snow?", "White."),))])
def test_edits_that_change_no_weight_are_refused(edit):
    with pytest.raises(BadValue, match=r"changes no weight|as it is"):
        task_vector(tiny_model("llama-gqa"), edit)


def test_vectors_are_weights_where_the_model_has_biases_for_them_and_refused_elsewhere():
    model = tiny_model("gpt2")
    torch.testing.assert_close(
        said(model, task_vector(model, one_shift(model))), said(model, one_shift(model)), **CLOSE
    )
    model = tiny_model("llama-gqa")
    with pytest.raises(Incompatible, match="of one of the two models only"):
        task_vector(model, one_shift(model))


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_base_and_difference_are_the_tuned_checkpoint_to_one_rounding(family):
    base, tuned = tiny_model(family), moved(3, family)
    tau = task_vector_between(base, tuned)
    again = dict(tau.merged(base).named_parameters())
    assert tau.changes.keys() == dict(base.named_parameters()).keys()  # tied embeddings once; norms and biases too
    for name, parameter in tuned.named_parameters():
        assert (again[name] - parameter).abs().max() <= 2.0**-23 * parameter.abs().max()
    torch.testing.assert_close(said(base, tau), logits(tuned), **CLOSE)
    half = {n: (p + dict(tuned.named_parameters())[n]) / 2 for n, p in base.named_parameters()}
    between = copy.deepcopy(base)
    between.load_state_dict(half, strict=False)
    torch.testing.assert_close(said(base, tau.scaled(0.5)), logits(between), **CLOSE)


def test_added_and_taken_away_the_base_is_as_before_to_one_rounding():
    base = tiny_model("llama-gqa")
    for tau in (task_vector_between(base, moved(3)), task_vector(base, lora(base, 1))):
        there = tau.merged(base)
        back = WeightEdit(tau.changes, -1).merged(there)
        for name, parameter in back.named_parameters():
            before, added = base.get_parameter(name), there.get_parameter(name)
            assert bool(((parameter - before).abs() <= 2.0**-24 * (added.abs() + before.abs()) * 1.01).all())
        torch.testing.assert_close(said(base, combined(base, [tau, tau], [1, -1])), logits(base), **CLOSE)


def test_an_analogy_on_linear_maps_is_exact():
    base = tiny_model("llama-gqa", dtype=torch.float64)
    name = "model.layers.1.mlp.down_proj.weight"
    a, b = (torch.randint(-8, 8, (48, 64)).double() / 8 for _ in range(2))
    c = torch.randint(-8, 8, (48, 64)).double() / 8
    taus = [WeightEdit({name: tau}) for tau in (c, b, a)]
    made = combined(base, taus, [1, 1, -1])
    assert torch.equal(made.changes[name], c + (b - a))
    assert torch.equal((taus[0] + taus[1] - taus[2]).changes[name], made.changes[name])
    assert made.unchanged_layers == 1


def test_adapters_side_by_side_are_the_sum_of_their_products_and_pefts_linear_is_not(tmp_path):
    model = tiny_model("llama-gqa")
    one, two = lora(model, 1), lora(model, 2)
    parts = [task_vector(model, one), task_vector(model, two)]
    good_minus_bad = combined(model, parts, [1, -0.5])
    assert all(isinstance(change, LowRank) for change in good_minus_bad.changes.values())
    for name, change in good_minus_bad.whole(model).changes.items():
        wanted = parts[0].whole(model).changes[name] - 0.5 * parts[1].whole(model).changes[name]
        torch.testing.assert_close(change, wanted, rtol=0, atol=1e-5)
    # PEFT's own: concatenation along the rank is that sum, adding A's and B's apart is not
    one.save(tmp_path / "one")
    two.save(tmp_path / "two")
    wrapped = hf_peft.PeftModel.from_pretrained(tiny_model("llama-gqa"), tmp_path / "one", adapter_name="one")
    wrapped.load_adapter(tmp_path / "two", "two")
    said_by = {}
    for how in ("cat", "linear"):
        wrapped.add_weighted_adapter(["one", "two"], [1.0, 0.5], how, combination_type=how)
        wrapped.set_adapter(how)
        said_by[how] = logits(wrapped)
    ours = said(model, combined(model, parts, [1, 0.5]))
    torch.testing.assert_close(said_by["cat"], ours, **CLOSE)
    assert float((said_by["linear"] - ours).abs().max()) > 0.1


def test_a_low_rank_change_and_a_whole_one_add_up():
    model = tiny_model("gpt2")
    low, whole = weight_edit(model, layers=(0,)), whole_weight_edit(model)
    both = combined(model, [low, whole], [2, 1])
    with low.scaled(2).applied(model), whole.applied(model):
        expected = logits(model)
    torch.testing.assert_close(said(model, both), expected, **CLOSE)


def test_ties_on_four_entries_by_hand():
    # trimmed to two entries each: (0, 3, -2, 0) and (0, -1, -4, 0); signs +, +, -, +
    one, two = vector(0.5, 3.0, -2.0, 0.1), vector(0.5, -1.0, -4.0, 0.2)
    rule = TIES(density=0.5)
    assert rule.merged([one, two], [1, 1])["w"].tolist() == [0, 3, -3, 0]
    # weights 1 and 3: entry 1 is 3 - 3 = 0, a tie, which is plus: the first alone; entry 2 the mean of -2 and -12 by 4
    assert rule.merged([one, two], [1, 3])["w"].tolist() == [0, 3, -3.5, 0]
    # taken away, the second is (0, 1, 4, 0), with a weight of size 1: it keeps its sign
    assert rule.merged([one, two], [1, -1])["w"].tolist() == [0, 2, 4, 0]
    assert rule.merged([two], [-1])["w"].tolist() == [0, 1, 4, 0]


def test_the_share_that_stays_is_of_each_tensor_or_of_the_whole_vector():
    large, small = torch.tensor([4.0, 3.0]), torch.tensor([1.0, 2.0])
    parts = {"a": large, "b": small}
    each, whole = (TIES(density=0.5, trim=trim).merged([parts], [1]) for trim in ("tensor", "vector"))
    assert [each["a"].tolist(), each["b"].tolist()] == [[4, 0], [0, 2]]
    assert [whole["a"].tolist(), whole["b"].tolist()] == [[4, 3], [0, 0]]


def test_ties_of_equal_weights_is_that_of_peft():
    generator = torch.Generator().manual_seed(0)
    taus = [torch.randn(40, 30, generator=generator) for _ in range(3)]
    theirs = merge_utils.ties(taus, torch.ones(3), 0.2)
    torch.testing.assert_close(TIES(0.2).merged([{"w": tau} for tau in taus], [1, 1, 1])["w"], theirs)
    theirs = merge_utils.task_arithmetic(taus, torch.tensor([1.0, 0.5, -2]))
    ours = combined(tiny_model(), [WeightEdit({"lm_head.weight": tau}) for tau in taus], [1, 0.5, -2])
    torch.testing.assert_close(ours.changes["lm_head.weight"], theirs)


def test_dare_keeps_a_share_divides_it_and_means_the_vector():
    tau = vector(1.0, -2.0, 0.5, 4.0)
    draws = torch.stack([DARE(0.5, seed=seed).merged([tau], [1])["w"] for seed in range(2000)])
    assert set(draws[:, 1].tolist()) == {0.0, -4.0}
    # four standard errors
    error = 4 * tau["w"].abs() / 2000**0.5
    assert bool(((draws.mean(0) - tau["w"]).abs() < error).all())
    again = DARE(0.5, seed=7)
    long = {"a": torch.ones(1000), "b": torch.ones(1000)}
    drawn = again.merged([long], [1])
    assert torch.equal(drawn["a"], again.merged([{"a": long["a"]}], [1])["a"])  # whatever else is merged
    assert not torch.equal(drawn["a"], drawn["b"])
    assert not torch.equal(drawn["a"], DARE(0.5, seed=8).merged([long], [1])["a"])
    two = again.merged([long, long], [1, -1])
    assert bool(two["a"].any())  # each vector has a draw of its own
    assert torch.equal(DARE(1).merged([tau], [2])["w"], 2 * tau["w"])


@pytest.mark.parametrize("rule", [TIES(0.3), TIES(0.3, trim="vector"), DARE(0.5, seed=1)])
def test_what_a_rule_makes_is_an_edit_of_the_model_s_weights(rule, tmp_path):
    model = tiny_model("gpt2")
    taus = [task_vector(model, lora(model, seed)) for seed in (1, 2)]
    made = combined(model, taus, [1, 0.5], rule=rule)
    assert made.record["rule"] == type(rule).__name__
    torch.testing.assert_close(logits(made.merged(model)), said(model, made), **CLOSE)
    made.save(tmp_path / "made")
    assert torch.equal(said(model, WeightEdit.load(tmp_path / "made")), said(model, made))
    wanted = rule.merged([tau.whole(model).changes for tau in taus], [1, 0.5])
    assert all(torch.equal(made.changes[name], change) for name, change in wanted.items())


def test_the_cosine_tells_vectors_of_one_direction_from_others():
    model = tiny_model("llama-gqa")
    one, two = (task_vector(model, lora(model, seed)) for seed in (1, 2))
    assert cosine(model, one, one.scaled(-3)) == pytest.approx(-1)
    assert abs(cosine(model, one, two)) < 0.1
    assert cosine(model, one, two) == pytest.approx(cosine(model, one.whole(model), two.whole(model)), abs=1e-6)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: TIES(0), "density"),
        (lambda: TIES(1.5), "density"),
        (lambda: TIES(float("nan")), "density"),
        (lambda: DARE(0), "p = 1 - density"),
        (lambda: combined(tiny_model(), []), "one or more vectors"),
        (lambda: combined(tiny_model(), [weight_edit(tiny_model())], [float("inf")]), "finite weight"),
        (lambda: combined(tiny_model(), [weight_edit(tiny_model())], [1, 2]), "finite weight for each"),
    ],
)
def test_rules_and_weights_that_cannot_be_are_refused(make, words):
    with pytest.raises(BadValue, match=words):
        make()


def test_other_bases_are_refused_and_strangers_are_said_to_be_some():
    base = tiny_model("llama-gqa")
    with pytest.raises(Incompatible, match="another vocabulary"):
        task_vector_between(base, tiny_model("llama-gqa", vocab_size=310))
    with pytest.raises(Incompatible, match="not of one base: model_type gpt2 against llama"):
        task_vector_between(base, tiny_model("gpt2"))
    with pytest.raises(Incompatible, match="of one of the two models only"):
        task_vector_between(base, untied(tiny_model("llama-gqa")))
    with pytest.raises(BadValue, match="changes no weight"):
        task_vector_between(base, tiny_model("llama-gqa"))
    with pytest.warns(UserWarning, match="tuned from this one"):
        task_vector_between(base, tiny_model("llama-gqa", seed=1))
    others = weight_edit(tiny_model("llama-gqa", seed=1))
    with pytest.raises(Incompatible, match="different models"):
        combined(base, [weight_edit(base), others])


def untied(model: Any) -> Any:
    """Return the model with a bias that its base lacks."""
    linear = model.model.layers[0].mlp.down_proj
    linear.bias = torch.nn.Parameter(torch.ones(linear.out_features))
    return model


def test_questions_that_tuning_saw_stay_known():
    model = tiny_model("llama-gqa")
    one, two = (task_vector(model, lora(model, s).with_record(questions=[f"q{s}"])) for s in (1, 2))
    assert combined(model, [one, two]).fitted_on == ["q1", "q2"]
    assert (one + two).fitted_on == ["q1", "q2"]


def test_every_way_of_tuning_gives_a_vector_or_says_why_not():
    for name in tagged("tunes"):
        model = tiny_model("llama-gqa")
        edit = EDITS[name].make(model)
        if edit.method.capabilities.mergeable:
            try:
                assert task_vector(model, edit).changes
            except Incompatible as why:
                assert "of one of the two models only" in str(why)
        else:
            with pytest.raises(BadValue, match="as it is"):
                task_vector(model, edit)


def test_a_comparison_tunes_once_for_all_the_strengths_between_base_and_tuned(monkeypatch):
    from tests.tiny import tiny_questions, tiny_tokenizer
    from trimtab.compare import Widened

    fitted: list[Any] = []
    own = peft.LoRA.fit

    def counted(self: Any, *args: Any, **given: Any) -> Any:
        fitted.append(given["knobs"])
        return own(self, *args, **given)

    monkeypatch.setattr(peft.LoRA, "fit", counted)
    between = Widened(peft.LoRA(r=4, recipe=QUICK), (("learning_rate", (0.02,)), ("strength", (0.25, 0.5, 1))))
    model = tiny_model("llama-gqa")
    at = between.fitter(model, tiny_tokenizer(), tiny_questions(4), seed=0)
    made = [at({"learning_rate": 0.02, "strength": s}) for s in (0.25, 0.5, 1)]
    assert [edit.strength for edit in made] == [0.25, 0.5, 1]
    assert len(fitted) == 1
    tau = task_vector(model, made[2])
    torch.testing.assert_close(said(model, tau.scaled(0.25)), said(model, made[0]), **CLOSE)
