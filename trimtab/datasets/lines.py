"""Plain text of the user's own, one thing a line: questions to ask, neutral texts."""

from __future__ import annotations

from pathlib import Path

from trimtab.datasets.files import read_rows
from trimtab.errors import BadDataset


def lines_of(text: str) -> list[str]:
    """Return the lines that are not empty, without the space around them.

    A line ends at a newline alone: other separators (U+2028, U+0085, a vertical tab) may stand inside a text.
    """
    return [line.strip() for line in text.removeprefix("\ufeff").split("\n") if line.strip()]


def read_lines(path: str | Path, what: str = "text") -> list[str]:
    """Return the lines of a UTF-8 file that are not empty; raises `BadDataset` if it cannot be read or has none.

    Args:
        what: what a line holds, for the message.
    """
    path = Path(path)
    try:
        lines = lines_of(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise BadDataset(f"{path} cannot be read ({cause.strerror}); expected UTF-8 text, one {what} a line") from cause
    except UnicodeDecodeError as cause:
        raise BadDataset(f"{path} is not UTF-8 text; expected one {what} a line") from cause
    if not lines:
        raise BadDataset(f"{path} holds no {what}; expected one a line")
    return lines


def read_asked(path: str | Path) -> list[str]:
    """Return the questions to ask of a file: lines of text, or the field `question` (or `prompt`) of .jsonl, .json
    or .csv.

    Raises:
        BadDataset: the file cannot be read, is of another kind or holds no question; a row lacks the field.
    """
    path = Path(path)
    if path.suffix.lower() in ("", ".txt", ".md"):
        return read_lines(path, "question")
    asked = []
    for line, row in read_rows(path):
        text = row.get("question") or row.get("prompt")
        if not isinstance(text, str):
            raise BadDataset(f"{path}, line {line}: field 'question' is missing or no text")
        asked.append(text.strip())
    if not asked:
        raise BadDataset(f"{path} holds no question; expected one a line")
    return asked
