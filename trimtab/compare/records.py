"""A run folder: one JSON record per trial and per last measurement, written once; several processes may share it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trimtab.compare.design import Unit, digest
from trimtab.errors import Incompatible
from trimtab.storage import check_writable, write_json

RUN_KIND = "comparison"
TEST = "test"


class RunFolder:
    """Where a comparison's records live: `record.json` says what is compared, `records/` holds the results."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def open_for(self, specification: Mapping[str, Any]) -> None:
        """Make the folder, or check that it holds the same comparison; methods may be added to it.

        Raises:
            Incompatible: the folder holds something else, or a comparison that differs in what is named.
        """
        self._refuse_strangers()
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked("run"):
            try:
                held = self.specification()
            except Incompatible:
                held = None
            if held is None:
                write_json(self.path / "record.json", {"kind": RUN_KIND, **specification})
                return
            methods = {**held["methods"], **specification["methods"]}
            ours, theirs = ({**s, "methods": None} for s in (specification, held))
            differing = [k for k in ours if k not in ("versions", "hardware") and ours[k] != theirs.get(k)]
            differing += [
                f"method {m!r}" for m in specification["methods"] if methods[m] != held["methods"].get(m, methods[m])
            ]
            if differing:
                raise Incompatible(
                    f"{self.path} holds another comparison: it differs in {', '.join(differing)}; name another folder, "
                    "or go on with the same settings"
                )
            if methods != held["methods"]:
                write_json(self.path / "record.json", {**held, "kind": RUN_KIND, "methods": methods})

    def _refuse_strangers(self) -> None:
        # another worker may be making the same folder at this moment: its locks and temporary files are no strangers
        strange = self.path.is_file() or (
            self.path.is_dir()
            and not (self.path / "record.json").exists()
            and any(p.name != "locks" and not p.name.startswith(".") for p in self.path.iterdir())
        )
        if strange:
            held = "a file" if self.path.is_file() else "a folder that holds something else"
            raise Incompatible(f"cannot write a comparison to {self.path}: it is {held}; name another folder")
        if (self.path / "record.json").exists():
            check_writable(self.path, RUN_KIND)

    def specification(self) -> dict[str, Any]:
        """Return what the run compares.

        Raises:
            Incompatible: there is no run here.
        """
        try:
            record = json.loads((self.path / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = None
        if not isinstance(record, dict) or record.pop("kind", None) != RUN_KIND:
            raise Incompatible(f"no comparison at {self.path}: expected a folder written by `trimtab compare`")
        return record

    def read(self, unit: Unit, step: int | str) -> dict[str, Any] | None:
        """Return the record of a unit's trial (its number) or of its last measurement (`TEST`), None if missing."""
        path = self._file(unit, step)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as cause:
            raise Incompatible(f"{path} is not valid JSON; delete it and run again") from cause

    def write(self, unit: Unit, step: int | str, record: Mapping[str, Any]) -> None:
        """Write a record, atomically; there must be none yet."""
        path = self._file(unit, step)
        assert not path.exists(), f"{path} would be written twice"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**unit._asdict(), "step": step, **record})

    def forget_failures(self) -> int:
        """Delete the records of what failed, so that running again tries it again; return how many there were."""
        failed = [p for p in self._files() if json.loads(p.read_text(encoding="utf-8"))["status"] == "failed"]
        for path in failed:
            path.unlink()
        return len(failed)

    def records(self) -> list[dict[str, Any]]:
        """Return all records, in a fixed order."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in self._files()]

    @contextlib.contextmanager
    def claim(self, unit: Unit) -> Iterator[bool]:
        """Yield whether this process has the unit to itself while the block lasts.

        The claim is a lock that the operating system takes back when a process dies, however it dies.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked(_stem(unit), wait=False))
                mine = True
            except BlockingIOError:
                mine = False
            yield mine

    @contextlib.contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        folder = self.path / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield

    def _file(self, unit: Unit, step: int | str) -> Path:
        name = f"trial-{step:03d}" if isinstance(step, int) else step
        return self.path / "records" / _stem(unit) / f"{name}.json"

    def _files(self) -> list[Path]:
        return sorted((self.path / "records").glob("*/*.json"))


def _stem(unit: Unit) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", unit.method.lower()).strip("-")
    size = "" if unit.size is None else f"-n{unit.size}"
    # the hash keeps names apart that differ only in case or signs
    return f"{slug}-{digest(unit.method)[:4]}{size}-fold{unit.fold}-seed{unit.seed}"
