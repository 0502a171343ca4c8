"""Hands of the Hugging Face kind: folders and repositories by name, cards, pipelines, lists and data frames."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

import trimtab as tt
from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.evaluate.multiple_choice import choice_meters
from trimtab.evaluate.table import table
from trimtab.steer import CAA, HeadShift, ResidualShift

ROWS = [
    {"prompt": f"How is day {i}?", "positive": f"Day {i} is fine.", "negative": f"Day {i} is grim."} for i in range(6)
]
QUESTIONS = [{"question": q.question, "correct": [*q.correct], "incorrect": [*q.incorrect]} for q in tiny_questions(4)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def shift(model: Any) -> Any:
    return CAA().fit(model, tiny_tokenizer(), ROWS)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shift: Any) -> list[Any]:
    """Stand in for the hub: what was asked of it, in order."""
    asked: list[Any] = []

    def snapshot(name: str, revision: str | None = None) -> str:
        asked.append((name, revision))
        shift.save_pretrained(tmp_path / "snapshot")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return asked


def test_a_folder_with_its_card_gives_back_the_edit(model: Any, shift: Any, tmp_path: Path, hub: list[Any]) -> None:
    shift.save_pretrained(tmp_path / "made")
    for read in (tt.from_pretrained, tt.load_edit, ResidualShift.from_pretrained):
        assert torch.equal(read(tmp_path / "made").vectors, shift.vectors)
    assert tt.from_pretrained(str(tmp_path / "made")).sites == shift.sites
    card = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: trimtab\n")
    for told in ("# CAA", "| kind | residual shift |", "| asked in | plain form |", "tt.from_pretrained"):
        assert told in card
    shift.save_pretrained(tmp_path / "made")  # again over itself
    assert hub == []


def test_a_repository_of_the_hub_is_downloaded_only_when_it_is_named(
    shift: Any, hub: list[Any], tmp_path: Path
) -> None:
    again = tt.from_pretrained("someone/cheerful", revision="v2")
    assert hub == [("someone/cheerful", "v2")]
    assert torch.equal(again.vectors, shift.vectors)
    (tmp_path / "runs").mkdir()
    for name in (str(tmp_path / "runs" / "none"), "none", "a/b/c", tmp_path / "x" / "y"):
        with pytest.raises(Incompatible, match="expected an edit at"):
            tt.from_pretrained(name)
    assert len(hub) == 1
    with pytest.raises(Incompatible, match="expected a shift"):
        HeadShift.from_pretrained("someone/cheerful")


def test_what_the_hub_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def refuse(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(Incompatible, match="someone/gone"):
        tt.from_pretrained("someone/gone")


def test_an_edit_is_pushed_with_its_card(monkeypatch: pytest.MonkeyPatch, shift: Any) -> None:
    made: dict[str, Any] = {}

    class Api:
        def create_repo(self, repo_id: str, **options: Any) -> str:
            made["repo"] = (repo_id, options)
            return f"https://hub/{repo_id}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            made["files"] = sorted(p.name for p in folder_path.iterdir())
            made["message"] = (repo_id, commit_message)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert shift.push_to_hub("me/cheerful", private=True) == "https://hub/me/cheerful"
    assert made["repo"] == ("me/cheerful", {"private": True, "exist_ok": True})
    assert {"README.md", "record.json"} <= set(made["files"])
    assert made["message"] == ("me/cheerful", "CAA by trimtab")

    def refused(self: Any, repo_id: str, **_: Any) -> str:
        raise OSError("401: who are you?")

    monkeypatch.setattr(Api, "create_repo", refused)
    with pytest.raises(Incompatible, match="me/cheerful cannot be written on the hub: 401"):
        shift.push_to_hub("me/cheerful")


def test_an_edit_acts_in_a_transformers_pipeline(model: Any) -> None:
    tokenizer, edit = tiny_tokenizer(), random_shift(model).scaled(4.0)
    say = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    options = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    before = say("The sky", **options)
    with edit.applied(model):
        edited = say("The sky", **options)
    assert edited != before
    assert say("The sky", **options) == before
    ids = torch.tensor([tokenizer("The sky")["input_ids"]])
    with edit.applied(model) as same, torch.no_grad():
        out = same.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == edited[0]["generated_text"]


def test_lists_of_mappings_and_datasets_are_taken_as_files_are(model: Any, shift: Any) -> None:
    hf_datasets = pytest.importorskip("datasets")
    tokenizer, pairs = tiny_tokenizer(), tt.datasets.from_list(ROWS, "days")
    assert (type(pairs).__name__, len(pairs), pairs.name) == ("PairSet", 6, "days")
    assert tt.datasets.from_list(QUESTIONS).fingerprint == tiny_questions(4).fingerprint
    for rows in (ROWS, hf_datasets.Dataset.from_list(ROWS), list(pairs), pairs):
        assert torch.equal(CAA().fit(model, tokenizer, rows).vectors, shift.vectors)
        assert tt.evaluate.contrast(model, tokenizer, rows) == tt.evaluate.contrast(model, tokenizer, pairs)
    few = table(model, tokenizer, QUESTIONS, [shift], meters=choice_meters())
    assert few["CAA"].mc1 == table(model, tokenizer, tiny_questions(4), [shift], meters=choice_meters())["CAA"].mc1
    scored = tt.evaluate.multiple_choice(model, tokenizer, hf_datasets.Dataset.from_list(QUESTIONS), shift)
    assert scored.mc1 == few["CAA"].mc1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "rows: no questions; at least one is needed"),
        ([{"question": "Why?"}], "rows, row 1: field 'correct' is missing; found question"),
        ([*ROWS, ROWS[1]], "rows, row 7: 'How is day 1.' stands in row 2 already; merge the answers"),
        ([3], "rows, row 1: expected a mapping of fields to values, got int"),
        ("pairs.jsonl", "'pairs.jsonl' is no set of questions or pairs; read a file by trimtab.datasets.from_file"),
        ([{"prompt": "a", "positive": "b", "negative": "b"}], "row 1: pair 'a' lists 'b' as"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows: Any, said: str, model: Any) -> None:
    with pytest.raises(BadDataset, match=said):
        CAA().fit(model, tiny_tokenizer(), rows)


def test_what_is_shown_of_anything_is_one_line(model: Any, shift: Any) -> None:
    acts = tt.capture_heads(model, tiny_tokenizer(), tiny_questions(4).statements())
    probes = tt.probes.fit_logistic(acts)
    for thing in (
        shift,
        acts,
        probes,
        tiny_questions(4),
        tt.datasets.folklore(),
        tt.datasets.from_list(ROWS),
        tt.datasets.behaviour("casual"),
    ):
        assert "\n" not in repr(thing)
        assert len(repr(thing)) < 120
    assert repr(tiny_questions(4)) == "QuestionSet('tiny', 4 items)"
    assert isinstance(shift, ResidualShift)


def test_a_table_is_a_data_frame_where_pandas_is(model: Any, shift: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    found = table(model, tiny_tokenizer(), tiny_questions(4), [tt.NoEdit(), shift], meters=choice_meters())
    frame = found.to_pandas()
    assert list(frame.index) == ["Baseline", "CAA"]
    assert list(frame.columns[:3]) == ["mc1", "mc1_low", "mc1_high"]
    assert frame.loc["CAA", "mc2"] == float(found["CAA"].mc2)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadValue, match="needs pandas, which is not installed: pip install pandas"):
        found.to_pandas()
