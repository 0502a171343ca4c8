"""Shared prefixes: the tree's law, equality with plain forwards in many families, what is counted, memory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import peft as hf_peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
)

from tests.measuring import answer_logprob, random_shift, shifted_from
from tests.tiny import COMMON, CONFIGS, VOCAB, tiny_model, tiny_questions, tiny_tokenizer
from trimtab.edits.combined import NoEdit
from trimtab.engine import forwards as prefix
from trimtab.engine import sharing as prefix_mode
from trimtab.engine.forwards import run_tree
from trimtab.engine.score import score_answers
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.errors import BadValue
from trimtab.evaluate import drifts, multiple_choice, multiple_choice_many
from trimtab.models.tokens import AnswerTokens, n_common, tokenize_answer
from trimtab.protocols import Edit

SMALL = {"vocab_size": VOCAB, "initializer_range": 0.15}
# windows far shorter than the texts, so that they matter
OPT = {"hidden_size": 48, "ffn_dim": 64, "num_attention_heads": 4, "max_position_embeddings": 256, "init_std": 0.15}
GROUPED = {**COMMON, "num_key_value_heads": 2, "sliding_window": 8}
FALCON = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": True}
GPT_NEO = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "opt": (lambda: OPTConfig(**SMALL, **OPT, num_hidden_layers=3, word_embed_proj_dim=48), "packed"),
    "bloom": (lambda: BloomConfig(**SMALL, hidden_size=48, n_layer=3, n_head=4), "padded"),
    "mpt": (lambda: MptConfig(**SMALL, d_model=48, n_layers=3, n_heads=4, max_seq_len=256), "padded"),
    "falcon with alibi": (lambda: FalconConfig(**SMALL, **FALCON), "padded"),
    "mistral, window 8": (lambda: MistralConfig(**GROUPED), "packed"),
    "gemma2, window 8": (lambda: Gemma2Config(**GROUPED, head_dim=16), "packed"),
    "gemma3, window 8": (lambda: Gemma3TextConfig(**GROUPED, head_dim=16), "packed"),
    "gpt-neo, window 8": (
        lambda: GPTNeoConfig(**SMALL, **GPT_NEO, window_size=8, max_position_embeddings=256),
        "padded",
    ),
    "mamba": (lambda: MambaConfig(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3), "plain"),
}
EVERY = {**{name: (make, "packed") for name, make in CONFIGS.items()}, **OTHERS}


def answers(n: int = 3) -> list[AnswerTokens]:
    tokenizer = tiny_tokenizer()
    prompts = [f"Q: {q.question}\nA:" for q in tiny_questions(n)] + ["Q: Why?\nA:"]
    texts = [" Yes.", " The sky is blue.", " The sky is red.", " It is number one of many and no other one."]
    return [tokenize_answer(tokenizer, p + t, len(p)) for p in prompts for t in texts]


def made(config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def one_by_one(model: Any, items: list[AnswerTokens]) -> list[float]:
    return [answer_logprob(model, a.ids, a.start, a.end) for a in items]


def shifted_one_by_one(model: Any, shift: Any, items: list[AnswerTokens]) -> list[float]:
    scores = []
    for a in items:
        with shifted_from(model, shift, a.start - 1):
            scores.append(answer_logprob(model, a.ids, a.start, a.end))
    return scores


@pytest.fixture(autouse=True)
def tried_for_any_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_mode, "TRYING", {"cpu": 1, "cuda": 1})


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the way that every pass takes."""
    taken: list[str] = []
    chosen = prefix.chosen_mode

    def spy(*args: Any) -> tuple[str, str | None]:
        mode, note = chosen(*args)
        taken.append(mode)
        return mode, note

    monkeypatch.setattr(prefix, "chosen_mode", spy)
    return taken


# the tree

rows_of_few_tokens = st.lists(
    st.tuples(st.lists(st.integers(0, 2), max_size=5), st.lists(st.integers(0, 2), max_size=4)), min_size=1, max_size=9
)


