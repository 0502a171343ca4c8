"""One result, one folder: tensors in `tensors.safetensors`, everything else in `record.json`, written atomically."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab.errors import Incompatible
from trimtab.fields import fault
from trimtab.plain_values import json_value

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The ways in which a disk, or what one may write to it, is at its end."""
RECORD, TENSORS = "record.json", "tensors.safetensors"


def cache_folder(name: str) -> Path:
    """Return where trimtab keeps what it can make again, in the user's cache (`XDG_CACHE_HOME`, else `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab" / name


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    names = ("trimtab", "torch", "transformers", "scikit-learn", "numpy", "bitsandbytes", "peft")
    return {name: found for name in names if (found := _version(name))}


@functools.cache  # a comparison saves thousands of records, and reading a package's metadata takes milliseconds
def _version(name: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None


@contextlib.contextmanager
def written_folder(path: str | Path, kind: str) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends, and vanishes if it fails.

    Of several processes of one launch, the first one's folder takes the place.

    Raises:
        Incompatible: `path` exists and does not hold an earlier result of the same kind, or cannot be written.
    """
    check_writable(path, kind)
    path = Path(path).resolve()  # the folder itself is replaced, not a link to it
    what = f"{_a(kind)} to {path}"
    with write_errors(what, advice="name another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with write_errors(what, advice="name another folder"):
            yield staging
            _open_to_others(staging)
            _replace(path, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def written_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of an empty file beside `path`, which takes its place once the block has ended well.

    Raises:
        Incompatible: it cannot be written; what was at `path` stays.
    """
    path = Path(path)
    with write_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        staging = Path(name)
        try:
            yield staging
            staging.chmod(0o644)  # mkstemp's 0600 would hide results from a group
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)


@contextlib.contextmanager
def write_errors(what: str | Path, *, advice: str = "name another place") -> Iterator[None]:
    """Raise `Incompatible` where the disk refuses something in the block; on a full disk the advice is to make room."""
    try:
        yield
    except (OSError, SafetensorError) as cause:
        if isinstance(cause, SafetensorError) and _number(cause) is None:
            raise
        advice = "make room or name another disk" if _number(cause) in FULL else advice
        raise Incompatible(f"cannot write {what} ({_why(cause)}); {advice}") from cause


def _number(cause: OSError | SafetensorError) -> int | None:
    if isinstance(cause, OSError):
        return cause.errno
    found = re.search(r"os error (\d+)", str(cause))
    return int(found[1]) if found else None


def _why(cause: OSError | SafetensorError) -> str:
    text = (cause.strerror or str(cause)) if isinstance(cause, OSError) else str(cause).split("I/O error: ")[-1]
    return text.splitlines()[0] if text else type(cause).__name__


def _replace(path: Path, staging: Path) -> None:
    if _is_another_process():
        return
    # the two renames leave, at any moment, either the old or the new folder whole under one of the names
    retired = staging.with_name(staging.name + ".old")
    if path.exists():
        path.rename(retired)
    try:
        staging.rename(path)
    except BaseException:
        if retired.exists():
            retired.rename(path)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _is_another_process() -> bool:
    # of the processes of one launch the first one writes, since all have the same results
    return dist.is_available() and dist.is_initialized() and dist.get_rank() > 0


def _open_to_others(folder: Path) -> None:
    # temporary folders and safetensors' files are their owner's alone, which would hide results from a group
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def check_writable(path: str | Path, kind: str) -> None:
    """Refuse a `path` that is a file, a folder holding anything but a trimtab result of this kind, or unwritable."""
    path = Path(path)
    # no right to look, a name that is too long, a broken disk
    with write_errors(f"{_a(kind)} to {path}", advice="name another folder"):
        if path.is_file():
            raise Incompatible(
                f"cannot write {_a(kind)} to {path}: it is a file; name a folder that does not exist yet"
            )
        _try_beside(path.resolve())
        if not path.is_dir() or not any(path.iterdir()):
            return
    held = kind_of(path)
    if held != kind:
        what = _a(held) if held else "something else"
        raise Incompatible(f"cannot write {_a(kind)} to {path}: the folder holds {what}; name another folder")


def require_free(path: str | Path, advice: str = "name another place, or say --overwrite to replace it") -> None:
    """Refuse a place where anything stands, but for an empty folder; for whoever would lose it by a second run."""
    path = Path(path)
    with write_errors(path):
        taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken:
        raise Incompatible(f"{path} holds a result already; {advice}")


def _try_beside(path: Path) -> None:
    # before hours of work, not after: a folder can be made where the result will be put together
    parent = next(p for p in path.parents if p.exists())
    Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent)).rmdir()


def save_result(path: str | Path, kind: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a result folder atomically; `record` must be plain values, `tensors` may live on any device.

    Without tensors the record stands alone, for `load_record`.
    """
    shapes = {name: list(t.shape) for name, t in tensors.items()}
    with written_folder(path, kind) as folder:
        write_json(folder / RECORD, {"kind": kind, "versions": versions(), **record, "tensors": shapes})
        if tensors:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / TENSORS)


def load_result(
    path: str | Path, kind: str, *, fields: Any = Any, names: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the record and tensors of a result folder.

    Args:
        fields: a `TypedDict` of what the record must hold (see `fields.fault`).
        names: tensors that must be there.

    Raises:
        Incompatible: the folder is absent, holds another kind of result, has missing or damaged files, or lacks a
            field or tensor, or has one of another type.
    """
    path, record = Path(path), load_record(path, kind, fields=fields)
    try:
        tensors = load_file(path / TENSORS)
    except (OSError, SafetensorError) as cause:
        raise Incompatible(f"the result at {path} ({kind}) has no readable {TENSORS}: write it again") from cause
    if record.pop("tensors", None) != {name: list(t.shape) for name, t in tensors.items()}:
        raise Incompatible(f"the {TENSORS} at {path} are not those that its {RECORD} lists: write it again")
    missing = set(names) - set(tensors)
    if missing:
        raise _unusable(path, kind, f"the tensor {min(missing)!r} is missing")
    return record, tensors


def load_record(path: str | Path, kind: str, *, fields: Any = Any) -> dict[str, Any]:
    """Return the record of a result folder, checked as `load_result` checks it.

    Raises:
        Incompatible: it cannot be read, is of another kind, has a key twice, or lacks a field or has one of another
            type.
    """
    path = Path(path)
    if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names that no disk can hold
        raise Incompatible(f"no {kind} at {path}: expected a folder written by trimtab")
    try:
        record = json_value((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        why = f" ({cause})" if isinstance(cause, ValueError) else ""
        raise Incompatible(f"expected {_a(kind)} at {path}, found no readable {RECORD}{why}") from cause
    held = _kind(record)
    if held != kind:
        raise Incompatible(f"expected {_a(kind)} at {path}, found {_a(held) if held else f'no readable {RECORD}'}")
    wrong = fault(record, fields)
    if wrong is not None:
        raise _unusable(path, kind, wrong)
    return record


def _unusable(path: Path, kind: str, wrong: str) -> Incompatible:
    return Incompatible(f"the {RECORD} of the {kind} at {path} cannot be used: {wrong}; write it again")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; raises `Incompatible` where the disk refuses it."""
    with written_file(path) as staging, staging.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, default=_plain)
        file.write("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, torch.dtype | Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _a(kind: str) -> str:
    return kind if kind.endswith("s") else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def kind_of(path: Path) -> str | None:
    """Return the kind of the result that a folder holds, or None if it holds none."""
    try:
        return _kind(json_value((path / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _kind(record: Any) -> str | None:
    kind = record.get("kind") if isinstance(record, dict) else None
    return kind if isinstance(kind, str) else None
