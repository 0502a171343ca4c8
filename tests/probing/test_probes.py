"""Probes: the right optimum, honest validation, and nothing found where nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tests.planted import LAYERS, PLANTED, activations, planted_direction
from trimtab.activations import Head, HeadActivations
from trimtab.errors import BadDataset, BadValue, Incompatible, ShapeError
from trimtab.probes import HeadProbes, fit_logistic, fit_mass_mean, heat_map, shuffled, text_map

FITS = {"logistic": fit_logistic, "mass_mean": fit_mass_mean}
TENSORS = ("coef", "intercept", "accuracy", "accuracy_low", "accuracy_high", "auroc")
every_fit = pytest.mark.parametrize("fit", FITS.values(), ids=FITS)


@pytest.fixture(scope="module")
def planted() -> HeadActivations:
    return activations()


@pytest.fixture(scope="module")
def held() -> HeadActivations:
    return activations(60, seed=1, prefix="held out")


def probes_of(
    accuracy: list[list[float]], auroc: list[list[float]] | None = None, apart: list[list[float]] | None = None
) -> HeadProbes:
    a = torch.tensor(accuracy, dtype=torch.float64)
    b, c = (a if given is None else torch.tensor(given, dtype=torch.float64) for given in (auroc, apart))
    return HeadProbes(torch.zeros(*a.shape, 2), torch.zeros_like(a), a, a, a, b, c, tuple(LAYERS[: len(accuracy)]), ())


def reference(acts: HeadActivations, layer: int, head: int, **options) -> LogisticRegression:
    x, y, _ = acts.head(layer, head)
    return LogisticRegression(**options).fit(x.astype(np.float64), y)


def largest_error(probes: HeadProbes, acts: HeadActivations, **options) -> float:
    """Return the largest distance of any coefficient or intercept from scikit-learn's tight optimum."""
    worst = 0.0
    for i, layer in enumerate(acts.layers):
        for head in range(acts.n_heads):
            exact = reference(acts, layer, head, solver="newton-cholesky", tol=1e-10, max_iter=1000, **options)
            worst = max(worst, float(np.abs(probes.coef[i, head].numpy() - exact.coef_[0]).max()))
            worst = max(worst, abs(float(probes.intercept[i, head]) - float(exact.intercept_[0])))
    return worst


def correlated(seed: int = 3) -> HeadActivations:
    """Return activations whose covariance spectrum spans eight decades, as a residual stream's may."""
    rng = np.random.default_rng(seed)
    d = 24
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    x = rng.normal(size=(400, d)) * np.logspace(1.5, -2.5, d) @ rotation
    labels = x @ rotation.T @ (rng.normal(size=d) / np.logspace(1.5, -2.5, d)) + rng.normal(size=400) > 0
    groups = tuple(f"q{i // 4}" for i in range(400))
    return HeadActivations(torch.from_numpy(x)[:, None, None], torch.from_numpy(labels), groups, (0,))


@pytest.mark.parametrize("C", [1, 0.05])
def test_logistic_coefficients_equal_the_tight_optimum_of_scikit_learn(planted, held, C):
    probes = fit_logistic(planted, validation=held, C=C)
    assert largest_error(probes, planted, C=C) < 1e-3
    # the control: the penalty matters, so the other strength's optimum is far away
    assert largest_error(probes, planted, C=10 * C) > 1e-2