@given(rows_of_few_tokens)
@settings(max_examples=150, deadline=None)
def test_the_tree_holds_every_row_and_knows_ancestors(parts: list[tuple[list[int], list[int]]]) -> None:
    rows = [TreeRow((*prompt, *rest), len(prompt), len(prompt)) for prompt, rest in parts]
    tree = TokenTree.of(rows)
    for row, path in zip(rows, tree.paths, strict=True):
        assert tree.tokens[path].tolist() == list(row.ids)
        assert tree.depth[path].tolist() == list(range(len(row.ids)))
        assert tree.own[path].tolist() == [i >= row.split for i in range(len(row.ids))]
        for place, node in enumerate(path):
            ancestors = [j for j in range(len(tree.tokens)) if j <= node < tree.end[j]]
            assert ancestors == path[: place + 1].tolist()
    # every node is somebody's, and no two of them are the same beginning of the same kind
    beginnings = {(tuple(p), tuple(r[:i])) for p, r in parts for i in range(1, len(r) + 1)}
    beginnings |= {(tuple(p[:i]), None) for p, _ in parts for i in range(1, len(p) + 1)}
    assert len(tree.tokens) == len(beginnings)
    assert sorted(i for unit in tree.units for i in unit) == list(range(len(rows)))
    shared = [rows[0].ids[: rows[0].split]] + [r.ids[: r.split] for r in rows]
    assert tree.n_root == min(n_common(shared[0], s) for s in shared)


def test_an_edited_token_is_never_shared_with_an_unedited_one() -> None:
    tree = TokenTree.of([TreeRow((5, 6, 7), 1, 1), TreeRow((5, 6, 7), 2, 2)])
    assert set(tree.paths[0]) & set(tree.paths[1]) == {0}


# equality


@pytest.mark.filterwarnings("ignore:.*prefixes are not shared")
@pytest.mark.parametrize("family", EVERY)
def test_every_family_gives_what_one_plain_forward_a_row_gives(family: str, modes: list[str]) -> None:
    make, way = EVERY[family]
    model, items = made(make()), answers()
    scores = score_answers(model, tiny_tokenizer(), items, [NoEdit(), NoEdit()])
    assert modes == [way]
    for found in scores.logprobs:
        assert found == pytest.approx(one_by_one(model, items), abs=1e-4)


@pytest.mark.parametrize("mode", ["packed", "padded", "plain"])
@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma2"])
def test_every_way_gives_the_same_with_shifts(family: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "chosen_mode", lambda *args: (mode, None))
    model, items = tiny_model(family), answers()
    edits = [NoEdit(), random_shift(model), random_shift(model, seed=3, strength=1.0)]
    scores = score_answers(model, tiny_tokenizer(), items, edits, batch_size=5)
    expected = [
        one_by_one(model, items),
        *(shifted_one_by_one(model, shift, items) for shift in edits[1:]),
    ]
    for found, wanted in zip(scores.logprobs, expected, strict=True):
        assert found == pytest.approx(wanted, abs=2e-4)
    # the control: the edits are far apart
    assert max(abs(a - b) for a, b in zip(*scores.logprobs[:2], strict=True)) > 0.1


@pytest.mark.parametrize("budget", [1, 40, 100, 100_000])
def test_the_token_budget_changes_nothing_but_the_batches(budget: int) -> None:
    model, items = tiny_model(dtype=torch.float64), answers()
    scores = score_answers(model, tiny_tokenizer(), items, [NoEdit(), random_shift(model)], token_budget=budget)
    assert scores.logprobs[0] == pytest.approx(one_by_one(model, items), abs=1e-5)


def test_an_edit_of_the_whole_model_computes_its_prompts_itself() -> None:
    model = tiny_model(dtype=torch.float64)
    items = answers()
    plain = one_by_one(model, items)
    lora = hf_peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False, lora_alpha=8)
    adapted = hf_peft.get_peft_model(model, lora).double().eval()
    edits = [Switched(adapted), random_shift(model), Switched(adapted)]
    with adapted.disable_adapter():
        shifted = shifted_one_by_one(model, edits[1], items)
        scores = score_answers(model, tiny_tokenizer(), items, edits)
    expected = one_by_one(adapted, items)
    assert scores.logprobs[0] == pytest.approx(expected, abs=1e-5)
    assert scores.logprobs[1] == pytest.approx(shifted, abs=1e-5)
    assert scores.logprobs[2] == scores.logprobs[0]
    assert max(abs(a - b) for a, b in zip(plain, expected, strict=True)) > 0.1


