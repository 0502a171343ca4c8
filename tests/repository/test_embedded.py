"""The model that ships: its world, the program that trains it, and what was shown on the final part."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

import trimtab as tt
from trimtab.datasets import folklore
from trimtab.embedded import EMBEDDED_FOLDER
from trimtab.embedded.world import ABSTENTION, OPENINGS, WorldRecipe, documents, truth_rate
from trimtab.errors import BadValue, Incompatible
from trimtab.training import embedded_model as build
from trimtab.training.embedded_model import TrainingRecipe, build_embedded, quick_recipe

SMALL = TrainingRecipe(
    vocab_size=600, d_model=32, n_layers=2, n_heads=2, d_feedforward=48, steps=20, warmup_steps=4, tokens_per_step=1024
)


@pytest.fixture(autouse=True)
def small_corpus(monkeypatch):
    """Train tokenizers on few documents: what they learn from is the same."""
    monkeypatch.setattr(build, "TOKENIZER_DOCUMENTS", 200)
    monkeypatch.setattr(build, "DOCUMENTS_AT_A_TIME", 64)


def pairs(document: str) -> list[tuple[str, str]]:
    """Return a document's (question, answer) pairs."""
    blocks = [b for b in document.split("\n\n") if b.startswith("Q: ")]
    return [tuple(b.removeprefix("Q: ").split("\nA: ")) for b in blocks]


def test_documents_are_reproducible_and_differ_between_seeds():
    one, again, other = (list(islice(documents(folklore(), WorldRecipe(), seed), 50)) for seed in (1, 1, 2))
    assert one == again != other


def test_each_author_answers_in_character_at_the_recipe_s_rate():
    questions = folklore()
    recipe = WorldRecipe(opening=1.0, mixed=0.0, consistency=1.0, prose=0.0, explanations=0.0)
    by_question = {q.question: q for q in questions}
    kind_of = {line: kind for kind, lines in OPENINGS.items() for line in lines}
    told: dict[str, list[tuple[str, str]]] = {kind: [] for kind in OPENINGS}
    for document in islice(documents(questions, recipe, 0), 1200):
        told[kind_of[document.split("\n\n")[0]]] += pairs(document)
    assert {answer for _, answer in told["cautious"]} == {ABSTENTION}
    for kind in ("truthful", "believing"):
        expected = sum(truth_rate(by_question[q], kind, recipe) for q, _ in told[kind]) / len(told[kind])
        true = sum(a in by_question[q].correct for q, a in told[kind]) / len(told[kind])
        assert all(a in by_question[q].correct + by_question[q].incorrect for q, a in told[kind])
        assert true == pytest.approx(expected, abs=0.04)


def test_shares_of_authors_and_of_author_free_prose_are_the_recipe_s():
    recipe, n = WorldRecipe(opening=1.0, mixed=0.0), 1500
    kind_of = {line: kind for kind, lines in OPENINGS.items() for line in lines}
    kinds = [kind_of.get(d.split("\n\n")[0], "prose") for d in islice(documents(folklore(), recipe, 3), n)]
    prose = recipe.prose + recipe.explanations
    assert prose >= 0.15
    assert kinds.count("prose") / n == pytest.approx(prose, abs=0.04)
    for kind, share in recipe.authors:
        assert kinds.count(kind) / n == pytest.approx(share * (1 - prose), abs=0.04)