def test_logistic_coefficients_are_exact_on_correlated_features_where_default_lbfgs_is_off():
    acts = correlated()
    validation = replace(acts, groups=tuple(f"held out {g}" for g in acts.groups))
    assert largest_error(fit_logistic(acts, validation=validation), acts) < 1e-3
    exact = reference(acts, 0, 0, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    with pytest.warns(ConvergenceWarning):
        default = reference(acts, 0, 0)
    assert np.abs(default.coef_ - exact.coef_).max() > 1e-2


def test_mass_mean_is_the_difference_of_means_with_the_threshold_midway(planted, held):
    probes = fit_mass_mean(planted, validation=held)
    for i, layer in enumerate(LAYERS):
        for head in range(4):
            x, y, _ = planted.head(layer, head)
            true, false = x[y].astype(np.float64).mean(0), x[~y].astype(np.float64).mean(0)
            assert np.allclose(probes.coef[i, head], true - false, atol=1e-10)
            assert np.isclose(float(probes.intercept[i, head]), -(true - false) @ (true + false) / 2, atol=1e-10)


@every_fit
def test_accuracy_and_auroc_equal_scikit_learns_on_the_validation_statements(fit, planted):
    held = activations(40, separation=1.0, seed=2, prefix="held out")
    probes = fit(planted, validation=held)
    for i, layer in enumerate(LAYERS):
        for head in range(4):
            x, y, _ = held.head(layer, head)
            score = x.astype(np.float64) @ probes.coef[i, head].numpy() + float(probes.intercept[i, head])
            assert float(probes.accuracy[i, head]) == pytest.approx(accuracy_score(y, score > 0), abs=1e-12)
            assert float(probes.auroc[i, head]) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert torch.allclose(probes.accuracy_on(held), probes.accuracy)
    assert len(probes.accuracy.unique()) > 1


@every_fit
def test_fitting_leaves_its_inputs_untouched(fit, planted, held):
    before = [planted.values.clone(), planted.labels.clone(), held.values.clone(), dict(planted.record)]
    fit(planted, validation=held)
    assert torch.equal(planted.values, before[0])
    assert torch.equal(planted.labels, before[1])
    assert torch.equal(held.values, before[2])
    assert planted.record == before[3]


@every_fit
def test_the_same_seed_gives_the_same_probes_and_another_seed_other_validation_questions(fit, planted):
    one, again, other = (fit(planted, seed=seed) for seed in (4, 4, 5))
    for name in TENSORS:
        assert torch.equal(getattr(one, name), getattr(again, name))
    assert one.validation_questions == again.validation_questions
    assert one.validation_questions != other.validation_questions
    assert not torch.equal(one.coef, other.coef)


def reordered(acts: HeadActivations) -> HeadActivations:
    order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(0))
    groups = tuple(acts.groups[i] for i in order.tolist())
    return replace(acts, values=acts.values[order], labels=acts.labels[order], groups=groups)


@every_fit
def test_the_order_of_examples_does_not_matter(fit, planted):
    one, other = fit(planted), fit(reordered(planted))
    for name in TENSORS:
        assert torch.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=1e-6)
    assert one.validation_questions == other.validation_questions


@every_fit
def test_swapping_the_labels_flips_the_direction_and_keeps_the_accuracy(fit, planted):
    one, swapped = fit(planted), fit(replace(planted, labels=~planted.labels))
    assert torch.allclose(swapped.coef, -one.coef, rtol=0, atol=1e-6)
    assert torch.allclose(swapped.intercept, -one.intercept, rtol=0, atol=1e-6)
    assert torch.allclose(swapped.accuracy, one.accuracy)
    assert torch.allclose(swapped.auroc, one.auroc)


@every_fit
@pytest.mark.parametrize("label", [True, False])
def test_data_of_one_class_are_refused(fit, planted, held, label):
    one_class = planted.select(planted.labels == label)
    with pytest.raises(BadDataset, match=f"all 240 statements are {str(label).lower()}: give more of the other"):
        fit(one_class)
    with pytest.raises(BadDataset, match="all 120 statements are"):
        fit(planted, validation=held.select(held.labels == label))


@every_fit
def test_no_examples_are_refused(fit, planted):
    with pytest.raises(BadDataset, match="no examples"):
        fit(planted.select(torch.zeros(len(planted), dtype=torch.bool)))


@every_fit
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinite_activations_are_refused_naming_the_layers(fit, planted, held, bad):
    def spoiled(acts: HeadActivations, *layers: int) -> HeadActivations:
        values = acts.values.clone()
        for layer in layers:
            values[3, LAYERS.index(layer), 1, 2] = bad
        return replace(acts, values=values)

    with pytest.raises(BadValue, match=r"NaN or infinite values in layer\(s\) 7: they come"):
        fit(spoiled(planted, 7))
    with pytest.raises(BadValue, match=r"layer\(s\) 2, 5: they come from layer 2 "):
        fit(spoiled(planted, 2, 5))
    with pytest.raises(BadValue, match=r"layer\(s\) 5: they come"):
        fit(planted, validation=spoiled(held, 5))


@pytest.mark.parametrize("C", [0, -1.0, float("nan")])
def test_a_penalty_that_is_not_positive_is_refused(planted, C):
    with pytest.raises(BadValue, match="C must be positive, got"):
        fit_logistic(planted, C=C)


