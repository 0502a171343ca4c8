"""What verbs do first: silence the libraries, read the questions, open the edits."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from trimtab.protocols import Edit

DATA_NAMES = ("folklore", "truthfulqa", "atlas", "cheerful", "casual", "unsure")
"""The data sets that `--data` knows by name."""


def quiet() -> None:
    """Silence the libraries' own progress bars and advice, so that trimtab's output stands alone."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()


def read_data(data: str, *, part: Literal["development", "final"] | None = None, limit: int | None = None) -> Any:
    """Return the questions, pairs or facts that `--data` names; `part` chooses among folklore's two.

    Raises:
        BadDataset: no such file or name (the nearest names are offered), or the file cannot be used.
    """
    from trimtab.datasets.behaviours import BEHAVIOURS, behaviour
    from trimtab.datasets.facts import atlas, facts_from_file
    from trimtab.datasets.files import from_file
    from trimtab.datasets.folklore import folklore
    from trimtab.datasets.truthfulqa import truthfulqa
    from trimtab.errors import BadDataset, nearest

    path = Path(data).expanduser()
    if data == "folklore":
        questions = folklore(part or "all")
    elif data == "truthfulqa":
        quiet()
        questions = truthfulqa()
    elif data == "atlas":
        questions = atlas()
    elif data in BEHAVIOURS:
        questions = behaviour(data).pairs
    elif path.is_file():
        questions = (
            truthfulqa(path) if _is_truthfulqa(path) else (facts_from_file if _has_facts(path) else from_file)(path)
        )
    else:
        beside = [str(p) for p in _beside(path) if p.suffix.lower() in (".jsonl", ".json", ".csv")]
        if path.is_dir():
            raise BadDataset(f"{path} is a folder; give the file of questions or pairs that stands in it")
        raise BadDataset(f"no data set or file {data!r}{nearest(data, [*DATA_NAMES, *beside])}")
    return questions if limit is None else questions[:limit]


def _has_facts(path: Path) -> bool:
    with suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
        return path.suffix.lower() == ".jsonl" and '"subject"' in first and '"new"' in first
    return False


def _is_truthfulqa(path: Path) -> bool:
    mark = {".json": "mc1_targets", ".csv": "Incorrect Answers"}.get(path.suffix.lower())
    with suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as file:  # the reader says what is wrong
        return mark is not None and mark in (file.read() if mark == "mc1_targets" else file.readline())
    return False


def open_edit(specs: Sequence[str], *, strength: float | None = None, classes: Sequence[str] = ()) -> "Edit":
    """Return the edit of a folder, or a stack of those of several.

    Args:
        specs: folders, each with a strength behind a colon if it is to have another than it holds.
        strength: of a single edit.
        classes: the user's own, as FILE.py:NAME, that folders may hold.

    Raises:
        Incompatible: no such folder (the nearest ones are offered), or it holds no edit.
        BadValue: a strength that is no finite number or that the edit cannot have; several edits with one strength.
    """
    quiet()  # before libraries are loaded that talk then

    from trimtab.cli.user_code import open_object, with_strength
    from trimtab.edits.combined import Stacked
    from trimtab.edits.disk import load_edit
    from trimtab.errors import BadValue

    if strength is not None and len(specs) > 1:
        raise BadValue("--strength is the strength of one edit; of several, give each its own, as --edit DIR:0.5")
    kinds = [open_object(spec, "class").value for spec in classes]
    edits = []
    for spec in specs:
        folder, own = with_strength(spec)
        edit = load_edit(folder, kinds=kinds)
        wanted = own if strength is None else strength
        if wanted is not None and not abs(wanted) < float("inf"):
            raise BadValue(f"the strength must be a finite number, got {wanted}")
        edits.append(edit if wanted is None else edit.at_strength(wanted))
    return edits[0] if len(edits) == 1 else Stacked(tuple(edits))


def _beside(missing: Path) -> list[Path]:
    """Return what stands where `missing` would, written as it was."""
    parent = missing.parent
    return [parent / p.name for p in sorted(parent.iterdir())] if parent.is_dir() else []


def beside_results(missing: Path, kinds: Sequence[str]) -> list[str]:
    """Return the folders beside a missing one that hold results of these kinds."""
    from trimtab.storage import kind_of

    return [str(p) for p in _beside(missing) if kind_of(p) in kinds]
