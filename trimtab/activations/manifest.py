"""The manifest of an activation store: what its shards are, tied to them by a hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from trimtab.errors import Incompatible
from trimtab.storage import RECORD

KIND = "activation store"


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Return a store's manifest; raises `Incompatible` if there is none or it is not as it was written."""
    file = Path(path) / RECORD
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise Incompatible(f"no activation store at {path}: it has no readable {RECORD}") from cause
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise Incompatible(f"expected an activation store at {path}, found something else")
    described = {key: manifest.get(key) for key in ("record", "layout", "labels", "groups")}
    if manifest.get("digest") != digest_of(described):
        raise Incompatible(
            f"{file} was changed after it was written, so its shards may not be what it says; "
            "restore it, or capture into another folder"
        )
    return manifest


def digest_of(described: Mapping[str, Any]) -> str:
    """Return the hash that ties shards to what the manifest says."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def require_same(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `Incompatible`, naming what differs, if a store holds other activations than those wanted."""
    pairs = [(key, held["record"].get(key), value) for key, value in wanted["record"].items()]
    pairs += [(key, held[key], wanted[key]) for key in ("layout", "labels", "groups")]
    differing = [key for key, there, here in pairs if there != here]
    if differing:
        raise Incompatible(
            f"the activation store at {path} differs in {' and '.join(differing)} from what is asked for; "
            "name another folder, or capture with the settings it was begun with"
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a full disk or a folder that cannot be written raises into `Incompatible`."""
    try:
        yield
    except (OSError, SafetensorError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        advice = "make room and capture again into the same folder"
        if isinstance(cause, FileNotFoundError):  # a run that begins sweeps what looks left behind
            advice = "another run writes there too: let it end and capture again into the same folder"
        raise Incompatible(
            f"cannot write activations to {path} ({reason}); {advice}: the shards that are there stay"
        ) from cause