@every_fit
def test_a_planted_direction_is_recovered_and_its_head_ranked_first(fit, planted, held):
    probes = fit(planted, validation=held)
    cosine = cosine_similarity(probes.coef[1, 3].double(), planted_direction().double(), dim=0)
    assert float(cosine) > (0.99 if fit is fit_mass_mean else 0.95)
    assert probes.top(1) == (PLANTED,)
    assert float(probes.accuracy[1, 3]) > 0.95
    assert float(probes.accuracy_low[1, 3]) > 0.9


@every_fit
def test_nothing_is_found_in_noise(fit):
    noise, unseen = (activations(150, separation=0, n_heads=12, seed=s, prefix=f"set {s}") for s in (5, 6))
    probes = fit(noise, validation=unseen)
    covered = ((probes.accuracy_low <= 0.5) & (probes.accuracy_high >= 0.5)).double().mean()
    # 95 % intervals of 36 heads: at least 31 cover, save by a chance of 1 in 300
    assert float(covered) >= 31 / 36
    # the control: the same sizes with something to find
    found, unseen = (activations(150, separation=2, n_heads=12, seed=s, prefix=f"set {s}") for s in (5, 6))
    probes = fit(found, validation=unseen)
    assert float(probes.accuracy_low[1, 3]) > 0.7


@every_fit
def test_shuffled_labels_leave_nothing_to_read(fit, planted, held):
    control = fit(shuffled(planted, seed=1), validation=held)
    assert abs(float(control.accuracy.mean()) - 0.5) < 0.05
    assert float(fit(planted, validation=held).accuracy.max()) > 0.95


