"""Prompts that several edits leave unedited run once for all of them, and the texts are those of one edit at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import peft as hf_peft
import pytest
import torch

from tests.families import FAMILIES, family_model
from tests.measuring import complete
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import Head
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.edits.vectors import HeadShift
from trimtab.engine import generate
from trimtab.engine import sharing as prefix_mode
from trimtab.engine.beam_search import beam_texts
from trimtab.engine.completion import AnswerEnd, completions
from trimtab.engine.conversation import answers
from trimtab.errors import BadValue, Incompatible
from trimtab.evaluate import generate_answers, generate_answers_many
from trimtab.models.anatomy import decoder_of
from trimtab.models.heads import find_heads
from trimtab.protocols import Edit, Positions

# of different lengths, so that every batch is padded
PROMPTS = [f"Q: {q.question}\nA:" for q in tiny_questions(4)] + ["Q: Why?\nA:"]
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "batch_size": 3}
USUAL = ("Llama", "GPT-2", "GPT-NeoX / Pythia", "BLOOM", "Gemma 3 (text)", "Qwen2.5-VL (text tower)", "Jamba (hybrid)")
FEW_SHOT = Prompted((("What is snow?", "Snow is white."),))


class PromptEditing(Edit):
    """The same shift, said to change how the prompt runs."""

    def __init__(self, edit: Edit) -> None:
        self.edit, self.name = edit, edit.name

    def applied(self, model: Any, positions: Positions = "generated") -> Any:
        return self.edit.applied(model, positions)


def shifts(model: Any) -> list[Edit]:
    site = find_heads(model)[-1]
    direction = torch.nn.functional.normalize(torch.ones(1, site.d_head), dim=1)
    shift = HeadShift((Head(site.layer, 1),), direction, torch.full((1,), 8.0))
    return [NoEdit(), shift.scaled(0.5), shift, shift.scaled(-1)]


def one_by_one(model: Any, edits: list[Edit], prompts: list[str] = PROMPTS) -> list[list[str]]:
    return [complete(model, tiny_tokenizer(), prompts, edit, **OPTIONS) for edit in edits]


@contextlib.contextmanager
def widths(model: Any) -> Iterator[list[int]]:
    """Collect how many tokens a row each of the decoder's forwards over more than four positions takes."""
    seen: list[int] = []

    def note(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if ids.shape[1] > 4:  # finding the heads takes a forward over four
            seen.append(ids.shape[1])

    handle = decoder_of(model).register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.mark.parametrize("family", [f if f in USUAL else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def test_the_texts_are_those_of_one_edit_at_a_time(family: str) -> None:
    model = family_model(family)
    head = model.get_output_embeddings()
    # with tied random embeddings some families repeat the prompt's last token for ever, whatever the shift
    head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0)))
    edits = shifts(model)
    found = completions(model, tiny_tokenizer(), PROMPTS, edits, **OPTIONS)
    assert found == one_by_one(model, edits)
    assert found[0] != found[2]  # the control: the shift changes what is said


def test_a_prompt_runs_once_for_all_edits_that_leave_it_unedited() -> None:
    model = tiny_model("llama")
    edits = shifts(model)
    with widths(model) as seen:
        together = completions(model, tiny_tokenizer(), PROMPTS, edits, max_new_tokens=8)
    with widths(model) as alone:
        expected = [complete(model, tiny_tokenizer(), PROMPTS, edit, max_new_tokens=8) for edit in edits]
    assert together == expected and len(set(map(tuple, together))) > 1
    assert len(seen) == 1 and alone == [seen[0] + 1] * len(edits)


def test_edits_that_leave_the_prompt_unedited_go_on_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes, plain = tiny_model("llama"), [], generate.new_tokens

    def noted(edited: Any, tokenizer: Any, batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch.indices))
        return plain(edited, tokenizer, batch, *rest)

    monkeypatch.setattr(generate, "new_tokens", noted)
    completions(model, tiny_tokenizer(), PROMPTS, shifts(model), max_new_tokens=8)
    assert sizes == [4 * len(PROMPTS)]
    completions(model, tiny_tokenizer(), PROMPTS, shifts(model), max_new_tokens=8, batch_size=3)
    assert max(sizes[1:]) == 3 and sum(sizes[1:]) == sizes[0]


