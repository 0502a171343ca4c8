"""Question files of the user's own: JSONL, JSON or CSV; every mistake is named by file, line and field."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trimtab.datasets.pairs import ContrastPair, PairSet
from trimtab.datasets.questions import Question, QuestionSet
from trimtab.errors import BadDataset
from trimtab.plain_values import json_value

FIELDS = ("question", "correct", "incorrect", "best_answer", "category", "source", "explanation")
BETWEEN = re.compile(r"[\s,]*")
"""What stands between the objects of a JSON list."""


def from_file(path: str | Path) -> QuestionSet | PairSet:
    """Return the questions of a `.jsonl`, `.json` (a list of objects) or `.csv` file.

    Fields: `question`, `correct`, `incorrect` (lists of texts in JSON; texts separated by `;` in CSV), and if
    wanted `best_answer`, `category`, `source`, `explanation`. Files whose rows have `positive` and `negative`
    are read as contrast pairs (see `contrast_pairs`).

    Raises:
        BadDataset: the file cannot be read, is empty or malformed; the message names line and field.
    """
    rows = [(f"line {line}", row) for line, row in read_rows(path)]
    return _set(str(path), Path(path).stem, rows, pairs=_are_pairs(rows))


def from_list(rows: Iterable[Mapping[str, Any]], name: str = "rows") -> QuestionSet | PairSet:
    """Return the questions or contrast pairs of a list of mappings, or of a `datasets.Dataset` of Hugging Face.

    Their fields are those of files: see `from_file`.

    Args:
        name: of the set, for records and messages.

    Raises:
        BadDataset: no rows, or a malformed one; the message names row and field.
    """
    made = []
    for n, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise BadDataset(f"{name}, row {n}: expected a mapping of fields to values, got {type(row).__name__}")
        made.append((f"row {n}", row))
    return _set(name, name, made, pairs=_are_pairs(made))


def contrast_pairs(path: str | Path) -> PairSet:
    """Return contrast pairs of any behaviour from a `.jsonl`, `.json` or `.csv` file.

    Fields: `positive` and `negative` texts (in JSON also lists of them), and if wanted the `prompt` that they
    continue, which stands in one row only.

    Raises:
        BadDataset: as `from_file`.
    """
    rows = [(f"line {line}", row) for line, row in read_rows(path)]
    found: Any = _set(str(path), Path(path).stem, rows, pairs=True)
    return found


def read_rows(path: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line number, row) of a JSONL, JSON or CSV file; lines are counted from 1.

    Raises:
        BadDataset: the file cannot be read, or is of another kind or malformed; the message names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as cause:  # ValueError: a path that no disk can hold
        why = "is not UTF-8 text" if isinstance(cause, UnicodeDecodeError) else "cannot be read"
        raise BadDataset(f"{path} {why}; expected a .jsonl, .json or .csv file of questions") from cause
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            _require_distinct(path, [name.strip() for name in reader.fieldnames or ()])
            for row in reader:
                yield reader.line_num, _complete(path, reader.line_num, row)
        except csv.Error as cause:
            # the reader still stands at the row before
            raise BadDataset(f"{path}, line {reader.line_num + 1}: not valid CSV ({cause})") from cause
    elif path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _json_object(path, number, line)
    elif path.suffix.lower() == ".json":
        yield from _listed(path, text)
    else:
        raise BadDataset(f"{path}: unknown kind of file {path.suffix!r}; expected .jsonl, .json or .csv")


def _listed(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the objects of a JSON list with the lines that they begin on."""
    try:
        rows = json_value(text)
    except (ValueError, RecursionError) as cause:
        raise BadDataset(f"{path}: not valid JSON ({cause}); expected a list of objects") from cause
    if not isinstance(rows, list):
        raise BadDataset(f"{path}: expected a JSON list of objects, got {type(rows).__name__}")
    decoder, end, seen, line = json.JSONDecoder(), text.index("[") + 1, 0, 1
    for _ in rows:
        begin = BETWEEN.match(text, end).end()  # pyright: ignore[reportOptionalMemberAccess] - it matches nothing too
        line, seen = line + text.count("\n", seen, begin), begin
        end = decoder.raw_decode(text, begin)[1]
        yield line, _json_object(path, line, text[begin:end])


def _require_distinct(path: Path, header: list[str]) -> None:
    twice = [name for i, name in enumerate(header) if name and name in header[:i]]
    if twice:
        raise BadDataset(f"{path}, line 1: the field {twice[0]!r} stands twice in the header; name each column once")