def test_shuffling_moves_labels_only_and_by_the_seed(planted):
    one, again, other = (shuffled(planted, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.labels, again.labels)
    assert not torch.equal(one.labels, other.labels)
    assert not torch.equal(one.labels, planted.labels)
    assert int(one.labels.sum()) == int(planted.labels.sum())
    assert torch.equal(one.values, planted.values)
    assert one.groups == planted.groups
    assert one.record["shuffled_labels"] == 1


@every_fit
def test_validation_is_by_question(fit, planted):
    probes = fit(planted, validation=0.25)
    questions = probes.validation_questions
    assert len(questions) == 30
    assert probes.record["n_train"] == 90 * 4
    # oracle: fitted on all statements of the other questions, measured on all of these
    inside = torch.tensor([g in questions for g in planted.groups])
    rebuilt = fit(planted.select(~inside), validation=planted.select(inside))
    for name in TENSORS:
        assert torch.allclose(getattr(probes, name), getattr(rebuilt, name), rtol=0, atol=1e-9)


@every_fit
def test_a_given_validation_set_is_used_and_may_not_share_questions(fit, planted, held):
    probes = fit(planted, validation=held)
    assert set(probes.validation_questions) == set(held.groups)
    assert probes.record["n_train"] == len(planted)
    shared = replace(held, groups=("question 0", *held.groups[1:]))
    with pytest.raises(BadValue, match="1 validation questions are also training questions; give others"):
        fit(planted, validation=shared)


@every_fit
@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_validation_share_that_leaves_one_side_empty_is_refused(fit, planted, share):
    with pytest.raises(BadDataset, match="leaves one side empty"):
        fit(planted, validation=share)


@every_fit
def test_validation_activations_of_another_geometry_are_refused(fit, planted):
    with pytest.raises(ShapeError, match="capture both from the same model and site"):
        fit(planted, validation=activations(20, d_head=6, prefix="held out"))
    with pytest.raises(ShapeError, match="layers"):
        fit(planted, validation=activations(20, layers=(5, 2, 7), prefix="held out"))


def widths(probes: HeadProbes) -> Tensor:
    return probes.accuracy_high - probes.accuracy_low


@every_fit
def test_the_interval_contains_the_accuracy_and_is_wider_with_fewer_questions(fit, planted):
    few, many = (fit(planted, validation=activations(n, separation=1, seed=9, prefix="v")) for n in (20, 180))
    for probes in (few, many):
        assert bool((probes.accuracy_low <= probes.accuracy).all())
        assert bool((probes.accuracy <= probes.accuracy_high).all())
    # the width goes with 1 / sqrt(questions): three times here
    assert 2.2 < float(widths(few).mean() / widths(many).mean()) < 4


def test_the_interval_resamples_questions_not_statements(planted, held):
    tenfold = replace(
        held, values=held.values.repeat(10, 1, 1, 1), labels=held.labels.repeat(10), groups=held.groups * 10
    )
    once, copied = (fit_mass_mean(planted, validation=v) for v in (held, tenfold))
    # saying everything ten times adds no question, and so no certainty
    assert torch.allclose(widths(copied), widths(once), rtol=0, atol=1e-12)
    # the control: as questions of their own the copies would narrow the interval by sqrt(10)
    own = replace(tenfold, groups=tuple(f"{g} copy {i // len(held)}" for i, g in enumerate(tenfold.groups)))
    narrowed = widths(fit_mass_mean(planted, validation=own)).mean() / widths(once).mean()
    assert 0.25 < float(narrowed) < 0.4


def test_the_interval_is_that_of_a_plain_bootstrap_loop(planted):
    held = activations(40, separation=1, per_question=3, seed=12, prefix="v")
    probes = fit_mass_mean(planted, validation=held)
    right = ((probes.scores(held)[:, 1, 3] > 0) == held.labels).double().numpy().reshape(40, 3)
    rng = np.random.default_rng(100)
    drawn = [right[rng.integers(0, 40, 40)].mean() for _ in range(4000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert float(probes.accuracy_low[1, 3]) == pytest.approx(low, abs=0.015)
    assert float(probes.accuracy_high[1, 3]) == pytest.approx(high, abs=0.015)


def test_top_ranks_by_accuracy_then_auroc_then_how_far_apart_the_sides_lie():
    apart = [[9.0, 1.0, 1.0], [1.0, 2.0, 3.0]]
    probes = probes_of([[0.7, 0.9, 0.8], [0.9, 0.8, 0.9]], [[0.99, 0.8, 0.6], [0.9, 0.6, 0.8]], apart)
    expected = (Head(5, 0), Head(5, 2), Head(2, 1), Head(5, 1), Head(2, 2), Head(2, 0))
    for k in range(1, 7):
        assert probes.top(k) == expected[:k]


def test_of_heads_that_read_everything_rightly_the_one_with_the_most_room_comes_first(planted):
    # the planted head has the last place, so that no order of places could find it
    wide = replace(
        planted, values=planted.values * 0.01 + 4 * torch.where(planted.labels, 1.0, -1.0)[:, None, None, None]
    )
    wide.values[:, -1, -1] *= 3
    train, held = wide.split(test=0.5)
    probes = fit_mass_mean(train, validation=held)
    assert bool((probes.accuracy == 1).all() and (probes.auroc == 1).all())
    scores = probes.scores(held)[:, -1, -1].double()
    true, false = scores[held.labels], scores[~held.labels]
    pooled = ((true.var(correction=0) + false.var(correction=0)) / 2).sqrt()
    assert float(probes.separation[-1, -1]) == pytest.approx(float((true.mean() - false.mean()) / pooled))
    best = probes.separation.flatten().argmax().item()
    assert probes.top(1)[0] == Head(LAYERS[best // 4], best % 4)


def test_top_heads_are_plain_numbers_ready_for_json():
    head = probes_of([[0.5, 0.9]]).top(1)[0]
    assert (type(head), type(head.layer), type(head.head)) == (Head, int, int)


@pytest.mark.parametrize("k", [0, -1, 7])
def test_too_many_or_no_heads_are_refused_naming_how_many_there_are(k):
    probes = probes_of([[0.7, 0.9, 0.8], [0.9, 0.8, 0.9]])
    with pytest.raises(BadValue, match=f"top {k} heads asked for; the model has 6, choose 1 to that many"):
        probes.top(k)


def test_scores_are_the_probes_log_odds(planted, held):
    probes = fit_logistic(planted, validation=held)
    expected = reference(planted, *PLANTED, solver="newton-cholesky", tol=1e-10).decision_function(
        held.head(*PLANTED).X.astype(np.float64)
    )
    assert np.allclose(probes.scores(held)[:, 1, 3].numpy(), expected, atol=1e-3)


def test_activations_of_another_geometry_cannot_be_scored(planted, held):
    probes = fit_mass_mean(planted, validation=held)
    with pytest.raises(ShapeError, match=r"\(3, 4, 8\) \(layer head d_head\) cannot read activations of \(3, 5, 8\)"):
        probes.scores(activations(5, n_heads=5))


@every_fit
def test_probes_are_the_same_after_saving_and_loading(fit, planted, held, tmp_path):
    probes = fit(replace(planted, record={"model": {"name": "m"}, "position": "last"}), validation=held)
    probes.save(tmp_path / "probes")
    loaded = HeadProbes.load(tmp_path / "probes")
    for name in TENSORS:
        assert torch.equal(getattr(loaded, name), getattr(probes, name))
    for name in ("layers", "validation_questions", "record"):
        assert getattr(loaded, name) == getattr(probes, name)
    assert loaded.top(3) == probes.top(3)


def test_folders_that_do_not_hold_whole_probes_are_refused(planted, held, tmp_path):
    with pytest.raises(Incompatible, match="no probes at"):
        HeadProbes.load(tmp_path / "missing")
    planted.save(tmp_path / "other")
    with pytest.raises(Incompatible, match=r"expected probes at .*, found activations"):
        HeadProbes.load(tmp_path / "other")
    fit_mass_mean(planted, validation=held).save(tmp_path / "probes")
    (tmp_path / "probes" / "tensors.safetensors").unlink()
    with pytest.raises(Incompatible, match=r"no readable tensors\.safetensors"):
        HeadProbes.load(tmp_path / "probes")


def test_probes_that_lack_tensors_are_refused(planted, held, tmp_path):
    from safetensors.torch import load_file, save_file

    fit_mass_mean(planted, validation=held).save(tmp_path / "probes")
    file = tmp_path / "probes" / "tensors.safetensors"
    tensors = load_file(file)
    del tensors["auroc"]
    save_file(tensors, file)
    with pytest.raises(Incompatible, match="write it again"):
        HeadProbes.load(tmp_path / "probes")


def test_the_heat_map_shows_every_accuracy_and_frames_the_marked_heads():
    probes = probes_of([[0.7, 0.9, 0.8], [0.95, 0.5, 0.6]])
    figure = heat_map(probes, marked=(Head(5, 0), Head(2, 1)), title="Two layers")
    axes, bar = figure.axes
    assert np.allclose(axes.images[0].get_array(), 100 * probes.accuracy)
    frames = [p for p in axes.patches if isinstance(p, Rectangle)]
    assert [(p.get_xy(), p.get_width(), p.get_height()) for p in frames] == [((-0.5, 0.5), 1, 1), ((0.5, -0.5), 1, 1)]
    assert not any(p.get_fill() for p in frames)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["2", "5"]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Two layers", "head", "layer")
    assert bar.get_ylabel() == "validation accuracy (%)"
    assert not heat_map(probes).axes[0].patches


def test_the_heat_map_refuses_to_mark_a_head_that_is_not_there():
    probes = probes_of([[0.7, 0.9, 0.8], [0.95, 0.5, 0.6]])
    for head in (Head(3, 0), Head(2, 3), Head(2, -1)):
        with pytest.raises(BadValue, match=rf"no head {head.head} in layer {head.layer}"):
            heat_map(probes, marked=(head,))


def test_the_heat_map_is_written_as_a_picture(tmp_path):
    heat_map(probes_of([[0.7, 0.9]])).savefig(tmp_path / "heads.png")
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


def test_the_text_map_has_a_line_per_layer_and_a_shade_per_head():
    lines = text_map(probes_of([[0.5, 0.75, 1.0], [0.2, 0.549, 0.951]])).splitlines()
    assert lines == [
        "layer   5 |  @| best 95.1 %",
        "layer   2 | +@| best 100.0 %",
        "50 % ' ' to 100 % '@', heads 0-2 from left to right",
    ]


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(BadValue, match=f"device '{device}' is not available here; try 'cpu' or leave it out"):
        fit_logistic(activations(), device=device)


def test_large_values_whose_sum_overflows_are_finite_all_the_same():
    acts = activations()
    large = replace(acts, values=torch.full_like(acts.values, 3e38))
    assert large.require_finite() is large
    assert not bool(large.values.sum().isfinite())
    large.values[0, 1, 0, 0] = float("nan")
    with pytest.raises(BadValue, match=r"NaN or infinite values in layer\(s\) "):
        large.require_finite()
