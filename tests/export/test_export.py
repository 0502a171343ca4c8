"""Files of other tools: lm-evaluation-harness's steered models, and ITI's activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.datasets.iti_files import activations_from_iti
from trimtab.edits.combined import NoEdit
from trimtab.edits.vectors import ResidualShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset, BadValue, ShapeError
from trimtab.evaluate import multiple_choice
from trimtab.export.lm_eval import to_lm_eval
from trimtab.probes import fit_logistic
from trimtab.protocols import Edit
from trimtab.steer import fit_shift


class Everywhere(Edit):
    """A shift that acts at all positions whatever the measurement asks for, as a baked model does."""

    def __init__(self, shift):
        self.shift, self.name = shift, shift.name

    def applied(self, model, positions="generated"):
        return self.shift.applied(model, "all")


@pytest.mark.parametrize("kind", ["heads", "residual"])
@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_the_harness_s_own_steered_model_gives_our_all_position_numbers(family, kind, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.hf_steered import SteeredModel

    model, tokenizer = tiny_model(family, context=1000), tiny_tokenizer()
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    vector = torch.randn(1, 48, generator=torch.Generator().manual_seed(0))
    shift = random_shift(model, strength=0.7) if kind == "heads" else ResidualShift((1,), 0.3 * vector)
    to_lm_eval(model, shift, tmp_path / "s.pt")
    harness = SteeredModel(
        pretrained=str(tmp_path / "m"), steer_path=str(tmp_path / "s.pt"), device="cpu", batch_size=4, dtype="float32"
    )
    ours = multiple_choice(model, tokenizer, tiny_questions(2), Everywhere(shift), convention="lm-eval")
    pairs = [(row.prompt, " " + a.text) for row in ours.rows for a in row.answers]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    theirs = [logprob for logprob, _ in harness.loglikelihood(requests, disable_tqdm=True)]
    assert [a.logprob for row in ours.rows for a in row.answers] == pytest.approx(theirs, abs=1e-3)
    # the control: the shift matters
    plain = multiple_choice(model, tokenizer, tiny_questions(2), NoEdit(), convention="lm-eval")
    gaps = [a.logprob - b.logprob for p, r in zip(plain.rows, ours.rows, strict=True)
            for a, b in zip(p.answers, r.answers, strict=True)]  # fmt: skip
    assert max(map(abs, gaps)) > 0.1


def test_the_file_holds_plain_tensors_only(tmp_path):
    model = tiny_model()
    hooks = to_lm_eval(model, random_shift(model), tmp_path / "s.pt")
    read = torch.load(tmp_path / "s.pt", weights_only=True)
    assert list(read) == hooks
    assert all(name.startswith("layers.") for name in hooks)
    with pytest.raises(BadValue, match=r"end in \.pt"):
        to_lm_eval(model, random_shift(model), tmp_path / "s.bin")
    with pytest.raises(BadValue, match="nothing to export"):
        to_lm_eval(model, random_shift(model).scaled(0), tmp_path / "s.pt")


@pytest.fixture
def iti_folder(tmp_path):
    acts = capture_heads(tiny_model(), tiny_tokenizer(), tiny_questions(8).statements())
    np.save(tmp_path / "llama_7B_tqa_mc2_head_wise.npy", acts.values.flatten(2).numpy().astype(np.float16))
    np.save(tmp_path / "llama_7B_tqa_mc2_labels.npy", acts.labels.numpy().astype(np.int64))
    return tmp_path, acts


def test_iti_activations_become_head_activations_in_groups(iti_folder):
    folder, acts = iti_folder
    read = activations_from_iti(folder, n_heads=4, questions=tiny_questions(8))
    assert torch.equal(read.values, acts.values.half().float())
    assert torch.equal(read.labels, acts.labels)
    assert read.groups == acts.groups
    assert read.layers == (0, 1, 2)
    ours, theirs = (fit_shift(a, fit_logistic(a), top_k=2) for a in (acts, read))
    assert set(ours.heads) & set(theirs.heads)
    assert len(set(activations_from_iti(folder, n_heads=4).groups)) == len(acts)


def test_iti_folders_that_do_not_fit_are_refused(iti_folder):
    folder, _ = iti_folder
    with pytest.raises(ShapeError, match="cannot be cut into 5 heads"):
        activations_from_iti(folder, n_heads=5)
    with pytest.raises(ShapeError, match="give the same ones"):
        activations_from_iti(folder, n_heads=4, questions=tiny_questions(7))
    with pytest.raises(BadDataset, match="found none"):
        activations_from_iti(folder / "nowhere", n_heads=4)
    np.save(folder / "llama_7B_tqa_mc2_labels.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadDataset, match=r"plain \.npy array"):
        activations_from_iti(folder, n_heads=4)
