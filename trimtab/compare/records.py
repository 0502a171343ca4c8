"""A run folder: one JSON record per trial and per last measurement, written once; several processes may share it."""

from __future__ import annotations

import contextlib
import json
import re
import traceback
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from trimtab.compare.design import Unit
from trimtab.compare.old_records import converted, converted_specification, is_old
from trimtab.compare.record_fields import TEST, record_fault, specification_fault
from trimtab.compare.specification import grown
from trimtab.errors import Incompatible, TrimtabError
from trimtab.plain_values import hash_of
from trimtab.posix import posix_module
from trimtab.storage import check_writable, write_json

RUN_KIND = "comparison"


class RunFolder:
    """Where a comparison's records live: `record.json` says what is compared, `records/` holds the results."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def open_for(self, specification: Mapping[str, Any], *, redo_changed: bool = False) -> None:
        """Make the folder, or check that it holds the same comparison; methods and training sizes may be added to it.

        Args:
            specification: what the run compares (trimtab/compare/specification.py).
            redo_changed: forget the records of methods whose settings have changed, and of their controls.

        Raises:
            Incompatible: the folder holds something else, or a comparison that differs in what is named.
        """
        self._refuse_strangers()
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked("run"):
            if not (self.path / "record.json").exists():
                write_json(self.path / "record.json", {"kind": RUN_KIND, **specification})
                return
            held = self.specification()
            self._refuse_old()
            whole, changed = self._grown(held, specification)
            if changed and not redo_changed:
                raise Incompatible(
                    f"{self.path} holds another comparison: it differs in "
                    f"{', '.join(f'method {m!r}' for m in sorted(changed))}; name another folder, go on with the same "
                    "settings, or do these methods anew with --redo-changed"
                )
            # first the records: killed in between, the next call finds the old specification and does this again
            for path in self._files() if changed else ():
                if _read(path)["method"] in changed:
                    path.unlink()
            if whole != held:
                write_json(self.path / "record.json", {"kind": RUN_KIND, **whole})

    def changed(self, specification: Mapping[str, Any]) -> set[str]:
        """Return the methods that are here with other settings, and the controls that follow them.

        Raises:
            Incompatible: as `open_for`.
        """
        self._refuse_strangers()
        return self._grown(self.specification(), specification)[1] if (self.path / "record.json").exists() else set()

    def _grown(self, held: Mapping[str, Any], specification: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
        try:
            return grown(held, specification)
        except Incompatible as why:
            raise Incompatible(
                f"{self.path} holds another comparison: {why}; name another folder, or go on with the same settings"
            ) from why

    def _refuse_old(self) -> None:
        if is_old(json.loads((self.path / "record.json").read_text(encoding="utf-8"))):
            raise Incompatible(
                f"the comparison at {self.path} was begun by the version before: it can be reported on, not gone on "
                "with; name another folder and run it again"
            )

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
            Incompatible: there is no run here, or its record cannot be used.
        """
        try:
            record = json.loads((self.path / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = None
        if not isinstance(record, dict) or record.pop("kind", None) != RUN_KIND:
            raise Incompatible(f"no comparison at {self.path}: expected a folder written by `trimtab compare`")
        if is_old(record):
            record = converted_specification(record)
        wrong = specification_fault(record)
        if wrong is not None:
            raise Incompatible(
                f"the record.json of the comparison at {self.path} cannot be used: {wrong}; it is damaged or another "
                "version's, so name another folder and run the comparison again"
            )
        return record

    def read(self, unit: Unit, step: int | str) -> dict[str, Any] | None:
        """Return the record of a unit's trial (its number) or of its last measurement (`TEST`), None if missing."""
        try:
            return _read(self._file(unit, step))
        except FileNotFoundError:
            return None

    def write(self, unit: Unit, step: int | str, record: Mapping[str, Any]) -> None:
        """Write a record, atomically; there must be none yet."""
        path = self._file(unit, step)
        assert not path.exists(), f"{path} would be written twice"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**unit._asdict(), "step": step, **record})

    def answers(self, unit: Unit) -> Path:
        """Return the folder for a unit's generated answers while a judge has not given all its verdicts on them."""
        return self.path / "answers" / _stem(unit)

    def forget(self, unit: Unit, *, only_failed: bool = False) -> int:
        """Delete a unit's records and return how many there were.

        If only what failed is to go, its last measurement goes too, as it was chosen without the failed trials; where
        nothing failed nothing goes.
        """
        paths = sorted(self._file(unit, TEST).parent.glob("*.json"))
        if only_failed:
            failed = [p for p in paths if _read(p)["status"] == "failed"]
            paths = [p for p in paths if failed and (p in failed or p == self._file(unit, TEST))]
        for path in paths:
            path.unlink()
        return len(paths)

    def records(self) -> list[dict[str, Any]]:
        """Return all records, in a fixed order.

        Raises:
            Incompatible: one is damaged.
        """
        return [_read(path) for path in self._files()]

    @contextlib.contextmanager
    def working(self, place: str) -> Iterator[None]:
        """Count this process among those that work on the run at a place while the block lasts."""
        name = f"worker-{uuid.uuid4().hex}"
        with self._locked(name) as file:
            file.write(place)
            file.flush()
            yield
            (self.path / "locks" / f"{name}.lock").unlink(missing_ok=True)

    def n_working(self, place: str) -> int:
        """Return how many processes work on the run at a place."""
        found = 0
        for path in (self.path / "locks").glob("worker-*.lock"):
            with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
                try:
                    # whoever counts shares the lock with others that count; only a living worker holds it alone
                    _lock(file, shared=True, wait=False)
                except BlockingIOError:
                    found += file.read() == place
        return found

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
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[TextIO]:
        folder = self.path / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("w", encoding="utf-8") as file:
            _lock(file, wait=wait)
            yield file

    def _file(self, unit: Unit, step: int | str) -> Path:
        name = f"trial-{step:03d}" if isinstance(step, int) else step
        return self.path / "records" / _stem(unit) / f"{name}.json"

    def _files(self) -> list[Path]:
        return sorted((self.path / "records").glob("*/*.json"))


def _lock(file: TextIO, *, shared: bool = False, wait: bool) -> None:
    fcntl = posix_module("fcntl", "a comparison, which several processes may share,")
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise Incompatible(f"{path} is not valid JSON; delete it and run again") from cause
    record = converted(record) if isinstance(record, dict) else record
    wrong = record_fault(record)
    if wrong is not None:
        raise Incompatible(f"{path} is no record of a comparison: {wrong}; delete it and run again")
    return record


def _stem(unit: Unit) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", unit.method.lower()).strip("-")
    size = "" if unit.size is None else f"-n{unit.size}"
    # the hash keeps names apart that differ only in case or signs
    return f"{slug}-{hash_of(unit.method)[:4]}{size}-fold{unit.fold}-seed{unit.seed}"


def why(mistake: Exception) -> str:
    """Return what went wrong, and where if it is no user's mistake."""
    if isinstance(mistake, TrimtabError):
        return str(mistake)
    place = traceback.extract_tb(mistake.__traceback__)[-1]
    return f"{type(mistake).__name__}: {mistake} ({Path(place.filename).name}, line {place.lineno})"
