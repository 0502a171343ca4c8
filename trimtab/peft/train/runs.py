"""The folder of an unfinished run: what it is a run of, and its checkpoints."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import BadValue, Incompatible
from trimtab.models.processes import rank_and_count, wait
from trimtab.peft.train.checks import COMPLETE, last_checkpoint
from trimtab.storage import RECORD, check_writable, write_json

KIND = "unfinished tuning run"


BESIDE_CHECKPOINTS = {"tensorboard", "codecarbon"}
"""The trackers that write into the folder of a run."""


def require_lasting(trackers: Iterable[str], out: str | Path | None) -> None:
    """Raise `BadValue` if what a tracker writes would vanish with a run that has no folder of its own."""
    if out is None and (lost := sorted(BESIDE_CHECKPOINTS.intersection(trackers))):
        raise BadValue(
            f"{lost[0]} writes into the folder of the run, and without one its files would be lost: give fit(..., out=)"
        )


@dataclass(frozen=True)
class TuningRunFolder:
    """Where a run keeps its checkpoints."""

    path: Path
    checkpoint: Path | None
    """The whole checkpoint to go on from."""

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, out: str | Path | None, specification: Mapping[str, Any], *, resume: bool
    ) -> Iterator[TuningRunFolder]:
        """Yield the folder of a run of this specification; without `out`, a temporary one.

        Raises:
            Incompatible: `out` holds something else, or a run of another specification.
        """
        if out is None:
            with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
                yield cls(Path(folder), None)
            return
        path = Path(out)
        check_writable(path, KIND)
        plain = json.loads(json.dumps(specification, default=str))
        if (path / RECORD).is_file():
            held = json.loads((path / RECORD).read_text(encoding="utf-8")).get("specification", {})
            # a run that has kept nothing yet is in nobody's way; one of two runs keeps its checkpoints a folder below
            if held != plain and any(path.rglob(f"checkpoint-*/{COMPLETE}")):
                differing = sorted(k for k in {*plain, *held} if held.get(k) != plain.get(k))
                raise Incompatible(
                    f"{path} holds a run of another specification ({', '.join(differing)} differ); name another "
                    "folder, or delete this one to begin anew"
                )
        wait()  # all have looked before the first one writes
        if rank_and_count()[0] == 0:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / RECORD, {"kind": KIND, "specification": plain})
            for folder in path.glob("checkpoint-*"):
                if not resume or not (folder / COMPLETE).is_file():  # cut off while it was written
                    shutil.rmtree(folder)
        wait()
        yield cls(path, last_checkpoint(path))
