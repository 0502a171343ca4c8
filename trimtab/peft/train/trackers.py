"""The Trainer's trackers (TensorBoard, Weights & Biases, MLflow and the like): which may be asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trimtab.errors import BadValue

IN_THE_RUNS_FOLDER = ("tensorboard", "codecarbon")
"""Those that write beside the checkpoints."""
TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"
"""The variable by which transformers' TensorBoard writes elsewhere."""


def checked(asked: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the trackers' names, each once.

    Raises:
        BadValue: a name that transformers does not know or does not find installed; `"all"` and `"none"`.
    """
    if asked is None or (isinstance(asked, str | Sequence) and not asked):
        return ()
    if not isinstance(asked, str | Sequence):
        raise BadValue(f"report_to takes the name of a tracker or several, got {asked!r}")
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    names, available = (asked,) if isinstance(asked, str) else tuple(asked), get_available_reporting_integrations()
    found = ", ".join(available) or "none"
    for name in names:
        if name == "none":
            raise BadValue('report_to takes the names of trackers; leave it out instead of "none"')
        if name == "all":
            raise BadValue(f'report_to takes the names of trackers instead of "all"; installed are: {found}')
        if name not in list(INTEGRATION_TO_CALLBACK):  # a list: a name that is no text need not be hashable
            known = ", ".join(INTEGRATION_TO_CALLBACK)
            raise BadValue(f"unknown tracker {name!r} in report_to; choose among {known}; installed are: {found}")
        if name not in available:
            raise BadValue(
                f"the tracker {name!r} in report_to is not installed; install it, or choose one that is: {found}"
            )
    return tuple(dict.fromkeys(names))


def require_lasting(trackers: Sequence[str], out: str | Path | None) -> None:
    """Raise `BadValue` if what a tracker writes would vanish with a run that has no folder of its own."""
    if out is not None:
        return
    for name in IN_THE_RUNS_FOLDER:
        elsewhere = TENSORBOARD_FOLDER if name == "tensorboard" else None
        if name in trackers and not (elsewhere and os.environ.get(elsewhere)):
            raise BadValue(
                f"{name} writes into the folder of the run, and without one its files would be lost: "
                f"give fit(..., out=){f', or set {elsewhere}' if elsewhere else ''}"
            )