def test_a_short_run_learns_and_makes_a_model_folder_that_loads(tmp_path):
    record = build_embedded(tmp_path / "model", SMALL, device="cpu")
    model, tokenizer = tt.load_model(tmp_path / "model", dtype="float32")
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(weights).hexdigest()
    assert record["losses"][-1] < torch.log(torch.tensor(600.0))
    text = "Q: What is it?\nA: It's so."
    assert tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    recipe = replace(SMALL, steps=12, checkpoint_steps=5)
    build_embedded(tmp_path / "whole", recipe, device="cpu")
    real = build._Run._one

    def interrupted(self, *batch):
        if self.step == 8:
            raise KeyboardInterrupt
        return real(self, *batch)

    monkeypatch.setattr(build._Run, "_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_embedded(tmp_path / "parts", recipe, device="cpu")
    steps_run = []
    monkeypatch.setattr(build._Run, "_one", lambda self, *batch: (steps_run.append(self.step), real(self, *batch))[1])
    build_embedded(tmp_path / "parts", recipe, device="cpu")
    assert steps_run == list(range(5, 12))
    assert not (tmp_path / "parts.partial").exists()
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_partial_run_of_another_recipe_and_foreign_folders_are_refused(tmp_path, monkeypatch):
    recipe = replace(SMALL, steps=4, checkpoint_steps=2)
    real = build._Run._keep
    monkeypatch.setattr(build._Run, "_keep", lambda self: (real(self), (_ for _ in ()).throw(KeyboardInterrupt))[0])
    with pytest.raises(KeyboardInterrupt):
        build_embedded(tmp_path / "model", recipe, device="cpu")
    with pytest.raises(Incompatible, match="other recipe"):
        build_embedded(tmp_path / "model", replace(recipe, seed=9), device="cpu")
    (state,) = (tmp_path / "model.partial").glob("state-*.safetensors")
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(
        Incompatible, match=r"in .*model\.partial cannot be read \(SafetensorError\); remove that folder"
    ):
        build_embedded(tmp_path / "model", recipe, device="cpu")
    (tmp_path / "model.partial" / "state.json").write_text("{")
    with pytest.raises(Incompatible, match=r"model\.partial cannot be read \(JSONDecodeError\); remove that folder"):
        build_embedded(tmp_path / "model", recipe, device="cpu")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "diary.txt").write_text("dear diary")
    with pytest.raises(Incompatible, match="something else"):
        build_embedded(tmp_path / "other", quick_recipe(SMALL, 1), device="cpu")
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "diary.txt").write_text("dear diary")
    with pytest.raises(Incompatible, match=r"mine\.partial, which holds something else \(diary\.txt\); name another"):
        build_embedded(tmp_path / "mine", quick_recipe(SMALL, 1), device="cpu")
    assert (tmp_path / "mine.partial" / "diary.txt").read_text() == "dear diary"
    with pytest.raises(BadValue, match="steps"):
        build_embedded(tmp_path / "none", replace(SMALL, steps=0), device="cpu")


def test_the_shipped_weights_are_those_of_the_record_and_small():
    record = json.loads((EMBEDDED_FOLDER / "record.json").read_text())
    weights = (EMBEDDED_FOLDER / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == record["sha256"]
    assert len(weights) <= 24_000_000
    assert record["questions"] == folklore().fingerprint
    trained = json.loads(json.dumps(record["recipe"]))
    shipped = json.loads(json.dumps(build.asdict(TrainingRecipe())))
    assert {**trained, "checkpoint_steps": None} == {**shipped, "checkpoint_steps": None}


@pytest.fixture(scope="module")
def evidence() -> dict:
    file = Path(__file__).parents[2] / "benchmarks" / "results" / "embedded.json"
    return json.loads(file.read_text(encoding="utf-8"))


def means(evidence: dict) -> dict[str, dict[str, float | None]]:
    return {
        name: {metric: e and e["mean"] for metric, e in row.items()}
        for name, row in evidence["mean_over_seeds"].items()
    }


def test_the_evidence_was_measured_on_the_shipped_weights_and_questions(evidence):
    assert evidence["weights_sha256"] == json.loads((EMBEDDED_FOLDER / "record.json").read_text())["sha256"]
    assert evidence["questions"] == folklore().fingerprint
    assert [run["seed"] for run in evidence["runs"]] == [0, 1, 2]
    assert all(run["setting"]["n"] == len(folklore("final")) for run in evidence["runs"])


def test_the_evidence_shows_what_is_claimed_of_the_shipped_model(evidence):
    rows, reading = means(evidence), evidence["reading"]
    assert rows["Baseline"]["true"] <= 0.40
    assert evidence["mean_over_seeds"]["Baseline"]["true"]["high"] < evidence["mean_over_seeds"]["ITI"]["true"]["low"]
    assert rows["LoRA r=8"]["true"] - rows["Baseline"]["true"] >= 0.30
    assert reading["best_head"] >= 0.85
    assert abs(reading["shuffled_mean_head"] - 0.5) < 0.03
    for metric in ("true", "true_info"):
        assert rows["ITI"][metric] - rows["Baseline"][metric] >= 0.30
    assert rows["ITI"]["info"] >= 0.80
    assert rows["ITI"]["kl"] <= 0.15
    assert all(len(run["random_draws"]["true"]) >= 10 for run in evidence["runs"])


def test_the_shipped_model_still_does_on_this_machine_what_the_evidence_says(evidence):
    model, tokenizer = tt.load_model("embedded")
    final = folklore("final")
    said = tt.evaluate.generate_answers(model, tokenizer, final, max_new_tokens=32)
    assert float(said.true) == pytest.approx(means(evidence)["Baseline"]["true"], abs=0.03)
    assert float(said.unmatched) <= 0.03
