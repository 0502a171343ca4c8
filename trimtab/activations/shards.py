"""ActivationStore: head activations on disk in shards, memory-mapped and read one layer at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trimtab.activations.captured import HeadActivations
from trimtab.activations.labelled import LabelledActivations
from trimtab.activations.manifest import KIND, Manifest
from trimtab.errors import Incompatible, ShapeError
from trimtab.storage import RECORD, check_writable, write_errors, written_file

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class ActivationStore(LabelledActivations):
    """Activations of every head, on disk; what is asked for is read, one layer at a time.

    The folder holds `record.json` (the manifest) and `shard-*.safetensors`, each the tensors `layer.<n>`
    (`example head d_head`) of some consecutive examples. A shard is written whole or not at all, so whatever stops a
    run, the shards that are there are good. Stands wherever `HeadActivations` are fitted on.
    """

    path: Path
    manifest: Manifest
    """What the whole store holds."""
    labels: Bool[Tensor, " example"] = field(repr=False)
    """True for true (or positive) statements."""
    groups: tuple[str, ...] = field(repr=False)
    """The question of each example."""
    rows: Tensor | None = field(default=None, repr=False)
    """The examples of a selection, as places in the whole store; None for all."""

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Return the complete store at `path`.

        Raises:
            Incompatible: there is none, its manifest was edited, or shards are missing, damaged or from elsewhere.
        """
        path = Path(path)
        store = cls._of(path, Manifest.read(path))
        missing = store.missing()
        if missing:
            raise Incompatible(
                f"the activation store at {path} lacks {len(missing)} of its {store.manifest.n_shards} shards; capture "
                "with the same settings into the same folder, which makes only those"
            )
        return store

    @classmethod
    def created(cls, path: str | Path, wanted: Manifest) -> ActivationStore:
        """Return the store at `path`, made if it is not there, so that the shards it lacks can be written.

        A store that is there keeps its own `per_shard`.

        Raises:
            Incompatible: the folder holds something else, or activations of something else.
        """
        path = Path(path)
        check_writable(path, KIND)
        if not (path / RECORD).is_file():
            with write_errors(f"activations to {path}"):
                path.mkdir(parents=True, exist_ok=True)
                wanted.write(path)
        held = Manifest.read(path)
        held.require_same(wanted, path)
        return cls._of(path, held)

    @classmethod
    def _of(cls, path: Path, manifest: Manifest) -> ActivationStore:
        return cls(path, manifest, torch.tensor(manifest.labels, dtype=torch.bool), manifest.groups)

    @property
    def layers(self) -> tuple[int, ...]:
        """The decoder layers that were captured."""
        return self.manifest.layout.layers

    @property
    def record(self) -> dict[str, Any]:
        """Model fingerprint, position, site and a hash of the statements."""
        return self.manifest.record

    @property
    def n_heads(self) -> int:
        """Heads per layer."""
        return self.manifest.layout.n_heads

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.manifest.layout.d_head

    def values_of(self, layer: int, heads: slice = slice(None)) -> Float[Tensor, "example head d_head"]:
        """Return some heads' values in one layer, read into memory."""
        self._require(layer, heads.start or 0)
        rows = torch.arange(len(self.manifest.labels)) if self.rows is None else self.rows
        n_heads = len(range(self.n_heads)[heads])
        values = torch.empty(len(rows), n_heads, self.d_head, dtype=DTYPES[self.manifest.layout.dtype])
        for shard in range(self.manifest.n_shards):
            examples = self.manifest.examples_of(shard)
            here = ((rows >= examples.start) & (rows < examples.stop)).nonzero().flatten()
            if len(here):
                with self._opened(shard) as file:
                    values[here] = file.get_slice(f"layer.{layer}")[:, heads][rows[here] - examples.start]
        return values

    def layer(self, layer: int) -> HeadActivations:
        """Return one layer's activations, read into memory; `values` is `example 1 head d_head`."""
        return HeadActivations(self.values_of(layer)[:, None], self.labels, self.groups, (layer,), self.record)

    def by_layer(self) -> Iterator[HeadActivations]:
        """Yield the layers' activations one after another; memory holds one of them."""
        return map(self.layer, self.layers)

    def load(self) -> HeadActivations:
        """Return all layers' activations, read into memory."""
        values = torch.stack([self.values_of(layer) for layer in self.layers], dim=1)
        return HeadActivations(values, self.labels, self.groups, self.layers, self.record)

    def _where(self, keep: Bool[Tensor, " example"], groups: tuple[str, ...]) -> ActivationStore:
        kept = keep.nonzero().flatten()
        return replace(
            self, labels=self.labels[keep], groups=groups, rows=kept if self.rows is None else self.rows[kept]
        )

    def require_finite(self) -> ActivationStore:
        """Return self: values were checked when they were captured."""
        return self

    # writing

    def missing(self) -> list[int]:
        """Return the shards that are not there or damaged; a shard of another store is refused."""
        return [shard for shard in range(self.manifest.n_shards) if not self._is_good(shard)]

    def write(self, shard: int, values: Float[Tensor, "example layer head d_head"]) -> None:
        """Write one shard, atomically.

        Raises:
            Incompatible: the disk refuses it, or another run swept it away; the shards that are there stay.
        """
        expected = (len(self.manifest.examples_of(shard)), *self.geometry)
        if tuple(values.shape) != expected:
            raise ShapeError(f"shard {shard} holds {expected} (example layer head d_head), got {tuple(values.shape)}")
        tensors = {f"layer.{layer}": values[:, i].contiguous() for i, layer in enumerate(self.layers)}
        try:
            with written_file(self._file(shard)) as staging:
                save_file(tensors, staging, metadata={"store": self.manifest.digest, "shard": str(shard)})
        except Incompatible as cause:
            # a run that begins sweeps what looks left behind
            swept = isinstance(cause.__cause__, FileNotFoundError)
            advice = "another run writes there too: let it end" if swept else "make room"
            raise Incompatible(
                f"cannot write activations to {self.path} ({cause.__cause__}); {advice} and capture again into the "
                "same folder: the shards that are there stay"
            ) from cause

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
            if (found.get("store"), found.get("shard")) != (self.manifest.digest, str(shard)):
                raise Incompatible(f"{path} belongs to another activation store or place; remove it and capture again")
            yield file


class _Damaged(Incompatible):
    """A shard that is not there or cut short, and can be made anew."""
