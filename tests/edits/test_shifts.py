"""Shifts: fitted as Li et al. (2023) write them, kept to their model, and the same after a round trip to disk."""

from __future__ import annotations

import inspect
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from tests.planted import LAYERS, PLANTED, activations, planted_direction
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import Head, HeadActivations
from trimtab.edits.vectors import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset, BadValue, Incompatible, ShapeError
from trimtab.models.identity import fingerprint
from trimtab.probes import HeadProbes, fit_logistic, fit_mass_mean
from trimtab.protocols import Cost
from trimtab.steer import fit_shift

DIRECTIONS = ("mass_mean", "probe", "random")
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
data_direction = pytest.mark.parametrize("direction", ["mass_mean", "probe"])


@pytest.fixture(scope="module")
def acts() -> HeadActivations:
    return activations(separation=2.0)


@pytest.fixture(scope="module")
def probes(acts) -> HeadProbes:
    return fit_logistic(acts)


def examples(acts: HeadActivations, head: Head) -> tuple[np.ndarray, np.ndarray]:
    x, y, _ = acts.head(*head)
    return x.astype(np.float64), y


def mass_mean(acts: HeadActivations, head: Head) -> np.ndarray:
    """Write out the paper's mass mean shift: the unit vector between the means of the classes."""
    x, y = examples(acts, head)
    theta = x[y].mean(0) - x[~y].mean(0)
    return theta / np.linalg.norm(theta)


def unit_shift(*heads: tuple[int, int], d_head: int = 12, seed: int = 0, **fields) -> HeadShift:
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(len(heads), d_head, generator=generator), dim=1)
    return HeadShift(tuple(Head(*h) for h in heads), directions, torch.ones(len(heads)), **fields)


