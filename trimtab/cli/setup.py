"""What verbs do first: open the model, read the questions, open the shift."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trimtab.cli.options import DATA_NAMES

if TYPE_CHECKING:
    from trimtab.datasets.questions import QuestionSet
    from trimtab.edits.vectors import HeadShift, ResidualShift
    from trimtab.models.load.checkpoints import LoadedModel


def quiet() -> None:
    """Silence the libraries' own progress bars and advice, so that trimtab's output stands alone."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()


def open_model(
    name: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    quantization: str | None = None,
    revision: str | None = None,
) -> "LoadedModel":
    """Return the model and tokenizer that the shared options describe."""
    from trimtab.models.load.checkpoints import load_model

    quiet()
    quantized = {} if quantization is None else {"quantization": quantization}
    return load_model(name, dtype=dtype, device=device, revision=revision, **quantized)  # pyright: ignore[reportArgumentType]


def read_data(
    data: str, *, part: Literal["development", "final"] | None = None, limit: int | None = None
) -> "QuestionSet":
    """Return the questions that `--data` names; `part` chooses among folklore's two.

    Raises:
        BadDataset: no such file or name (the nearest names are offered), or the file cannot be used.
    """
    from trimtab.datasets.files import from_file
    from trimtab.datasets.folklore import folklore
    from trimtab.datasets.truthfulqa import truthfulqa
    from trimtab.errors import BadDataset

    path = Path(data).expanduser()
    if data == "folklore":
        questions = folklore() if part is None else folklore(part)
    elif data == "truthfulqa":
        quiet()
        questions = truthfulqa()
    elif path.is_file():
        questions = truthfulqa(path) if _is_truthfulqa(path) else from_file(path)
    else:
        raise BadDataset(f"no data set or file {data!r}{nearest(data, [*DATA_NAMES, *beside(path, '.jsonl', '.csv')])}")
    return questions if limit is None else questions[:limit]


def open_shift(folder: Path | None, alpha: float | None = None) -> "HeadShift | ResidualShift | None":
    """Return the shift in a folder (or in the run folder's `shift`), at strength `alpha` if given.

    Raises:
        Incompatible: no such folder (the nearest ones are offered), or it holds no whole shift, such as a tuned edit.
        BadValue: alpha is not a finite number.
    """
    from dataclasses import replace

    from trimtab.edits.disk import load_shift
    from trimtab.errors import BadValue, Incompatible
    from trimtab.storage import kind_of

    if folder is None:
        return None
    kind = kind_of(folder)
    if kind is None:
        known = nearest(str(folder), beside_results(folder, "fit", "demo run", "shift", "residual shift"))
        raise Incompatible(f"no shift in {str(folder)!r}: expected a folder that `trimtab fit` wrote{known}")
    if kind == "tuned edit":
        raise Incompatible(
            f"{str(folder)!r} holds a tuned edit, not a shift: merge it (trimtab merge --edit {folder}) and name "
            "what was written with --model, or measure it with trimtab.evaluate.table in Python"
        )
    shift = load_shift(folder)
    if alpha is None:
        return shift
    if not abs(alpha) < float("inf"):
        raise BadValue(f"alpha must be a finite number, got {alpha}")
    return replace(shift, strength=alpha)


def beside_results(missing: Path, *kinds: str) -> list[str]:
    """Return the folders beside a missing one that hold results of these kinds."""
    from trimtab.storage import kind_of

    parent = missing.parent
    return [str(p) for p in sorted(parent.iterdir()) if kind_of(p) in kinds] if parent.is_dir() else []


def _is_truthfulqa(path: Path) -> bool:
    if path.suffix == ".json":
        return True
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return path.suffix == ".csv" and "Incorrect Answers" in file.readline()
    except OSError:  # the reader says what is wrong
        return False


def nearest(given: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the nearest known ones, or all of them."""
    known = sorted(set(known))
    close = get_close_matches(given, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there {'is' if len(known) == 1 else 'are'} {', '.join(known)}" if known else ""


def beside(path: Path, *suffixes: str) -> list[str]:
    """Return the names in the folder where `path` would stand, written as `path` was: files of these suffixes."""
    if not path.parent.is_dir():
        return []
    return [str(path.parent / p.name) for p in sorted(path.parent.iterdir()) if p.suffix in suffixes and p.is_file()]
