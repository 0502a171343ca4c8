"""LEACE, ACE and ablation: formulas against plain numpy, planted worlds, and what is left in a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab import NoEdit
from trimtab.datasets import LabelledTexts, labelled_texts
from trimtab.datasets.labelled_texts import LabelledText
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset, BadValue
from trimtab.models.adding import Affine
from trimtab.steer import ACE, LEACE, Ablation, choose_depth, leace, readable


def world(n: int = 4000, d: int = 12, k: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return correlated Gaussians whose mean hangs on the class, one-hot labels (all classes but one), and classes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(50), dtype=torch.float64)
    centres = 1.5 * torch.randn(k + 1, d, generator=torch.Generator().manual_seed(51), dtype=torch.float64)
    classes = torch.randint(0, k + 1, (n,), generator=generator)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + centres[classes]
    return x, torch.nn.functional.one_hot(classes, k + 1)[:, 1:].double(), classes


def erased(x: Tensor, change: Affine) -> Tensor:
    return x - (x - change.centre) @ change.right.T @ change.left.T


def cross(x: Tensor, z: Tensor) -> Tensor:
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("shrinkage", [0, 0.3, "ledoit-wolf"])
def test_the_cross_covariance_is_zero_and_the_change_a_projection_of_least_rank(k, shrinkage):
    x, z, _ = world(k=k)
    change = leace(x, z, shrinkage=shrinkage)
    assert float(cross(erased(x, change), z).abs().max()) < 1e-12
    assert float(cross(x, z).abs().max()) > 0.1
    projection = torch.eye(12, dtype=torch.float64) - change.left @ change.right
    torch.testing.assert_close(projection @ projection, projection, rtol=0, atol=1e-12)
    assert int(torch.linalg.matrix_rank(change.left @ change.right)) == k


@pytest.mark.parametrize("k", [1, 3])
def test_it_is_the_published_formula_written_out_in_numpy(k):
    x, z, classes = world(k=k)
    every = torch.nn.functional.one_hot(classes, k + 1).numpy().astype(float)  # concept-erasure's labels: all classes
    xs = x.numpy()
    covariance = np.cov(xs.T, bias=True)
    whiten = np.linalg.inv(sqrtm(covariance))
    u, s, _ = np.linalg.svd(whiten @ cross(x, torch.from_numpy(every)).numpy(), full_matrices=False)
    u = u[:, s > 0.01]
    wanted = np.eye(12) - np.linalg.inv(whiten) @ u @ u.T @ whiten
    change = leace(x, z)
    np.testing.assert_allclose(np.eye(12) - (change.left @ change.right).numpy(), wanted, atol=1e-10)
    np.testing.assert_allclose(change.centre.numpy(), xs.mean(0), atol=1e-12)


def test_no_other_projection_that_erases_the_concept_changes_less():
    x, z, _ = world()
    least = float((erased(x, leace(x, z)) - x).square().mean())
    along = cross(x, z)[:, 0]
    for seed in range(20):
        other = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        change = Affine(along[:, None] / (other @ along), other[None], x.mean(0))  # any oblique projection along it
        assert float(cross(erased(x, change), z).abs().max()) < 1e-10
        assert float((erased(x, change) - x).square().mean()) > least
    orthogonal = Affine(along[:, None] / along.square().sum(), along[None], x.mean(0))
    assert float((erased(x, orthogonal) - x).square().mean()) > least


def accuracy(x: Tensor, classes: Tensor, test: Tensor, of: Tensor) -> float:
    return float(LogisticRegression(max_iter=1000).fit(x, classes).score(test, of))


def test_a_fresh_logistic_probe_is_at_chance_on_rows_that_the_eraser_never_saw():
    x, z, _ = world(seed=0)
    probe_x, _, probe_y = world(seed=1)
    test_x, _, test_y = world(seed=2)
    change = leace(x, z)
    chance = float(test_y.double().mean())
    assert accuracy(probe_x, probe_y, test_x, test_y) > 0.9
    left = accuracy(erased(probe_x, change), probe_y, erased(test_x, change), test_y)
    assert abs(left - max(chance, 1 - chance)) < 0.04
    # the control: as large a change along another direction leaves it to be read
    other = Affine(change.left.roll(1, 0), change.right.roll(1, 1), change.centre)
    assert accuracy(erased(probe_x, other), probe_y, erased(test_x, other), test_y) > 0.85


def test_with_fewer_rows_than_dimensions_shrinkage_erases_more_of_what_was_not_seen():
    d, n = 200, 60
    left = {}
    for shrinkage in (0, "ledoit-wolf"):
        x, z, _ = world(n=n, d=d, seed=3)
        test_x, test_z, _ = world(n=4000, d=d, seed=4)
        change = leace(x, z, shrinkage=shrinkage)
        assert float(cross(erased(x, change), z).abs().max()) < 1e-10
        left[shrinkage] = float(cross(erased(test_x, change), test_z).norm() / cross(test_x, test_z).norm())
    assert left["ledoit-wolf"] < left[0]


def test_shrinkage_is_the_share_by_which_correlations_are_drawn_to_zero_and_variances_stay():
    x, z, _ = world(n=40)
    covariance = np.cov(x.numpy().T, bias=True)
    shrunk = 0.8 * covariance + 0.2 * np.diag(np.diag(covariance))
    whiten = np.linalg.inv(sqrtm(shrunk))
    u = whiten @ cross(x, z).numpy()
    wanted = np.linalg.inv(whiten) @ u @ u.T @ whiten / (u.T @ u)
    change = leace(x, z, shrinkage=0.2)
    np.testing.assert_allclose((change.left @ change.right).numpy(), wanted, atol=1e-10)


def test_what_does_not_vary_is_left_alone():
    x, z, _ = world()
    flat = torch.cat([x, torch.ones(len(x), 2, dtype=torch.float64)], 1)
    change = leace(flat, z, shrinkage="ledoit-wolf")
    assert torch.equal(erased(flat, change)[:, 12:], flat[:, 12:])
    torch.testing.assert_close(leace(flat, z).left[:12], leace(x, z).left, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda x, z: leace(x[:2], z[:2]), BadDataset, "more examples than classes"),
        (lambda x, z: leace(x, torch.ones_like(z)), BadDataset, "one label"),
        (lambda x, z: leace(x / 0, z), BadValue, "finite"),
        (lambda x, z: leace(x, z, shrinkage=1.5), BadValue, "from 0 to 1"),
    ],
)
def test_what_cannot_be_erased_is_refused_in_one_sentence(change, error, words):
    x, z, _ = world(100)
    with pytest.raises(error, match=words):
        change(x, z)


# --- in a model -------------------------------------------------------------------------------------------------------

QUESTIONS = tiny_questions(10)


def read(model: Any, edit: Any, position: Any = "last") -> Any:
    with edit.applied(model, "all") as edited:
        return capture_heads(edited, tiny_tokenizer(), QUESTIONS.statements(), site="residual", position=position)


def means(acts: Any) -> Tensor:
    """Return the means of both kinds: kind layer width."""
    x = acts.values[:, :, 0].double()
    return torch.stack([x[acts.labels == kind].mean(0) for kind in (True, False)])


def test_scrubbing_erases_every_layer_with_those_below_in_place():
    model = tiny_model("llama-gqa")
    edit = LEACE().fit(model, tiny_tokenizer(), QUESTIONS)
    assert edit.layers == (0, 1, 2) and edit.fitted_on == sorted(q.key for q in QUESTIONS)
    apart = means(read(model, NoEdit()))
    left = means(read(model, edit))
    assert float((left[0] - left[1]).abs().max()) < 1e-4 < float((apart[0] - apart[1]).abs().max(1).values.min())
    only = LEACE(layers=(1,)).fit(model, tiny_tokenizer(), QUESTIONS)
    left = means(read(model, only))
    assert (
        float((left[0] - left[1])[1].abs().max()) < 1e-4 < float((left[0] - left[1])[[0, 2]].abs().max(1).values.min())
    )


def test_ace_sets_what_lies_along_the_difference_to_the_negative_mean():
    model = tiny_model("llama-gqa")
    edit = ACE(layers=(1,)).fit(model, tiny_tokenizer(), QUESTIONS)
    plain, after = read(model, NoEdit()), read(model, edit)
    apart = means(plain)
    r = torch.nn.functional.normalize(apart[0, 1] - apart[1, 1], dim=0)
    along = after.values[:, 1, 0].double() @ r
    torch.testing.assert_close(along, (apart[1, 1] @ r).expand(len(along)), rtol=0, atol=1e-4)
    assert float((plain.values[:, 1, 0].double() @ r).std()) > 1e-2
    half = read(model, edit.scaled(0.5)).values[:, 1, 0].double() @ r
    torch.testing.assert_close(half, (plain.values[:, 1, 0].double() @ r + along) / 2, rtol=0, atol=1e-4)


def test_an_ablation_takes_the_difference_of_means_of_one_layer_out_of_all():
    model = tiny_model("llama-gqa")
    edit = Ablation(position="mean_answer").fit(model, tiny_tokenizer(), QUESTIONS, knobs={"depth": 0.6})
    assert edit.record["read_at_layer"] == 1 and edit.layers == (0, 1, 2)
    apart = means(read(model, NoEdit(), "mean_answer"))
    r = torch.nn.functional.normalize(apart[0, 1] - apart[1, 1], dim=0)
    torch.testing.assert_close(edit.directions.double(), r.repeat(3, 1), rtol=0, atol=1e-5)
    assert float((read(model, edit).values[:, :, 0].double() @ r).abs().max()) < 1e-4
    with pytest.raises(BadValue, match="depth is a share"):
        Ablation(depths=(2.0,)).fit(model, tiny_tokenizer(), QUESTIONS)


def lines(n: int) -> LabelledTexts:
    """Return texts whose kind a probe of a random model reads: other letters, other words."""
    words = (("blue sky", "sea"), ("ROCK HARD", "COAL"))
    return LabelledTexts(
        tuple(LabelledText(f"{words[side][0]} {i} {words[side][1]}", side == 0) for i in range(n) for side in (0, 1))
    )


def test_fresh_probes_read_what_is_there_and_less_of_what_was_erased():
    model, tokenizer, texts = tiny_model("llama-gqa"), tiny_tokenizer(), lines(40)
    train, held = texts.split(test=0.4, seed=0)
    edit = LEACE(layers=(2,), shrinkage=0.1).fit(model, tokenizer, train)
    (plain,), (left,), (control,) = readable(model, tokenizer, held, [NoEdit(), edit, edit.randomised(0)], layers=(2,))
    assert plain > 0.95 and control > 0.95
    assert left < plain
    assert plain.n == len(held) and plain.low < plain.high  # also where all are read


def test_depths_are_tried_on_other_items_within_the_budget():
    model, tokenizer = tiny_model("llama-gqa"), tiny_tokenizer()
    best, tried = choose_depth(model, tokenizer, Ablation(depths=(0.0, 0.5, 1.0)), lines(12), kl_budget=1e9)
    assert [t.depth for t in tried] == [0.0, 0.5, 1.0]
    assert best == min(tried, key=lambda t: t.left).depth
    with pytest.warns(UserWarning, match="no direction can be ablated within a KL of 0"):
        best, tried = choose_depth(model, tokenizer, Ablation(depths=(0.0, 1.0)), lines(12), kl_budget=0)
    assert best == min(tried, key=lambda t: t.kl).depth


def test_lines_of_two_files_are_texts_of_two_kinds(tmp_path):
    (tmp_path / "a.txt").write_text("One.\nTwo.\nThree.\n")
    (tmp_path / "b.txt").write_text("Four.\n")
    texts = labelled_texts(tmp_path / "a.txt", tmp_path / "b.txt")
    assert [(s.text, s.label) for s in texts.statements()] == [
        ("One.", True), ("Two.", True), ("Three.", True), ("Four.", False),
    ]  # fmt: skip
    folds = lines(9).folds(3, seed=1)
    assert all(sum(item.label for item in part) == len(part) / 2 for two in folds for part in two)
    assert sorted(item.text for _, test in folds for item in test) == sorted(item.text for item in lines(9))
    with pytest.raises(BadValue, match="cannot make 2 folds of 1 "):  # a fold would have one kind only
        texts.folds(2)
    (tmp_path / "b.txt").write_text("One.\n")
    with pytest.raises(BadDataset, match="keep it once"):
        labelled_texts(tmp_path / "a.txt", tmp_path / "b.txt")
    (tmp_path / "b.txt").write_text("\n")
    with pytest.raises(BadDataset, match="holds no text"):
        labelled_texts(tmp_path / "a.txt", tmp_path / "b.txt")
    with pytest.raises(BadDataset, match="all 3 statements are true"):
        LEACE().fit(tiny_model(), tiny_tokenizer(), texts[:3])
    with pytest.raises(BadDataset, match="no prompts"):
        texts.statements("plain")
    for layers in ((3,), (), (-1,)):
        with pytest.raises(BadValue, match="the model has layers 0-2"):
            LEACE(layers=layers).fit(tiny_model(), tiny_tokenizer(), texts)