@pytest.fixture(scope="module")
def fitted() -> tuple:
    """Return a model with a shift fitted on it by the whole path."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    acts = capture_heads(model, tokenizer, tiny_questions().statements())
    return model, fit_shift(acts, fit_mass_mean(acts), top_k=3)


def test_a_shift_adds_alpha_sigma_theta_as_the_paper_writes_it(acts, probes):
    shift = fit_shift(acts, probes, top_k=5).scaled(15)
    assert shift.heads == probes.top(5)
    assert shift.heads[0] == PLANTED
    for head, delta in shift.deltas.items():
        theta = mass_mean(acts, head)
        x, _ = examples(acts, head)
        sigma = np.sqrt(np.mean((x @ theta - (x @ theta).mean()) ** 2))
        assert np.allclose(delta.numpy(), 15 * sigma * theta, rtol=1e-5, atol=1e-6)


@every_direction
def test_directions_are_unit_vectors(acts, probes, direction):
    shift = fit_shift(acts, probes, top_k=12, direction=direction)
    assert torch.allclose(shift.directions.norm(dim=1), torch.ones(12), rtol=0, atol=1e-6)
    assert shift.strength == 1.0


@data_direction
def test_sigma_is_the_standard_deviation_with_ddof_0_of_the_projections(direction):
    # few statements, so that ddof 1 would show
    acts = activations(6, per_question=2)
    shift = fit_shift(acts, fit_mass_mean(acts, validation=activations(5, prefix="v")), top_k=12, direction=direction)
    for head, theta, sigma in zip(shift.heads, shift.directions.double().numpy(), shift.sigma.tolist(), strict=True):
        projections = examples(acts, head)[0] @ theta
        assert sigma == pytest.approx(projections.std(ddof=0), rel=1e-5)
        assert sigma != pytest.approx(projections.std(ddof=1), rel=1e-2)


def test_sigma_may_be_measured_on_another_bank_of_statements(acts, probes):
    bank = activations(30, separation=7.0, seed=3)
    plain, other = fit_shift(acts, probes, top_k=4), fit_shift(acts, probes, top_k=4, sigma_statements=bank)
    assert torch.equal(other.directions, plain.directions)
    for head, theta, sigma in zip(other.heads, plain.directions.double().numpy(), other.sigma.tolist(), strict=True):
        assert sigma == pytest.approx((examples(bank, head)[0] @ theta).std(), rel=1e-5)
    assert float(other.sigma[0]) > 1.5 * float(plain.sigma[0])
    assert (plain.record["sigma_bank"], other.record["sigma_bank"]) == ("training statements", "given statements")


def test_a_bank_of_one_class_is_fine_since_a_spread_needs_no_labels(acts, probes):
    bank = acts.select(acts.labels)
    theta = mass_mean(acts, PLANTED)
    shift = fit_shift(acts, probes, top_k=1, sigma_statements=bank)
    assert float(shift.sigma[0]) == pytest.approx((examples(bank, PLANTED)[0] @ theta).std(), rel=1e-5)


def test_the_probe_direction_is_the_normalised_coefficient(acts, probes):
    shift = fit_shift(acts, probes, top_k=6, direction="probe")
    for (layer, head), direction in zip(shift.heads, shift.directions, strict=True):
        coef = probes.coef[LAYERS.index(layer), head]
        assert torch.allclose(direction.double(), coef / coef.norm(), rtol=0, atol=1e-6)


def test_random_shifts_have_the_norm_of_the_mass_mean_shift_in_other_directions(acts, probes):
    real = fit_shift(acts, probes, top_k=12)
    drawn = [fit_shift(acts, probes, top_k=12, direction="random", seed=seed) for seed in range(20)]
    cosines = torch.stack([cosine_similarity(d.directions, real.directions) for d in drawn])
    for control in drawn:
        assert control.heads == real.heads
        for head, delta in control.deltas.items():
            assert float(delta.norm()) == pytest.approx(float(real.deltas[head].norm()), rel=1e-5)
    # isotropic: in 8 dimensions the mean squared cosine is 1/8 and the mean cosine 0
    assert float((cosines**2).mean()) == pytest.approx(1 / 8, abs=0.03)
    assert abs(float(cosines.mean())) < 0.08
    assert float(cosines.max()) < 0.999


def test_the_seed_decides_the_random_directions_alone(acts, probes):
    one, again, other = (fit_shift(acts, probes, direction="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.directions, again.directions)
    assert not torch.allclose(one.directions, other.directions, atol=0.1)
    assert torch.equal(fit_shift(acts, probes, seed=1).directions, fit_shift(acts, probes, seed=2).directions)


@every_direction
def test_fitting_leaves_its_inputs_untouched(acts, probes, direction):
    before = [acts.values.clone(), acts.labels.clone(), probes.coef.clone(), probes.accuracy.clone()]
    fit_shift(acts, probes, direction=direction)
    for old, new in zip(before, (acts.values, acts.labels, probes.coef, probes.accuracy), strict=True):
        assert torch.equal(old, new)


@every_direction
def test_the_order_of_examples_does_not_matter(acts, probes, direction):
    order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(0))
    groups = tuple(acts.groups[i] for i in order.tolist())
    other = replace(acts, values=acts.values[order], labels=acts.labels[order], groups=groups)
    one, two = (fit_shift(a, probes, direction=direction) for a in (acts, other))
    assert torch.allclose(one.directions, two.directions, rtol=0, atol=1e-6)
    assert torch.allclose(one.sigma, two.sigma, rtol=0, atol=1e-6)


@data_direction
def test_swapping_the_labels_flips_the_direction_and_keeps_its_spread(acts, direction):
    swapped = replace(acts, labels=~acts.labels)
    one, other = (fit_shift(a, fit_logistic(a), top_k=3, direction=direction) for a in (acts, swapped))
    assert one.heads == other.heads
    assert torch.allclose(one.directions, -other.directions, rtol=0, atol=1e-5)
    assert torch.allclose(one.sigma, other.sigma, rtol=0, atol=1e-5)


def test_a_planted_direction_is_recovered_and_none_in_noise():
    acts, noise = activations(), activations(separation=0)
    shift = fit_shift(acts, fit_mass_mean(acts), top_k=1)
    assert shift.heads == (PLANTED,)
    assert float(cosine_similarity(shift.directions[0], planted_direction(), dim=0)) > 0.99
    probes = fit_mass_mean(noise)
    spurious = fit_shift(noise, probes, top_k=12)
    at = spurious.heads.index(PLANTED)
    assert abs(float(cosine_similarity(spurious.directions[at], planted_direction(), dim=0))) < 0.9


def test_a_shift_records_where_it_came_from(acts, probes):
    made = replace(acts, record={"model": {"name": "m"}, "position": "last", "site": "heads"})
    shift = fit_shift(made, probes, top_k=2, direction="probe", seed=3)
    expected = [float(probes.accuracy[LAYERS.index(layer), head]) for layer, head in shift.heads]
    assert shift.record == {
        "model": {"name": "m"},
        "direction": "probe",
        "position": "last",
        "n_statements": 480,
        "sigma_bank": "training statements",
        "accuracy": expected,
        "validation_questions": list(probes.validation_questions),
        "questions": sorted(set(made.groups)),
        "seed": 3,
    }
    assert shift.cost.trainable_parameters == 2 * 8
    described = json.loads(json.dumps(shift.describe()))
    assert described["heads"] == [list(h) for h in shift.heads]
    assert described["direction"] == "probe"
    assert "model" not in described
    names = [fit_shift(acts, probes, direction=d).name for d in DIRECTIONS]
    assert names == ["ITI", "ITI (probe weights)", "Random direction"]


@every_direction
@pytest.mark.parametrize("label", [True, False])
def test_data_of_one_class_are_refused(acts, probes, direction, label):
    with pytest.raises(BadDataset, match=f"all 240 statements are {str(label).lower()}: give more of the other"):
        fit_shift(acts.select(acts.labels == label), probes, direction=direction)


def with_nan(acts: HeadActivations, layer: int) -> HeadActivations:
    values = acts.values.clone()
    values[0, LAYERS.index(layer), 0, 0] = float("nan")
    return replace(acts, values=values)


def test_nan_activations_are_refused_naming_the_layer(acts, probes):
    with pytest.raises(BadValue, match=r"NaN or infinite values in layer\(s\) 7: they come from layer 7"):
        fit_shift(with_nan(acts, 7), probes)
    with pytest.raises(BadValue, match=r"layer\(s\) 2: they come"):
        fit_shift(acts, probes, sigma_statements=with_nan(acts, 2))


def test_activations_of_the_residual_stream_are_refused(acts, probes):
    with pytest.raises(BadValue, match="needs activations captured with site='heads', got site='residual'"):
        fit_shift(replace(acts, record={"site": "residual"}), probes)


@pytest.mark.parametrize("other", [{"n_heads": 5}, {"d_head": 6}, {"layers": (2, 5)}, {"layers": (2, 5, 8)}])
def test_probes_or_a_bank_of_another_geometry_are_refused(acts, probes, other):
    elsewhere = activations(30, **other) if 5 in other.get("layers", LAYERS) else activations(30)
    with pytest.raises(ShapeError, match=r"activations \(3, 4, 8\) and probes .* make both on the same model"):
        fit_shift(acts, fit_mass_mean(elsewhere))
    with pytest.raises(ShapeError, match=r"activations \(3, 4, 8\) and sigma_statements .* make both on the same"):
        fit_shift(acts, probes, sigma_statements=elsewhere)


def test_a_bank_too_small_for_a_spread_is_refused(acts, probes):
    one = acts.select(torch.arange(len(acts)) == 0)
    with pytest.raises(BadDataset, match="sigma_statements holds 1 statements; a spread needs two or more"):
        fit_shift(acts, probes, sigma_statements=one)


def test_an_unknown_direction_is_refused_naming_the_known_ones(acts, probes):
    # users run it without the tests' check of annotations, which would speak first
    with pytest.raises(BadValue, match="unknown direction 'pca'; choose mass_mean, probe or random"):
        inspect.unwrap(fit_shift)(acts, probes, direction="pca")


@pytest.mark.parametrize("top_k", [0, 13])
def test_more_heads_than_there_are_or_none_are_refused(acts, probes, top_k):
    with pytest.raises(BadValue, match=f"top {top_k} heads asked for; the model has 12"):
        fit_shift(acts, probes, top_k=top_k)


def test_a_head_that_does_not_vary_has_no_direction(acts, probes):
    values = acts.values.clone()
    values[:, 1, 3] = 1.0
    with pytest.raises(BadValue, match="layer 5 head 3 has a zero direction"):
        fit_shift(replace(acts, values=values), probes, top_k=1)


def test_scaling_multiplies_the_strength_and_nothing_else():
    shift = unit_shift((0, 1), (2, 3))
    for factor in (8, 0.5, -3, 0):
        scaled = shift.scaled(2).scaled(factor)
        assert scaled.strength == 2 * factor
        assert torch.equal(scaled.directions, shift.directions)
        for head, delta in scaled.deltas.items():
            assert torch.allclose(delta, 2 * factor * shift.deltas[head])
    assert shift.strength == 1.0


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), float("-inf")])
def test_a_strength_that_is_not_finite_is_refused(factor):
    with pytest.raises(BadValue, match=f"strength must be a finite number, got {factor}"):
        unit_shift((0, 1)).scaled(factor)


def test_the_first_heads_of_a_shift_are_its_best(acts, probes):
    shift = fit_shift(acts, probes, top_k=6).scaled(3)
    part = shift.first(2)
    assert part.heads == probes.top(2)
    assert part.strength == 3
    assert all(torch.equal(delta, shift.deltas[head]) for head, delta in part.deltas.items())
    assert part.record["accuracy"] == shift.record["accuracy"][:2]
    assert len(shift.record["accuracy"]) == 6
    for k in (0, 7):
        with pytest.raises(BadValue, match=f"first {k} heads asked for; the shift has 6"):
            shift.first(k)


def test_tensors_that_do_not_fit_the_heads_are_refused():
    with pytest.raises(ShapeError, match=r"2 heads came with directions \(1, 12\) and sigma \(1,\); expected one row"):
        HeadShift((Head(0, 1), Head(0, 2)), torch.ones(1, 12), torch.ones(1))
    with pytest.raises(ShapeError, match=r"1 heads came with directions \(3, 12\) and sigma \(3,\)"):
        HeadShift((Head(0, 1),), torch.ones(3, 12), torch.ones(3))


def test_a_head_may_stand_in_a_shift_only_once():
    with pytest.raises(BadValue, match="a head stands twice in the shift"):
        unit_shift((0, 1), (0, 1))


def test_the_sum_of_two_shifts_adds_their_vectors():
    one, other = unit_shift((0, 1), (1, 2), seed=1).scaled(3), unit_shift((1, 2), (2, 0), seed=2).scaled(-0.5)
    both = one + other
    assert both.heads == (Head(0, 1), Head(1, 2), Head(2, 0))
    expected = {
        Head(0, 1): one.deltas[Head(0, 1)],
        Head(1, 2): one.deltas[Head(1, 2)] + other.deltas[Head(1, 2)],
        Head(2, 0): other.deltas[Head(2, 0)],
    }
    for head, delta in both.deltas.items():
        assert torch.allclose(delta, expected[head], rtol=0, atol=1e-6)
    assert torch.allclose(both.directions.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)
    assert both.name == "ITI + ITI"
    assert [part["strength"] for part in both.record["sum_of"]] == [3, -0.5]


def test_a_shift_and_its_opposite_cancel():
    shift = unit_shift((0, 1), (2, 3))
    nothing = shift + shift.scaled(-1)
    assert all(float(delta.abs().max()) == 0 for delta in nothing.deltas.values())


def test_sums_of_sums_and_of_hand_made_shifts_work_and_keep_what_is_known_of_the_model():
    model = tiny_model("llama")
    known = unit_shift((1, 1), record={"model": fingerprint(model)})
    by_hand = unit_shift((0, 1))
    assert "model" not in (by_hand + by_hand).record
    for total in (known + by_hand, by_hand + known, (by_hand + by_hand) + known, known + (known + by_hand)):
        assert total.record["model"] == known.record["model"]
        with total.applied(model, "all") as edited:
            edited(torch.tensor([[3, 4, 5]]))
    with (by_hand + by_hand).applied(model, "all") as edited:
        edited(torch.tensor([[3, 4, 5]]))


@pytest.mark.parametrize("other", [("llama", 1), ("gpt2", 0)])
def test_shifts_of_different_models_cannot_be_added(other):
    family, seed = other
    one = unit_shift((0, 1), record={"model": fingerprint(tiny_model("llama"))})
    two = unit_shift((0, 1), record={"model": fingerprint(tiny_model(family, seed=seed))})
    with pytest.raises(Incompatible, match=r"cannot add ITI and ITI: they were made for different models .* fit both"):
        one + two


def test_a_shift_is_refused_by_another_checkpoint_and_another_geometry(fitted):
    model, shift = fitted
    for wrong, telling in (
        (tiny_model("llama", seed=1), "the shift 'ITI' was made for another checkpoint of this architecture"),
        (tiny_model("gpt2"), "the shift 'ITI' was made for another model: model_type llama against gpt2; fit it"),
    ):
        with pytest.raises(Incompatible, match=telling), shift.applied(wrong, "all"):
            pass
        with pytest.raises(Incompatible, match=telling), shift.scaled(0).applied(wrong, "all"):
            pass
    with shift.applied(model, "all") as edited:
        assert edited is model


def test_the_same_checkpoint_in_another_dtype_is_accepted_with_a_warning(fitted):
    _, shift = fitted
    halved = tiny_model("llama", dtype=torch.bfloat16)
    telling = "was made with dtype float32, the model has bfloat16"
    with pytest.warns(UserWarning, match=telling), shift.applied(halved, "all"):
        pass
    with warnings.catch_warnings(action="error"), shift.applied(tiny_model("llama"), "all"):
        pass


def test_a_shift_on_heads_that_the_model_lacks_is_refused():
    model = tiny_model("llama")
    for head in ((3, 0), (0, 4)):
        shift = unit_shift(head)
        with pytest.raises(BadValue, match=f"no head {head[1]} in layer {head[0]}"), shift.applied(model, "all"):
            pass
    narrow, telling = unit_shift((0, 0), d_head=10), r"expected \(12,\), got \(10,\)"
    with pytest.raises(ShapeError, match=telling), narrow.applied(model, "all"):
        pass


def test_a_shift_is_the_same_after_saving_and_loading(fitted, tmp_path):
    _, shift = fitted
    shift = shift.scaled(-2.5).renamed("Mine")
    shift.save(tmp_path / "shift")
    loaded = HeadShift.load(tmp_path / "shift")
    assert torch.equal(loaded.directions, shift.directions)
    assert torch.equal(loaded.sigma, shift.sigma)
    for name in ("heads", "strength", "name", "record", "leaves_prompt_unedited"):
        assert getattr(loaded, name) == getattr(shift, name)
    assert all(isinstance(head, Head) for head in loaded.heads)
    size = sum(file.stat().st_size for file in (tmp_path / "shift").iterdir())
    assert loaded.cost == Cost(shift.cost.seconds, 3 * 12, size)
    assert not list(tmp_path.glob("**/*.pkl")) + list(tmp_path.glob("**/*.pt"))


def test_a_sum_is_the_same_after_saving_and_loading(tmp_path):
    both = unit_shift((0, 1), seed=1) + unit_shift((1, 2), seed=2)
    both.save(tmp_path / "shift")
    loaded = HeadShift.load(tmp_path / "shift")
    assert all(torch.equal(delta, both.deltas[head]) for head, delta in loaded.deltas.items())
    assert loaded.record == json.loads(json.dumps(both.record))


def test_folders_that_do_not_hold_a_whole_shift_are_refused(acts, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(Incompatible, match="no shift at"):
        HeadShift.load(tmp_path / "missing")
    acts.save(tmp_path / "other")
    with pytest.raises(Incompatible, match=r"expected a shift at .*, found activations"):
        HeadShift.load(tmp_path / "other")
    unit_shift((0, 1)).save(tmp_path / "shift")
    file = tmp_path / "shift" / "tensors.safetensors"
    save_file({"directions": load_file(file)["directions"]}, file)
    with pytest.raises(Incompatible, match="again"):
        HeadShift.load(tmp_path / "shift")
    file.unlink()
    with pytest.raises(Incompatible, match=r"no readable tensors\.safetensors"):
        HeadShift.load(tmp_path / "shift")


def test_a_shift_does_not_overwrite_another_kind_of_result(acts, tmp_path):
    acts.save(tmp_path / "taken")
    with pytest.raises(Incompatible, match=r"cannot write a shift to .* holds activations"):
        unit_shift((0, 1)).save(tmp_path / "taken")
    assert len(HeadActivations.load(tmp_path / "taken")) == len(acts)


def test_a_shift_of_nothing_or_of_what_is_no_number_is_refused():
    with pytest.raises(BadValue, match="the shift needs one head or more, got none"):
        HeadShift((), torch.ones(0, 12), torch.ones(0))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(BadValue, match="directions and sigma must be finite numbers"):
            HeadShift((Head(0, 1),), torch.full((1, 12), bad), torch.ones(1))
        with pytest.raises(BadValue, match="directions and sigma must be finite numbers"):
            HeadShift((Head(0, 1),), torch.ones(1, 12), torch.tensor([bad]))


def test_a_number_is_no_shift_to_add():
    with pytest.raises(TypeError, match="unsupported operand"):
        unit_shift((0, 1)) + 3


def test_a_record_whose_heads_do_not_fit_its_tensors_is_a_damaged_shift(tmp_path):
    unit_shift((0, 1), (2, 3)).save(tmp_path / "shift")
    (record,) = (tmp_path / "shift").glob("*.json")
    saved = json.loads(record.read_text())
    saved["heads"] = saved["heads"][:1]
    record.write_text(json.dumps(saved))
    with pytest.raises(Incompatible, match=r"holds a damaged shift .*; fit it again"):
        HeadShift.load(tmp_path / "shift")