def _complete(path: Path, line: int, row: Mapping[str | None, Any]) -> Mapping[str, Any]:
    absent = [repr(k) for k, v in row.items() if v is None]
    if absent:
        raise BadDataset(f"{path}, line {line}: fewer fields than the header: {', '.join(absent)} missing")
    if None in row:
        raise BadDataset(
            f"{path}, line {line}: more fields than the header's {len(row) - 1}; put texts that hold commas in quotes"
        )
    return {str(k).strip(): v for k, v in row.items()}


def _json_object(path: Path, line: int, text: str) -> Mapping[str, Any]:
    try:
        row = json_value(text)
        json.dumps(row, ensure_ascii=False).encode()  # halves of characters, as cut texts leave them, cannot be used
    except UnicodeEncodeError as cause:
        raise BadDataset(
            f"{path}, line {line}: holds half a character ({cause.reason}); write the text again"
        ) from cause
    except (ValueError, RecursionError) as cause:
        # the line that a decoder counts is of this object alone
        why = f"{cause.msg}, column {cause.colno}" if isinstance(cause, json.JSONDecodeError) else str(cause)
        raise BadDataset(f"{path}, line {line}: not valid JSON ({why}); expected one object in each line") from cause
    if not isinstance(row, dict):
        raise BadDataset(f"{path}, line {line}: expected a JSON object, got {type(row).__name__}")
    return row


def _question(where: str, row: Mapping[str, Any]) -> Question:
    question = str(_field(where, row, "question", (str,))).strip()
    correct, incorrect = (_answers(where, row, f) for f in ("correct", "incorrect"))
    best, category, source, explanation = (_optional(where, row, f) for f in FIELDS[3:])
    try:
        return Question(question, correct, incorrect, best.strip(), category, source, explanation)
    except BadDataset as cause:
        raise BadDataset(f"{where}: {cause}") from cause


def _answers(where: str, row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = _field(where, row, name, (str, list))
    parts = [part for part in value.split(";") if part.strip()] if isinstance(value, str) else value
    return tuple(part.strip() for part in _all_texts(where, name, parts, value))


def _texts(where: str, row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = _field(where, row, name, (str, list))
    return tuple(_all_texts(where, name, [value] if isinstance(value, str) else value, value))


def _all_texts(where: str, name: str, parts: list[Any], value: Any) -> list[str]:
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise BadDataset(f"{where}: field {name!r} must hold texts, none of them empty; got {value!r:.60}")
    return parts


def _optional(where: str, row: Mapping[str, Any], name: str) -> str:
    value = "" if row.get(name) is None else row[name]
    if not isinstance(value, str):
        raise BadDataset(f"{where}: field {name!r} must be a text; got {value!r:.60}")
    return value


def _pair(where: str, row: Mapping[str, Any]) -> ContrastPair:
    positive, negative = (_texts(where, row, f) for f in ("positive", "negative"))
    try:
        return ContrastPair(_optional(where, row, "prompt"), positive, negative)
    except BadDataset as cause:
        raise BadDataset(f"{where}: {cause}") from cause


def _field(where: str, row: Mapping[str, Any], name: str, kinds: tuple[type, ...]) -> Any:
    value = row.get(name)
    if value is None:
        raise BadDataset(
            f"{where}: field {name!r} is missing; found {', '.join(map(str, row)) or 'none'}; expected question, "
            "correct and incorrect, or of a contrast pair positive, negative and prompt"
        )
    if not isinstance(value, kinds) or not value or (isinstance(value, str) and not value.strip()):
        expected = " or ".join({str: "a text", list: "a list of texts"}[k] for k in kinds)
        raise BadDataset(f"{where}: field {name!r} must be {expected}, not empty; got {value!r:.60}")
    return value


def _set(source: str, name: str, rows: list[tuple[str, Mapping[str, Any]]], *, pairs: bool) -> QuestionSet | PairSet:
    read = _pair if pairs else _question
    items = [(place, read(f"{source}, {place}", row)) for place, row in rows]
    if not items:
        raise BadDataset(f"{source}: no questions; at least one is needed")
    seen: dict[str, str] = {}
    for place, item in items:
        if seen.setdefault(item.key, place) != place:
            what = f"{item.asked[:60]!r}" if item.asked else "the pair"
            advice = "merge the answers into one question" if item.asked else "keep it once"
            raise BadDataset(f"{source}, {place}: {what} stands in {seen[item.key]} already; {advice}")
    found: Any = tuple(item for _, item in items)
    return PairSet(found, name) if pairs else QuestionSet(found, name)


def _are_pairs(rows: list[tuple[str, Mapping[str, Any]]]) -> bool:
    return bool(rows) and {"positive", "negative"} <= set(rows[0][1])