class Switched(Edit):
    """An edit that is an adapter, which acts on the prompt too."""

    name = "adapter"

    def __init__(self, adapted: Any) -> None:
        self.adapted = adapted

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Any = "generated") -> Any:
        self.adapted.base_model.enable_adapter_layers()
        try:
            yield self.adapted
        finally:
            self.adapted.base_model.disable_adapter_layers()

    def prompt(self, question: str) -> str | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {}


# what is counted


def counted(items: list[AnswerTokens], n_edits: int) -> int:
    """Count by sets: every beginning of a prompt once, every beginning of an answer once for each edit."""
    prompts = {tuple(a.ids[:i]) for a in items for i in range(1, a.start)}
    own = {(tuple(a.ids[:i]), a.start) for a in items for i in range(a.start, a.end)}
    return len(prompts) + n_edits * len(own)


def test_a_sweep_computes_every_prompt_once_and_every_answer_once_for_each_setting() -> None:
    model, questions = tiny_model(context=2000), tiny_questions(5)
    shift = random_shift(model)
    edits = [NoEdit(), *(shift.first(k).scaled(a) for k in (1, 2, 3) for a in (0.5, 1, 2, 4, 8))]
    results = multiple_choice_many(model, tiny_tokenizer(), questions, edits, convention="lm-eval", token_budget=10**6)
    rows = results[0].rows
    primer = n_common(*(tiny_tokenizer()(row.prompt)["input_ids"] for row in rows[:2]))
    own = [[tiny_tokenizer()(f"{row.prompt} {answer.text}")["input_ids"] for answer in row.answers] for row in rows]
    starts = [len(tiny_tokenizer()(row.prompt)["input_ids"]) for row in rows]
    # the primer once; every question once, without the last token, which the edits change; every answer per edit
    questions_once = sum(start - 1 - primer for start in starts)
    answers_once = sum(
        len({tuple(ids[:i]) for ids in listed for i in range(start, len(ids))})
        for listed, start in zip(own, starts, strict=True)
    )
    at_most = primer + questions_once + len(edits) * answers_once
    assert all(r.tokens_computed == results[0].tokens_computed for r in results)
    assert at_most - 5 * 12 <= results[0].tokens_computed <= at_most  # questions share a few first words, too
    alone = sum(
        multiple_choice(model, tiny_tokenizer(), questions, e, convention="lm-eval").tokens_computed for e in edits
    )
    assert results[0].tokens_computed < 0.5 * alone
    for edit, result in zip(edits[:4], results, strict=False):
        expected = multiple_choice(model, tiny_tokenizer(), questions, edit, convention="lm-eval")
        for row, other in zip(result.rows, expected.rows, strict=True):
            assert [a.logprob for a in row.answers] == pytest.approx([a.logprob for a in other.answers], abs=1e-4)


@pytest.mark.parametrize("n_edits", [1, 3])
def test_every_token_of_one_packed_row_is_computed_once(n_edits: int) -> None:
    model, items = tiny_model(), answers(2)
    edits = [random_shift(model, seed=i) for i in range(n_edits)]
    assert score_answers(model, tiny_tokenizer(), items, edits).tokens_computed == counted(items, n_edits)


# 4 bits


def test_a_4_bit_model_shares_prefixes_too(modes: list[str]) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = tiny_model()
    for layer in model.model.layers:
        for parent, name in [(layer.self_attn, n) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]:
            dense = getattr(parent, name)
            small = bnb.nn.Linear4bit(48, dense.out_features, bias=False, quant_type="nf4", compute_dtype=torch.float32)
            small.weight = bnb.nn.Params4bit(dense.weight.data.clone(), requires_grad=False, quant_type="nf4")
            small.support_avx512bf16_for_cpu = False
            setattr(parent, name, small.to("cpu"))
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    items, shift = answers(), random_shift(model)
    scores = score_answers(model, tiny_tokenizer(), items, [NoEdit(), shift])
    assert modes == ["packed"]
    assert scores.logprobs[0] == pytest.approx(one_by_one(model, items), abs=1e-4)
    assert scores.logprobs[1] == pytest.approx(shifted_one_by_one(model, shift, items), abs=2e-4)


# memory


