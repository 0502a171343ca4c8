"""activations_from_iti: the .npy activation files of ITI's published code, as HeadActivations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.activations.captured import HeadActivations
from trimtab.datasets.questions import QuestionSet
from trimtab.errors import BadDataset, BadValue, ShapeError

KIND = "activations"


def activations_from_iti(folder: str | Path, *, n_heads: int, questions: QuestionSet | None = None) -> HeadActivations:
    """Return the activations in a folder of ITI's `get_activations.py`: `*_head_wise.npy` beside `*_labels.npy`.

    The files hold float16 arrays `example layer (head d_head)` and the labels; they say neither which model they come
    from nor which question an example belongs to.

    Args:
        n_heads: heads in each layer.
        questions: those the file was made of, in its order, with all their answers; each becomes a group, so that
            splits never part a question. Without them every example is its own group, and probes can be validated
            on answers to questions that they were fitted on.

    Raises:
        BadDataset: no such files, several of them, or files that cannot be read without pickle.
        BadValue: labels other than 0 and 1; NaN or infinite activations.
        ShapeError: shapes that do not fit each other, the heads or the questions.
    """
    values, source = _read(Path(folder), "_head_wise.npy")
    labels, _ = _read(Path(folder), "_labels.npy")
    if values.ndim == 4:
        values = values.reshape(*values.shape[:2], -1)
    if values.ndim != 3 or labels.shape != values.shape[:1]:
        raise ShapeError(
            f"{source}: expected activations (example, layer, width) and one label each, got {values.shape} and "
            f"{labels.shape}"
        )
    if n_heads < 1 or values.shape[2] % n_heads:
        raise ShapeError(f"{source}: a width of {values.shape[2]} cannot be cut into {n_heads} heads")
    if not np.isin(labels, (0, 1)).all():
        raise BadValue(f"{source}: labels must be 0 or 1, got {sorted(set(labels.tolist()))[:5]}")
    n, n_layers = values.shape[:2]
    tensor = torch.from_numpy(values.astype(np.float32)).unflatten(2, (n_heads, -1))
    record: dict[str, Any] = {"site": "heads", "position": "last", "source": source.name}
    acts = HeadActivations(
        tensor, torch.from_numpy(labels.astype(bool)), _groups(questions, labels, n), tuple(range(n_layers)), record
    )
    return acts.require_finite()


def _groups(questions: QuestionSet | None, labels: np.ndarray, n: int) -> tuple[str, ...]:
    if questions is None:
        return tuple(f"example {i}" for i in range(n))
    groups = tuple(q.key for q in questions for _ in (*q.correct, *q.incorrect))
    if len(groups) != n:
        raise ShapeError(f"the files hold {n} examples, the questions have {len(groups)} answers; give the same ones")
    # the order of answers within a question is the file's own: only the counts can be compared
    place, start = labels.astype(bool), 0
    for question in questions:
        end = start + len(question.correct) + len(question.incorrect)
        if int(place[start:end].sum()) != len(question.correct):
            raise ShapeError(
                f"the labels of examples {start} to {end - 1} are not those of {question.key[:60]!r}; the questions "
                "must be the files' own, in their order"
            )
        start = end
    return groups


def _read(folder: Path, suffix: str) -> tuple[np.ndarray, Path]:
    found = sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else []
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise BadDataset(f"{folder}: expected one file that ends in {suffix}, found {names}")
    try:
        return np.load(found[0], allow_pickle=False), found[0]
    except (OSError, ValueError) as cause:
        raise BadDataset(f"{found[0]} cannot be read as a plain .npy array ({cause})") from cause
