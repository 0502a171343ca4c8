"""One result, one folder: tensors in `tensors.safetensors`, everything else in `record.json`, written atomically."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab.errors import Incompatible

RECORD, TENSORS = "record.json", "tensors.safetensors"


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {}
    for name in ("trimtab", "torch", "transformers", "scikit-learn", "numpy", "bitsandbytes", "peft"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def written_folder(path: str | Path, kind: str) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends, and vanishes if it fails.

    Raises:
        Incompatible: `path` exists and does not hold an earlier result of the same kind.
    """
    path = Path(path)
    check_writable(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield staging
        # the two renames leave, at any moment, either the old or the new folder whole under one of the names
        retired = staging.with_name(staging.name + ".old")
        if path.exists():
            path.rename(retired)
        staging.rename(path)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_writable(path: str | Path, kind: str) -> None:
    """Refuse a `path` that is a file, or a folder holding anything but a trimtab result of this kind."""
    path = Path(path)
    if path.is_file():
        raise Incompatible(f"cannot write a {kind} to {path}: it is a file; name a folder that does not exist yet")
    if not path.is_dir() or not any(path.iterdir()):
        return
    held = _kind_of(path)
    if held != kind:
        what = f"a {held}" if held else "something else"
        raise Incompatible(f"cannot write a {kind} to {path}: the folder holds {what}; name another folder")


def save_result(path: str | Path, kind: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a result folder atomically; `record` must be plain values, `tensors` may live on any device."""
    with written_folder(path, kind) as folder:
        write_json(folder / RECORD, {"kind": kind, "versions": versions(), **record})
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / TENSORS)


def load_result(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the record and tensors of a result folder.

    Raises:
        Incompatible: the folder is absent, holds another kind of result, or has missing or damaged files.
    """
    path = Path(path)
    if not path.is_dir():
        raise Incompatible(f"no {kind} at {path}: expected a folder written by trimtab")
    held = _kind_of(path)
    if held != kind:
        what = f"a {held}" if held else f"no readable {RECORD}"
        raise Incompatible(f"expected a {kind} at {path}, found {what}")
    try:
        tensors = load_file(path / TENSORS)
    except (OSError, SafetensorError) as cause:
        raise Incompatible(f"the {kind} at {path} has no readable {TENSORS}: write it again") from cause
    return json.loads((path / RECORD).read_text(encoding="utf-8")), tensors


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically (a temporary file, then a rename)."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, default=_plain)
        file.write("\n")
    os.chmod(name, 0o644)  # noqa: PTH101 - mkstemp's 0600 would hide results from a group
    Path(name).replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, torch.dtype | Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _kind_of(path: Path) -> str | None:
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record.get("kind") if isinstance(record, dict) else None
