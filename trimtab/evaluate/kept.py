"""KeptAnswers: answers stand on disk before they are judged, and each verdict once it is given."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.fields import fault
from trimtab.models.identity import fingerprint
from trimtab.models.processes import rank_and_count
from trimtab.protocols import Edit, Judge, Verdict
from trimtab.storage import RECORD, load_record, save_result, write_errors

KIND = "answers"
VERDICTS = "verdicts.jsonl"


class _Answers(TypedDict):
    answers: list[str]


class _Given(TypedDict):
    judge: str
    place: int
    true: float
    informative: float
    matched: bool


class KeptAnswers:
    """The answers of one model, edit and list of prompts, in a folder of their own below `parent`.

    A folder holds the answers with their prompts (`record.json`) and one line a verdict (`verdicts.jsonl`). Verdicts
    are taken up again only of a judge that has a `record` to be known by: a function may have changed under its name.
    """

    def __init__(self, parent: str | Path, model: Any, edit: Edit, prompts: Sequence[str], **options: Any) -> None:
        made = {"model": fingerprint(model), "edit": edit.describe(), "prompts": list(prompts), **options}
        told = hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode())
        for part in _tensors(edit):
            told.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.folder = Path(parent) / told.hexdigest()[:12]
        self.record = {**made, "model": made["model"]["name"]}

    @property
    def there(self) -> bool:
        """Whether the answers stand on disk."""
        return (self.folder / RECORD).is_file()

    def answers(self, generate: Callable[[], list[str]]) -> list[str]:
        """Return the answers that stand here, or those that `generate` gives, written first.

        Raises:
            Incompatible: they cannot be written, or what stands here is damaged.
        """
        if self.there:
            return load_record(self.folder, KIND, fields=_Answers)["answers"]
        texts = generate()
        save_result(self.folder, KIND, {**self.record, "answers": texts}, {})
        return texts

    def verdicts(self, judge: Judge) -> dict[int, Verdict]:
        """Return what this judge said already, by the answer's place."""
        name, file = _name(judge), self.folder / VERDICTS
        if name is None or not file.is_file():
            return {}
        lines = (_row(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
        return {
            r["place"]: Verdict(r["true"], r["informative"], r["matched"]) for r in lines if r and r["judge"] == name
        }

    def add(self, judge: Judge, place: int, verdict: Verdict) -> None:
        """Write a verdict down."""
        name = _name(judge)
        if name is None or rank_and_count()[0] > 0:
            return
        row = {"judge": name, "place": place, **verdict._asdict()}
        with write_errors(self.folder / VERDICTS), (self.folder / VERDICTS).open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # a line that a killed process left unfinished must not swallow this one
                file.write(b"" if file.read(1) == b"\n" else b"\n")
            file.write(json.dumps(row).encode() + b"\n")


def _name(judge: Judge) -> str | None:
    return json.dumps(judge.describe(), sort_keys=True, default=str) if judge.record else None


def _row(line: str) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # a line that was being written when the process was killed
        return None
    return row if fault(row, _Given) is None else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an edit: those that its fields hold."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for one in fields(value):
            yield from _tensors(getattr(value, one.name))
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
