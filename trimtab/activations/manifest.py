"""The manifest of an activation store: what its shards are, tied to them by a hash."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from trimtab.errors import Incompatible
from trimtab.fields import checked
from trimtab.plain_values import hash_of
from trimtab.storage import RECORD, load_record, versions, write_json

KIND = "activation store"


@dataclass(frozen=True)
class Layout:
    """The shape of what a store holds, and how it is cut into shards."""

    layers: tuple[int, ...]
    """The decoder layers that were captured."""
    n_heads: int
    d_head: int
    dtype: str
    """Such as `float32`."""
    per_shard: int
    """The examples of a shard."""


@dataclass(frozen=True)
class Manifest:
    """What a store holds."""

    record: dict[str, Any] = field(repr=False)
    """What the activations are of: model fingerprint, position, site and a hash of the statements."""
    layout: Layout
    labels: tuple[bool, ...] = field(repr=False)
    """True for true (or positive) statements."""
    groups: tuple[str, ...] = field(repr=False)
    """The question of each example."""

    @cached_property
    def digest(self) -> str:
        """The hash that ties shards to the manifest."""
        return hash_of(asdict(self))

    @property
    def n_shards(self) -> int:
        """Shards of the whole store."""
        return -(-len(self.labels) // self.layout.per_shard)

    def examples_of(self, shard: int) -> range:
        """Return the places of a shard's examples in the whole store."""
        start = shard * self.layout.per_shard
        return range(start, min(start + self.layout.per_shard, len(self.labels)))

    def write(self, path: Path) -> None:
        """Write the manifest into a folder."""
        write_json(path / RECORD, {"kind": KIND, "digest": self.digest, **asdict(self), "versions": versions()})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Return a store's manifest; raises `Incompatible` if there is none or it is not as it was written."""
        record = load_record(path, KIND, fields=cls)
        manifest = checked(record, cls)
        if record.get("digest") != manifest.digest:
            raise Incompatible(
                f"{path / RECORD} was changed after it was written, so its shards may not be what it says; "
                "restore it, or capture into another folder"
            )
        return manifest

    def require_same(self, wanted: Manifest, path: Path) -> None:
        """Raise `Incompatible`, naming what differs, if the store at `path` holds other activations than those wanted.

        A store that is there keeps its own `per_shard`.
        """
        wanted = checked(asdict(wanted), Manifest)  # as JSON gives it back
        wanted = replace(wanted, layout=replace(wanted.layout, per_shard=self.layout.per_shard))
        pairs = [(key, self.record.get(key), value) for key, value in wanted.record.items()]
        pairs += [(key, getattr(self, key), getattr(wanted, key)) for key in ("layout", "labels", "groups")]
        differing = [key for key, there, here in pairs if there != here]
        if differing:
            raise Incompatible(
                f"the activation store at {path} differs in {' and '.join(differing)} from what is asked for; "
                "name another folder, or capture with the settings it was begun with"
            )