def test_an_edit_that_changes_how_the_prompt_runs_has_a_prompt_of_its_own() -> None:
    model = tiny_model("llama")
    none, half, whole, _ = shifts(model)
    editing: list[Any] = [none, PromptEditing(half), whole]
    with widths(model) as seen:
        found = completions(model, tiny_tokenizer(), PROMPTS, editing, max_new_tokens=8)
    assert len(seen) == 1 + 1  # once for two edits, and once for the one
    assert found == one_by_one(model, [none, half, whole])


@pytest.mark.parametrize("positions", ["generated", "all"])
def test_inside_another_edit_nothing_is_shared(positions: Any) -> None:
    model = tiny_model("llama")
    none, half, whole, _ = shifts(model)
    with whole.applied(model, positions):
        found = completions(model, tiny_tokenizer(), PROMPTS, [none, half], **OPTIONS)
        expected = one_by_one(model, [none, half])
    assert found == expected
    assert found != completions(model, tiny_tokenizer(), PROMPTS, [none, half], **OPTIONS)


BEGUN = [f"Q: What is the sky?\nA: It is blue, and snow is white.\n\n{prompt}" for prompt in PROMPTS]
"""Prompts that begin alike, of different lengths."""


@pytest.fixture
def tried_for_any_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_mode, "TRYING", {"cpu": 1, "cuda": 1})


@pytest.mark.usefixtures("tried_for_any_saving")
@pytest.mark.parametrize("family", [f if f in USUAL else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def test_prompts_that_begin_alike_are_answered_as_alone(family: str) -> None:
    model = family_model(family)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0)))
    edits = shifts(model)[:3]
    found = completions(model, tiny_tokenizer(), BEGUN, edits, **OPTIONS)
    assert found == [
        [complete(model, tiny_tokenizer(), [prompt], edit, max_new_tokens=8)[0] for prompt in BEGUN] for edit in edits
    ]
    assert found[0] != found[2]  # the control: the shift changes what is said


