"""ActivationStore: head activations on disk in shards, memory-mapped and read one layer at a time."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trimtab.activations.captured import HeadActivations, HeadExamples, held_out, require_both_labels, require_head
from trimtab.activations.manifest import KIND, digest_of, read_manifest, require_same, writing
from trimtab.errors import Incompatible, ShapeError
from trimtab.storage import RECORD, check_writable, versions, write_json

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class ActivationStore:
    """Activations of every head, on disk; what is asked for is read, one layer at a time.

    The folder holds `record.json` (the manifest) and `shard-*.safetensors`, each the tensors `layer.<n>`
    (`example head d_head`) of some consecutive examples. A shard is written whole or not at all, so whatever stops a
    run, the shards that are there are good. Stands wherever `HeadActivations` are fitted on.
    """

    path: Path
    labels: Bool[Tensor, " example"] = field(repr=False)
    """True for true (or positive) statements."""
    groups: tuple[str, ...] = field(repr=False)
    """The question of each example."""
    layers: tuple[int, ...]
    """The decoder layers that were captured."""
    record: dict[str, Any] = field(repr=False)
    """Model fingerprint, position, site and a hash of the statements."""
    manifest: dict[str, Any] = field(repr=False)
    rows: tuple[int, ...] | None = field(default=None, repr=False)
    """The examples of a selection, as places in the whole store; None for all."""

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Return the complete store at `path`.

        Raises:
            Incompatible: there is none, its manifest was edited, or shards are missing, damaged or from elsewhere.
        """
        store = cls._described(Path(path), read_manifest(path))
        missing = store.missing()
        if missing:
            n = store.n_shards
            raise Incompatible(
                f"the activation store at {path} lacks {len(missing)} of its {n} shards; capture with the same "
                "settings into the same folder, which makes only those"
            )
        return store

    @classmethod
    def created(
        cls,
        path: str | Path,
        *,
        record: Mapping[str, Any],
        layout: Mapping[str, Any],
        labels: Sequence[bool],
        groups: Sequence[str],
    ) -> ActivationStore:
        """Return the store at `path`, made if it is not there, so that the shards it lacks can be written.

        Args:
            record: what the activations are of; another record in the folder is refused.
            layout: `layers`, `n_heads`, `d_head`, `dtype` and `per_shard`, the examples of a shard. A store that is
                there keeps its own `per_shard`.

        Raises:
            Incompatible: the folder holds something else, or activations of something else.
        """
        path = Path(path)
        wanted = {"record": dict(record), "layout": dict(layout), "labels": list(labels), "groups": list(groups)}
        wanted = json.loads(json.dumps(wanted))
        check_writable(path, KIND)
        if (path / RECORD).is_file():
            held = read_manifest(path)
            wanted["layout"]["per_shard"] = held["layout"]["per_shard"]
            require_same(path, held, wanted)
            return cls._described(path, held)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            manifest = {"kind": KIND, "digest": digest_of(wanted), **wanted, "versions": versions()}
            write_json(path / RECORD, manifest)
        return cls._described(path, manifest)

    @classmethod
    def _described(cls, path: Path, manifest: dict[str, Any]) -> ActivationStore:
        return cls(
            path,
            torch.tensor(manifest["labels"], dtype=torch.bool),
            tuple(manifest["groups"]),
            tuple(manifest["layout"]["layers"]),
            manifest["record"],
            manifest,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_heads(self) -> int:
        """Heads per layer."""
        return self.manifest["layout"]["n_heads"]

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.manifest["layout"]["d_head"]

    @property
    def n_shards(self) -> int:
        """Shards of the whole store."""
        return -(-len(self.manifest["labels"]) // self.manifest["layout"]["per_shard"])

    def examples_of(self, shard: int) -> range:
        """Return the places of a shard's examples in the whole store."""
        per_shard = self.manifest["layout"]["per_shard"]
        return range(shard * per_shard, min((shard + 1) * per_shard, len(self.manifest["labels"])))

    @property
    def geometry(self) -> tuple[int, int, int]:
        """Layers, heads per layer, width of a head."""
        return len(self.layers), self.n_heads, self.d_head

    def layer(self, layer: int) -> HeadActivations:
        """Return one layer's activations, read into memory; `values` is `example 1 head d_head`."""
        require_head(layer, 0, self.layers, self.n_heads)
        values = self._read(layer, slice(None))
        return HeadActivations(values[:, None], self.labels, self.groups, (layer,), self.record)

    def head(self, layer: int, head: int) -> HeadExamples:
        """Return `(X, y, groups)` of one head, as numpy arrays."""
        require_head(layer, head, self.layers, self.n_heads)
        x = self._read(layer, slice(head, head + 1))[:, 0]
        return HeadExamples(x.numpy(), self.labels.numpy(), np.asarray(self.groups))

    def _read(self, layer: int, heads: slice) -> Float[Tensor, "example head d_head"]:
        rows = torch.arange(len(self.manifest["labels"])) if self.rows is None else torch.tensor(self.rows)
        n_heads = len(range(self.n_heads)[heads])
        values = torch.empty(len(rows), n_heads, self.d_head, dtype=DTYPES[self.manifest["layout"]["dtype"]])
        for shard in range(self.n_shards):
            examples = self.examples_of(shard)
            here = ((rows >= examples.start) & (rows < examples.stop)).nonzero().flatten()
            if len(here):
                with self._opened(shard) as file:
                    values[here] = file.get_slice(f"layer.{layer}")[:, heads][rows[here] - examples.start]
        return values

    def by_layer(self) -> Iterator[HeadActivations]:
        """Yield the layers' activations one after another; memory holds one of them."""
        for layer in self.layers:
            yield self.layer(layer)

    def load(self) -> HeadActivations:
        """Return all layers' activations, read into memory."""
        values = torch.cat([part.values for part in self.by_layer()], dim=1)
        return HeadActivations(values, self.labels, self.groups, self.layers, self.record)

    def select(self, keep: Bool[Tensor, " example"]) -> ActivationStore:
        """Return the store's examples where `keep` is true; nothing is copied."""
        if len(keep) != len(self):
            raise ShapeError(f"the mask has {len(keep)} entries for {len(self)} examples; give one for each")
        kept = keep.nonzero().flatten().tolist()
        rows = tuple(kept) if self.rows is None else tuple(self.rows[i] for i in kept)
        return replace(self, labels=self.labels[keep], groups=tuple(self.groups[i] for i in kept), rows=rows)

    def split(self, *, test: float = 0.2, seed: int = 0) -> tuple[ActivationStore, ActivationStore]:
        """Return (rest, test) such that no question stands on both sides, as `HeadActivations.split` does."""
        mask = held_out(self.groups, test, seed)
        return self.select(~mask), self.select(mask)

    def require_both_labels(self) -> ActivationStore:
        """Return self; raises `BadDataset` if there are no examples or all carry the same label."""
        require_both_labels(self.labels)
        return self

    def require_finite(self) -> ActivationStore:
        """Return self: values were checked when they were captured."""
        return self

    # writing

    def missing(self) -> list[int]:
        """Return the shards that are not there or damaged; a shard of another store is refused."""
        return [shard for shard in range(self.n_shards) if not self._is_good(shard)]

    def write(self, shard: int, values: Float[Tensor, "example layer head d_head"]) -> None:
        """Write one shard, atomically.

        Raises:
            Incompatible: there is no room on the disk; the shards that are there stay.
        """
        expected = (len(self.examples_of(shard)), len(self.layers), self.n_heads, self.d_head)
        if tuple(values.shape) != expected:
            raise ShapeError(f"shard {shard} holds {expected} (example layer head d_head), got {tuple(values.shape)}")
        tensors = {f"layer.{layer}": values[:, i].contiguous() for i, layer in enumerate(self.layers)}
        with writing(self.path):
            handle, name = tempfile.mkstemp(prefix=".shard-", dir=self.path)
            os.close(handle)
            try:
                save_file(tensors, name, metadata={"store": self.manifest["digest"], "shard": str(shard)})
                os.chmod(name, 0o644)  # noqa: PTH101 - mkstemp's 0600 would hide results from a group
                Path(name).replace(self._file(shard))
            finally:
                Path(name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what killed runs left half-written; call it while nothing is being written."""
        for pattern in (".shard-*", ".tmp*"):  # ours, and what safetensors writes before it takes the file's name
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    def _file(self, shard: int) -> Path:
        return self.path / f"shard-{shard:05d}.safetensors"

    def _is_good(self, shard: int) -> bool:
        if not self._file(shard).is_file():
            return False
        try:
            with self._opened(shard):
                return True
        except _Damaged:
            return False

    @contextlib.contextmanager
    def _opened(self, shard: int) -> Iterator[Any]:
        path = self._file(shard)
        try:
            file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as cause:
            raise _Damaged(
                f"{path} is missing or damaged; capture with the same settings into the same folder, "
                "which makes only such shards anew"
            ) from cause
        with file:
            found = file.metadata() or {}
            if (found.get("store"), found.get("shard")) != (self.manifest["digest"], str(shard)):
                raise Incompatible(f"{path} belongs to another activation store or place; remove it and capture again")
            yield file


class _Damaged(Incompatible):
    """A shard that is not there or cut short, and can be made anew."""