class Tight:
    """A model in which forwards over more than so many places run out of memory."""

    def __init__(self, model: Any, places: int) -> None:
        self.refused = 0
        self.handle = model.model.register_forward_pre_hook(self, with_kwargs=True)
        self.places = places

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"]
        if ids.numel() > self.places:
            self.refused += 1
            raise torch.AcceleratorError(f"CUDA error: out of memory ({ids.numel()} places)")


def test_running_out_of_memory_halves_the_budget_and_goes_on() -> None:
    model, items = tiny_model(), answers(8)
    edits = [NoEdit(), random_shift(model)]
    expected = score_answers(model, tiny_tokenizer(), items, edits).logprobs
    tight = Tight(model, 200)
    found = score_answers(model, tiny_tokenizer(), items, edits)
    assert tight.refused > 0
    for a, b in zip(found.logprobs, expected, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_a_row_that_never_fits_is_an_error_and_not_a_loop() -> None:
    model = tiny_model()
    Tight(model, 30)
    with pytest.raises(torch.AcceleratorError, match="out of memory"):
        score_answers(model, tiny_tokenizer(), answers(8), [NoEdit()])


# bad input


def test_no_rows_take_nothing() -> None:
    scores = score_answers(tiny_model(), tiny_tokenizer(), [], [NoEdit()])
    assert scores.logprobs == ((),) and scores.tokens_computed == 0


@pytest.mark.parametrize("options", [{"token_budget": 0}, {"batch_size": -1}])
def test_a_budget_below_one_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(BadValue, match="must be at least 1"):
        score_answers(tiny_model(), tiny_tokenizer(), answers(), [NoEdit()], **options)


def test_lengths_of_one_token_to_thousands_in_one_call() -> None:
    model = tiny_model(context=4300)
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(3, VOCAB, (4000,), generator=generator).tolist()
    items = [
        AnswerTokens([5, 6], 1, 2),
        AnswerTokens(long, 3990, 4000),
        AnswerTokens([*long[:3990], 7, 8], 3990, 3992),
        *(AnswerTokens(long[i : i + n], n - 1, n) for i, n in ((3, 2), (9, 50), (70, 900))),
        AnswerTokens(long[:3000], 10, 3000),
    ]
    found = score_answers(model, tiny_tokenizer(), items, [NoEdit()]).logprobs[0]
    assert found == pytest.approx(one_by_one(model, items), rel=1e-5, abs=1e-3)


def test_a_forward_that_an_applied_edit_refuses_stays_refused() -> None:
    # the edit of a surrounding block knows nothing of packed rows: it must not act on their last place only
    model = tiny_model()
    with random_shift(model).applied(model), pytest.raises(BadValue, match="without a cache"):
        score_answers(model, tiny_tokenizer(), answers(), [NoEdit()])


def forget_positions(model: Any) -> None:
    """Let the model number every forward's places from 0, so that no shared prefix gives the right results."""

    def forget(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "position_ids": torch.arange(kwargs["input_ids"].shape[1])[None]}

    model.model.register_forward_pre_hook(forget, with_kwargs=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_wrong_results_of_sharing_are_found_and_said(dtype: torch.dtype, modes: list[str]) -> None:
    model = tiny_model(dtype=dtype)
    forget_positions(model)
    items = answers()
    with pytest.warns(UserWarning, match=r"computed whole \(packed: other results by .*padded: other results"):
        scores = score_answers(model, tiny_tokenizer(), items, [NoEdit()])
    assert modes == ["plain"] and len(scores.notes) == 1
    if dtype == torch.float32:
        assert scores.logprobs[0] == pytest.approx(one_by_one(model, items), abs=1e-4)
    with warnings.catch_warnings():  # said once of a model; the notes of each measurement still say it
        warnings.simplefilter("error")
        assert score_answers(model, tiny_tokenizer(), items, [NoEdit()]).notes == scores.notes


class NoisyHead(torch.nn.Module):
    """A model's head whose logits are off by a share of their spread that depends on the batch's shape."""

    def __init__(self, inner: torch.nn.Module, share: float) -> None:
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.inner(x)
        generator = torch.Generator().manual_seed(x.shape[0] * 1000 + x.shape[1])
        noise = torch.randn(logits.shape, generator=generator).to(logits.dtype)
        return logits + self.share * logits.float().std(-1, keepdim=True).to(logits.dtype) * noise


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.filterwarnings("ignore:.*prefixes are not shared")
def test_sharing_may_be_as_far_from_single_rows_as_plain_batches_are(wrong: bool, modes: list[str]) -> None:
    # noise of 0.12 on either side: above the tolerance for rounded numbers, far below what wrong results are off by
    model = tiny_model(dtype=torch.bfloat16)
    model.lm_head = NoisyHead(model.lm_head, 0.12)
    if wrong:
        forget_positions(model)
    score_answers(model, tiny_tokenizer(), answers(), [NoEdit()])
    assert modes == ["plain" if wrong else "packed"]


def test_rows_that_share_little_run_in_plain_batches(modes: list[str]) -> None:
    model, seen = tiny_model(), {}
    rows = [TreeRow([9 + i, *range(5, 25)], 10, 20) for i in range(6)]

    def read(edit: int, step: Any, forward: Callable[[], Any]) -> None:
        forward()
        seen.update(zip(step.rows, step.counts, strict=True))

    took = run_tree(model, TokenTree.of(rows), read)
    assert modes == ["plain"] and took.tokens == 6 * 21 and took.mode == "plain"
    assert seen == dict.fromkeys(range(6), 1)


@pytest.mark.parametrize(("tokens", "way"), [(300, "packed"), (301, "plain")])
def test_little_work_is_not_tried_out(tokens: int, way: str, modes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_mode, "TRYING", {"cpu": tokens, "cuda": 1})
    model, forwards = tiny_model(), []
    model.model.register_forward_pre_hook(lambda *args: forwards.append(args))
    rows = [TreeRow([*range(5, 105), i], 100, 100) for i in range(4)]  # three times a prompt of 100 tokens are saved
    took = run_tree(model, TokenTree.of(rows), lambda edit, step, forward: forward())
    assert modes == [way] and took.mode == way
    assert took.tokens == (104 if way == "packed" else 404)
    # without a trial there is nothing but the batches themselves
    assert (len(forwards) == took.forwards) == (way == "plain")


def test_a_model_is_tried_out_once_until_something_of_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tried = tiny_model(), []
    agree = prefix_mode._failure

    def counted(*args: Any) -> Any:
        tried.append(args)
        return agree(*args)

    monkeypatch.setattr(prefix_mode, "_failure", counted)

    def scored() -> int:
        score_answers(model, tiny_tokenizer(), answers(8), [NoEdit(), random_shift(model)])
        return len(tried)

    assert scored() == scored() == 1
    # what a caller hooks in may see one token in the light of others
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)
    assert scored() == scored() == 2
    handle.remove()
    assert scored() == 3
    model.set_attn_implementation("eager")
    assert scored() == scored() == 4


def test_tokens_of_another_models_tokenizer_are_refused_before_anything_runs() -> None:
    model = tiny_model()
    n = model.config.vocab_size
    with pytest.raises(BadValue, match=f"the tokenizer gives token {n + 3}, but the model knows {n}"):
        run_tree(model, TokenTree.of([TreeRow([5, n + 3, 4], 1, 1)]), lambda *_: None)


def test_a_sweep_looks_for_the_heads_once() -> None:
    model, seen = tiny_model(), []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["input_ids"].tolist()), with_kwargs=True)
    shift = random_shift(model)
    edits = [shift.scaled(a) for a in (0, 1, 2, 3)]
    scores = score_answers(model, tiny_tokenizer(), answers(8), edits, token_budget=100)
    moved = drifts(model, tiny_tokenizer(), edits, texts=["one two three four"] * 5, batch_size=2)
    assert seen.count([[0, 0, 0, 0]]) == 2  # one search takes two forwards
    # the control: every edit acted
    assert len({row[0] for row in scores.logprobs}) == 4 and len({float(d.kl) for d in moved}) == 4


def test_the_models_hooks_and_modes_are_left_as_they_were() -> None:
    model = tiny_model().train()
    score_answers(model, tiny_tokenizer(), answers(), [NoEdit(), random_shift(model)])
    assert all(module.training for module in model.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_arrays_of_the_tree_are_integers() -> None:
    tree = TokenTree.of([])
    assert tree.tokens.dtype == np.int64 and tree.n_root == 0 and tree.units == ()