@pytest.mark.usefixtures("tried_for_any_saving")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_prompts_begin_with_is_computed_once_for_a_batch(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    rows = [tokenizer(prompt)["input_ids"] for prompt in BEGUN]
    common = next(i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)
    with widths(model) as seen:
        complete(model, tokenizer, BEGUN, NoEdit(), max_new_tokens=1, batch_size=9)  # the first time, it is tried out
        seen.clear()
        found = complete(model, tokenizer, BEGUN, NoEdit(), max_new_tokens=1, batch_size=9)
    # the beginning in a row of its own, then what follows it, without the last tokens that predict the answers
    assert seen == [common, max(map(len, rows)) - 1 - common]
    assert found == [complete(model, tokenizer, [prompt], NoEdit(), max_new_tokens=1)[0] for prompt in BEGUN]


@pytest.mark.usefixtures("tried_for_any_saving")
@pytest.mark.parametrize("prompts", [[BEGUN[0]] * 3, [BEGUN[0], BEGUN[0] + " It", BEGUN[0] + " It is"]])
def test_prompts_that_are_alike_or_beginnings_of_each_other_are_answered_as_alone(prompts: list[str]) -> None:
    model = tiny_model("llama")
    found = completions(model, tiny_tokenizer(), prompts, shifts(model)[:2], **OPTIONS)
    assert found == [[complete(model, tiny_tokenizer(), [p], e, max_new_tokens=8)[0] for p in prompts]
                     for e in shifts(model)[:2]]  # fmt: skip


def test_a_short_common_beginning_is_not_computed_apart() -> None:
    model = tiny_model("llama")
    with widths(model) as seen:
        complete(model, tiny_tokenizer(), BEGUN, NoEdit(), max_new_tokens=1, batch_size=9)
    assert len(seen) == 1


def test_prompts_of_one_token_are_run_whole() -> None:
    model = tiny_model("gpt2")
    edits = shifts(model)
    prompts = ["", "a longer prompt"]
    found = completions(model, tiny_tokenizer(), prompts, edits, **OPTIONS)
    assert found == [complete(model, tiny_tokenizer(), prompts, edit, **OPTIONS) for edit in edits]


def test_answers_of_many_edits_are_those_of_each() -> None:
    model, questions = tiny_model("llama"), tiny_questions(5)
    _, half, whole, _ = shifts(model)
    edits: list[Edit] = [NoEdit(), FEW_SHOT, half, Stacked((FEW_SHOT, whole))]
    asked = (model, tiny_tokenizer(), questions)
    with widths(model) as seen:
        found = generate_answers_many(*asked, edits, max_new_tokens=8)
    assert len(seen) == 1 + 1  # the plain prompts, and those with examples
    assert list(found) == [generate_answers(*asked, edit, **OPTIONS) for edit in edits]


def test_no_edits_give_no_answers() -> None:
    assert generate_answers_many(tiny_model("llama"), tiny_tokenizer(), tiny_questions(2), []) == ()


@pytest.mark.parametrize("paragraphs", [True, False])
def test_rows_end_where_decoding_every_row_at_every_step_says_so(paragraphs: bool) -> None:
    tokenizer = tiny_tokenizer()
    texts = ["Q: a", " blue.\nQ: why", "\n\nblue", "blue\n\nred", "FAQ: yes Q", "a : b\n c", "blue"]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([[7, 7, *row, *[8] * (length - len(row))] for row in rows])
    end = AnswerEnd(tokenizer, 2, paragraphs=paragraphs)
    done = torch.zeros(len(rows), dtype=torch.bool)
    for width in (3, *range(5, ids.shape[1] + 1)):  # the second step adds two tokens, as assisted generation may
        done |= end(ids[:, :width], None)
        whole = [end._done(text) for text in tokenizer.batch_decode(ids[:, 2:width])]
        assert done.tolist() == whole
    # the control: some end and some do not
    assert 0 < int(done.sum()) < len(rows)


def test_no_new_token_at_all_is_refused() -> None:
    with pytest.raises(BadValue, match="max_new_tokens must be at least 1, got 0"):
        complete(tiny_model(), tiny_tokenizer(), PROMPTS, NoEdit(), max_new_tokens=0)


def prompt_tuned(model: Any) -> Any:
    """Return the model in PEFT's own wrapper, which puts virtual tokens before each row and its padding."""
    return hf_peft.get_peft_model(model, hf_peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


@pytest.mark.parametrize(
    "asked",
    [
        lambda model, tokenizer: completions(model, tokenizer, PROMPTS, [NoEdit()]),
        lambda model, tokenizer: beam_texts(model, tokenizer, PROMPTS, NoEdit()),
        lambda model, tokenizer: answers(model, tokenizer, ["Why?"]),
    ],
)
def test_a_wrapper_that_does_not_bear_left_padding_is_refused(asked: Any) -> None:
    with pytest.raises(
        Incompatible, match=r"PEFT's PROMPT_TUNING gives other texts under the left padding .*TunedEdit"
    ):
        asked(prompt_tuned(tiny_model("llama")), tiny_tokenizer())


@pytest.mark.parametrize("default", [{"cache_implementation": "static"}, {"return_dict_in_generate": True}])
def test_a_models_generation_defaults_do_not_keep_prompts_from_being_shared(default: dict[str, Any]) -> None:
    model = tiny_model("llama")
    edits = shifts(model)
    expected = completions(model, tiny_tokenizer(), PROMPTS, edits, **OPTIONS)
    model.generation_config.update(**default)
    assert completions(model, tiny_tokenizer(), PROMPTS, edits, **OPTIONS) == expected
