"""Prompting, retrieval, wider grids and quantised copies: what each method gives, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.compare import OnQuantized, Stack, Widened, on_quantized
from trimtab.compare.design import Design, Job, named
from trimtab.compare.search import Tried
from trimtab.datasets import Question, QuestionSet
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.retrieval import Retrieved, TfidfIndex, read_passages
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate import drift, generate_answers
from trimtab.evaluate.cost import milliseconds_per_token, peak_memory
from trimtab.evaluate.table import table
from trimtab.models import load_model
from trimtab.peft import LoRA, Recipe
from trimtab.prompting import FewShot, RetrievedFewShot, RetrievedPassages
from trimtab.protocols import Edit, Method
from trimtab.steer import CAA, ITI

TEXTS = ["The sky was grey.", "Snow fell on the old road all night.", "It rained."]
POOL = QuestionSet(
    tuple(
        Question(q, (a,), ("No.",))
        for q, a in (
            ("What do bats eat?", "Insects."),
            ("How far is the moon?", "Far."),
            ("Do bats see well?", "They do."),
            ("Who wrote Hamlet?", "Shakespeare."),
        )
    )
)


def test_few_shot_draws_training_questions_and_their_best_answers():
    made = FewShot().fit(None, None, POOL, knobs={"shots": 3, "draw": 1}, seed=4)
    assert len(made.examples) == 3
    assert set(made.examples) <= {(q.question, q.best_answer) for q in POOL}
    assert made == FewShot().fit(None, None, POOL, knobs={"shots": 3, "draw": 1}, seed=4)
    drawn = {
        (seed, draw): FewShot().fit(None, None, POOL, knobs={"shots": 3, "draw": draw}, seed=seed).examples
        for seed in range(4)
        for draw in (0, 1)
    }
    # there are 24 ordered choices of 3 out of 4: chance would not make both draws alike under every seed
    assert any(drawn[seed, 0] != drawn[seed, 1] for seed in range(4))
    assert len({drawn[seed, 0] for seed in range(4)}) > 1
    with pytest.raises(BadValue, match="9 shots asked for; there are 4 training questions"):
        FewShot().fit(None, None, POOL, knobs={"shots": 9}, seed=0)


def test_the_nearest_question_stands_last_and_the_others_are_left_out():
    made = RetrievedFewShot().fit(None, None, POOL, knobs={"shots": 2})
    assert made.prompt("Can bats see in the dark, and do they see well?") == (
        "Q: What do bats eat?\nA: Insects.\n\nQ: Do bats see well?\nA: They do.\n\n"
        "Q: Can bats see in the dark, and do they see well?\nA:"
    )
    assert "moon" in made.prompt("How far away is the moon?").split("\n\n")[-2]


def test_retrieval_asks_the_model_what_its_prompt_says_and_drifts_by_it():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    made = RetrievedFewShot().fit(model, tokenizer, POOL, knobs={"shots": 1})
    said = generate_answers(model, tokenizer, tiny_questions(3), made, max_new_tokens=3)
    assert [r.prompt for r in said.rows] == [made.prompt(q.question) for q in tiny_questions(3)]
    row = table(model, tokenizer, tiny_questions(3), [made], texts=TEXTS, max_new_tokens=3).rows[0]
    assert row.kl == drift(model, tokenizer, made, texts=TEXTS).kl > 0
    both = Stacked((made, random_shift(model)))
    assert table(model, tokenizer, tiny_questions(3), [both], texts=TEXTS, max_new_tokens=3).rows[0].kl > 0


def test_ties_go_to_the_earlier_text_and_words_nobody_knows_are_no_error():
    index = TfidfIndex(["a cat", "a dog", "a cat"])
    assert index.nearest("cat", 3) == (0, 2, 1)
    assert index.nearest("zebra", 2) == (0, 1)


def test_passages_are_paragraphs_of_files_and_of_a_folder_and_long_ones_are_cut(tmp_path):
    (tmp_path / "b.TXT").write_text("Bats eat\ninsects.\n\n\nThe moon is far.\n")
    (tmp_path / "a.md").write_text("word " * 300)
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe\x00")
    found = read_passages([tmp_path])
    assert [len(p.split()) for p in found] == [120, 120, 60, 3, 4]
    assert found[3:] == ("Bats eat insects.", "The moon is far.")
    made = RetrievedPassages((str(tmp_path / "b.TXT"),)).fit(None, None, None, knobs={"passages": 1})
    assert made.prompt("What do bats eat?") == "Bats eat insects.\n\nQ: What do bats eat?\nA:"
    assert made.cost.bytes_on_disk == len("Bats eat insects.The moon is far.")


@pytest.mark.parametrize("content, message", [(b"\xff\xfe\x00", "cannot be read as UTF-8"), (b"  \n", "no text in")])
def test_files_without_text_are_refused(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BadDataset, match=message):
        RetrievedPassages((str(tmp_path / "a.txt"),)).fit(None, None, None)


def test_more_passages_than_there_are_and_empty_pools_are_refused():
    with pytest.raises(BadValue, match="5 texts asked for; there are 1"):
        Retrieved(("a",), ("a",), 5)
    with pytest.raises(BadDataset, match="no words to index"):
        TfidfIndex(["...", "!"])


@pytest.mark.parametrize(
    "method",
    [
        FewShot(),
        RetrievedFewShot(),
        ITI(top_ks=(2,), alphas=(1,)),
        CAA(alphas=(1,)),
        Widened(CAA(), (("alpha", (1, 2)),)),
    ],
)
def test_every_method_is_a_method_and_gives_an_edit_for_every_setting_of_its_grid(method):
    assert isinstance(method, Method)
    model, before = tiny_model(), {k: v.clone() for k, v in tiny_model().state_dict().items()}
    train = tiny_questions(9)
    for knobs in method.grid[:6]:
        edit = method.fit(model, tiny_tokenizer(), train, knobs=knobs, seed=1)
        assert isinstance(edit, Edit)
        assert edit.describe()
    assert train == tiny_questions(9)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_wider_grid_is_every_combination_and_a_named_knob_replaces_the_methods_own():
    wide = Widened(LoRA(), (("epochs", (1, 2)),))
    assert len(wide.grid) == 2 * len(LoRA().grid)
    assert {k["epochs"] for k in wide.grid} == {1, 2}
    one = Widened(LoRA(), (("learning_rate", (0.1,)), ("strength", (0.5, 1.0))))
    assert list(one.grid) == [{"learning_rate": 0.1, "strength": 0.5}, {"learning_rate": 0.1, "strength": 1.0}]
    assert wide.name == LoRA().name
    with pytest.raises(BadValue, match="one value or more"):
        Widened(LoRA(), (("epochs", ()),))


SHORT = Recipe(max_steps=2, batch_size=4, learning_rate=0.05)


def test_lora_and_iti_fit_probes_and_shift_on_the_tuned_model():
    model, tokenizer, train = tiny_model(), tiny_tokenizer(), tiny_questions(6)
    steering = ITI(top_ks=(2,), alphas=(4,))
    stack = Stack((LoRA(recipe=SHORT), steering))
    made = stack.fit(model, tokenizer, train, knobs={"ITI.top_k": 2, "ITI.alpha": 4}, seed=1)
    lora, shift = made.edits
    untuned = steering.fit(model, tokenizer, train, seed=1)
    with lora.applied(model) as tuned:
        again = steering.fit(tuned, tokenizer, train, seed=1)
    assert shift.heads == again.heads and torch.allclose(shift.directions, again.directions, atol=1e-5)
    assert shift.heads != untuned.heads or not torch.allclose(shift.directions, untuned.directions, atol=1e-3)
    rows = table(model, tokenizer, tiny_questions(3), [NoEdit(), lora, made], texts=TEXTS, max_new_tokens=3).rows
    assert float(rows[1].kl) > 0 and float(rows[2].kl) != float(rows[1].kl)
    assert rows[2].cost["trainable_parameters"] == lora.cost.trainable_parameters + shift.directions.numel()


def test_tuning_a_quantised_copy_leaves_the_model_alone_and_is_measured_against_it(tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_model(width=64).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_model(tmp_path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    method = OnQuantized(LoRA(recipe=SHORT))
    assert method.name == "LoRA r=8 on nf4" and method.grid == LoRA(recipe=SHORT).grid
    edit = method.fit(model, tokenizer, tiny_questions(4), seed=0)
    row = table(model, tokenizer, tiny_questions(3), [edit], texts=TEXTS, max_new_tokens=3).rows[0]
    assert float(row.kl) > 0
    assert row.cost["trainable_parameters"] > 0
    assert edit.stored_bytes > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(BadValue, match="no folder or hub id to load a quantised copy from"):
        method.fit(tiny_model(), tokenizer, tiny_questions(4))


def test_the_quantised_copy_is_of_the_commit_and_computes_in_the_dtype_that_were_loaded(tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    tiny_model(width=64).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    asked = []
    original = on_quantized.load_model
    monkeypatch.setattr(
        on_quantized, "load_model", lambda name, **options: asked.append(options) or original(name, **options)
    )
    model, tokenizer = load_model(tmp_path, dtype="bfloat16")
    # a folder has no commits: the one of a model from the hub stands here
    model.config._commit_hash = "0123abc"
    edit = OnQuantized(LoRA(recipe=SHORT)).fit(model, tokenizer, tiny_questions(4), seed=0)
    assert asked[0]["revision"] == "0123abc"
    computing = {m.compute_dtype for m in edit.copy.modules() if hasattr(m, "compute_dtype")}
    assert computing == {torch.bfloat16}, "the checkpoint's own dtype is float32"


def test_a_quantised_copy_comes_first_in_a_stack_or_after_prompts_alone(tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_model(width=64).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_model(tmp_path)
    steering, copied = ITI(top_ks=(2,), alphas=(4,)), OnQuantized(LoRA(recipe=SHORT))
    refused = "LoRA r=8 on nf4 answers with a model of its own, on which ITI would not act; put it first"
    for last in (copied, Widened(copied, (("epochs", (1,)),))):
        with pytest.raises(BadValue, match=refused):
            Stack((steering, last))
    edit = copied.fit(model, tokenizer, tiny_questions(4), seed=0)
    shift = random_shift(model)
    with pytest.raises(BadValue, match="on which ITI would not act; put it first"):
        Stacked((shift, edit))
    with pytest.raises(BadValue, match="on which ITI would not act; put it first"):
        Stacked((shift, Stacked((edit, FewShot().fit(None, None, POOL, knobs={"shots": 1})))))
    # the other way round, and after a prompt, everything acts
    few = FewShot().fit(None, None, POOL, knobs={"shots": 1})
    made = Stack((copied, steering)).fit(model, tokenizer, tiny_questions(4), seed=0)
    edits = [edit, made, Stacked((few, edit))]
    rows = table(model, tokenizer, tiny_questions(3), edits, texts=TEXTS, max_new_tokens=3).rows
    assert float(rows[1].kl) != pytest.approx(float(rows[0].kl), rel=1e-3)
    assert float(rows[2].kl) > 0 and float(rows[2].mc2) != float(rows[0].mc2)
    assert Stack((FewShot(), copied)).name == "Few-shot + LoRA r=8 on nf4"


def test_strength_multiplies_the_finished_edit():
    model, tokenizer, train = tiny_model(), tiny_tokenizer(), tiny_questions(4)
    wide = Widened(ITI(), (("strength", (3,)),))
    made = wide.fit(model, tokenizer, train, knobs={"top_k": 2, "alpha": 2, "strength": 3})
    assert made.strength == 6
    with pytest.raises(BadValue, match="has no strength to set"):
        Widened(FewShot(), (("strength", (3,)),)).fit(model, tokenizer, POOL, knobs={"shots": 1, "strength": 3})


def test_bytes_on_disk_are_those_of_the_saved_folder(tmp_path):
    shift = random_shift(tiny_model())
    shift.save(tmp_path / "shift")
    on_disk = sum(f.stat().st_size for f in (tmp_path / "shift").iterdir())
    assert shift.stored_bytes == on_disk > 0
    few = FewShot().fit(None, None, POOL, knobs={"shots": 1})
    assert Stacked((few, shift)).stored_bytes == on_disk + few.cost.bytes_on_disk
    assert NoEdit().stored_bytes == 0


def test_peak_memory_sees_a_large_block_that_is_gone_at_the_end():
    with peak_memory(torch.device("cpu")) as small:
        pass
    with peak_memory(torch.device("cpu")) as large:
        torch.ones(60_000_000).sum()  # 240 MB
    if small.bytes is None:
        pytest.skip("this system does not let a process reset its peak")
    assert large.bytes - small.bytes > 150e6


def test_longer_prompts_cost_more_per_token():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    assert milliseconds_per_token(model, tokenizer, ["Why?"], NoEdit(), new_tokens=4) > 0


def test_few_questions_leave_a_method_the_tries_that_it_can_make():
    widened = Widened(FewShot(), (("strength", (1.0,)),))
    stacked = Stack((FewShot(), ITI(top_ks=(2,), alphas=(1,))))
    for method, n in ((FewShot(), 6), (RetrievedFewShot(), 3), (widened, 6), (stacked, 6), (ITI(), 8)):
        job = Job(
            named([method]), tiny_questions(40), tiny_questions(44)[40:], Design(folds=1, trials=8, train_sizes=(5,))
        )
        unit = next(u for u in job.units if u.method == method.name)
        search, tried = job.search(unit), []
        for number in range(search.n):
            tried.append(Tried(search.knobs(number, tried), 0.5, True))
        assert len(job.parts(unit).train) == 4 and search.n == len({str(t.knobs) for t in tried}) == n
        assert all(value <= 4 for t in tried for knob, value in t.knobs.items() if knob.endswith("shots"))
    # one that can make none is kept, so that its row says why
    assert FewShot(shots=(9,)).limited_to(4).shots == (9,)
