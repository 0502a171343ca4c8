"""One way through a tree of token sequences: groups of rows, batches of groups, and what to do when memory ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from trimtab.engine.past import Mode, Past, TreeForward, sent
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.models.anatomy import base_of
from trimtab.models.calling import inference
from trimtab.progress import progress
from trimtab.protocols import TokenMask

SMALLEST_BUDGET = 64
LARGE, LENGTH = 1 / 4, 0.9
"""A batch that fills this share of the budget is computed as fast as a larger one: groups shorter than this share of
its longest begin another, which is padded less."""


@dataclass(frozen=True)
class Step:
    """One forward that is about to run: which rows' wanted outputs come out of it, and where."""

    rows: tuple[int, ...]
    """Indices into the rows that were given."""
    shape: tuple[int, int]
    """Batch and sequence length of the forward."""
    keep: int
    """How many of the last places have logits."""
    flat: Int[Tensor, " wanted"]
    """The wanted places (batch * length + place) of all rows, one row after the other; on the CPU."""
    counts: tuple[int, ...]
    """How many of them each row has."""


Read: TypeAlias = Callable[[int, Step, Callable[[], Any]], None]
"""Gets the edit's index, the step, and the function that runs the forward and returns its output."""


@dataclass
class Computed:
    """What a pass took."""

    tokens: int = 0
    """Tokens computed, without padding."""
    forwards: int = 0
    mode: Mode = "plain"
    notes: list[str] = field(default_factory=list)


Enter: TypeAlias = Callable[[], AbstractContextManager[Any]]


@dataclass
class Limits:
    """What one forward, and one pass, may hold at once."""

    budget: int
    """Tokens in one forward, cached ones included."""
    row_length: int
    """A packed row grows up to this length: attention within it is dense, so longer rows cost more than they save."""
    max_rows: int
    shelf: int
    """How many tokens of prompts' caches may be held at once."""
    logits: bool = True

    """Whether the wanted places' logits are needed."""

    @classmethod
    def of(cls, model: Any, token_budget: int | None, max_rows: int | None, logits: bool = True) -> Limits:
        """Return the limits to start with; they shrink when memory runs out."""
        on_gpu = base_of(model).device.type == "cuda"
        budget = token_budget or (16384 if on_gpu else 2048)
        return cls(budget, 512 if on_gpu else 256, max_rows or 1 << 30, 8 * budget, logits)

    def shrink(self) -> None:
        """Halve what is held at once."""
        self.budget, self.shelf = self.budget // 2, self.shelf // 2
        self.row_length = min(self.row_length, self.budget)


class Pass:
    """One way through the tree, in one mode, under edits that share their prompts' caches."""

    def __init__(
        self,
        model: Any,
        tree: TokenTree,
        rows: Sequence[TreeRow],
        mode: Mode,
        pad: int,
        limits: Limits,
        mask: TokenMask,
        computed: Computed,
        read: Read,
    ) -> None:
        self.model, self.tree, self.rows, self.mode = model, tree, rows, mode
        self.limits, self.mask, self.computed, self.read = limits, mask, computed, read
        self.forward = TreeForward(model, tree, mode, pad)
        self.n_root = 0 if mode == "plain" else tree.n_root
        self.root: Past | None = None
        self.done: set[tuple[int, int]] = set()

    def run(self, entries: Mapping[int, Enter], task: str) -> None:
        """Run all rows under every entry; a shelf of prompts' caches serves all entries before the next is filled."""
        two_steps = self.mode == "padded" or (self.mode == "packed" and len(entries) > 1)
        pending = self._groups(self.tree.units)
        with progress(task, len(self.rows)) as advance:
            while pending:
                shelf = self._shelf(pending)
                if self._fits(shelf, entries, two_steps):
                    del pending[: len(shelf)]
                    advance(sum(map(len, shelf)))
                else:
                    left = {row for group in pending for row in group}
                    pending = self._groups([tuple(i for i in unit if i in left) for unit in self.tree.units])

    def _fits(self, shelf: list[tuple[int, ...]], entries: Mapping[int, Enter], two_steps: bool) -> bool:
        """Compute the shelf; halve the budget and return False if memory runs out."""
        try:
            self._compute(shelf, entries, two_steps)
            return True
        except torch.OutOfMemoryError:
            if self.limits.budget <= SMALLEST_BUDGET:
                raise
        # outside of the except block, whose traceback would keep the tensors alive
        torch.cuda.empty_cache()
        self.limits.shrink()
        return False

    def _groups(self, units: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the rows that go together: units that fill a packed row, or one row at a time."""
        if self.mode == "plain":
            return [(i,) for i in sorted((i for u in units for i in u), key=lambda i: -len(self.tree.paths[i]))]
        if self.mode == "padded":
            return [(i,) for unit in units for i in unit]
        groups: list[tuple[int, ...]] = []
        size = 0
        for unit in (part for whole in units if whole for part in self._parts(whole)):
            new = len(self._nodes(unit))
            fits = groups and size + new <= self.limits.row_length
            if fits and len(groups[-1]) + len(unit) <= self.limits.max_rows:
                groups[-1], size = (*groups[-1], *unit), size + new
            else:
                groups.append(unit)
                size = new
        return sorted(groups, key=lambda group: -len(self._nodes(group)))

    def _parts(self, unit: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Yield a unit whole, or in parts where it has very many rows."""
        limit = max(self.limits.row_length, self.rows[unit[0]].split - self.n_root)
        part: tuple[int, ...] = ()
        size = 0
        for row in unit:
            own = len(self.rows[row].ids) - self.rows[row].split
            if part and (size + own > limit or len(part) == self.limits.max_rows):
                yield part
                part, size = (), 0
            part, size = (*part, row), size + own
        yield part

    def _nodes(self, group: Sequence[int]) -> Int[np.ndarray, " node"]:
        return _united([self.tree.paths[i][self.n_root :] for i in group])

    def _shelf(self, pending: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        size, shelf = 0, []
        for group in pending:
            size += self.n_root + len(self._nodes(group))
            if shelf and size > self.limits.shelf:
                break
            shelf.append(group)
        return shelf

    def _compute(self, shelf: list[tuple[int, ...]], entries: Mapping[int, Enter], two_steps: bool) -> None:
        batches = []
        with inference(self.model):
            if self.n_root and self.root is None:
                self.root = self._prompts([np.arange(self.n_root)], None)
            for batch in self._batches(shelf):
                batches.append((batch, *self._past(batch, two_steps)))
        for index, enter in entries.items():
            todo = [b for b in batches if any((index, row) not in self.done for group in b[0] for row in group)]
            if not todo:
                continue
            with enter() as edited, inference(edited):
                for batch, known, past in todo:
                    self._answers(edited, index, batch, known, past)

    def _batches(self, shelf: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Yield the groups that go into one forward each: as many as may, unless shorter ones would be padded much."""
        batch: list[tuple[int, ...]] = []
        width = n_rows = 0
        for group in shelf:
            own = self.n_root + len(self._nodes(group))
            wider = max(width, own)
            full = (len(batch) + 1) * wider > self.limits.budget or n_rows + len(group) > self.limits.max_rows
            large = len(batch) * width >= self.limits.budget * LARGE
            if batch and (full or (large and own < LENGTH * width)):
                yield batch
                batch, wider, n_rows = [], own, 0
            batch.append(group)
            width, n_rows = wider, n_rows + len(group)
        if batch:
            yield batch

    def _past(self, batch: list[tuple[int, ...]], two_steps: bool) -> tuple[bool, Past | None]:
        """Return whether the prompts are in the past, and the past."""
        if not two_steps:
            return False, self.root
        prompts = [self._nodes(group) for group in batch]
        prompts = [nodes[~self.tree.own[nodes]] for nodes in prompts]
        if self.mode == "packed":
            return True, self._prompts(prompts, self.root)
        unique = {tuple(nodes.tolist()): nodes for nodes in prompts}
        places = {key: i for i, key in enumerate(unique)}
        past = self._prompts(list(unique.values()), self.root)
        if past is None:
            return True, None
        index = torch.tensor([places[tuple(nodes.tolist())] for nodes in prompts], device=self.forward.device)
        return True, past.expanded(len(unique)).gathered(index)

    def _prompts(self, prompts: Sequence[np.ndarray], past: Past | None) -> Past | None:
        if not max(map(len, prompts)):
            return past
        nodes = self.forward.placed(prompts)
        self._count(nodes, np.zeros_like(nodes, dtype=bool))
        return self.forward(self.model, sent(nodes, self.forward.device), past, keep=1, remember=True)[1]

    def _answers(self, model: Any, index: int, batch: list[tuple[int, ...]], known: bool, past: Past | None) -> None:
        chosen = [self._nodes(group) for group in batch]
        if known:
            chosen = [nodes[self.tree.own[nodes]] for nodes in chosen]
        wanted = [_united([self._wanted(i) for i in group]) for group in batch]
        if self.mode == "packed":  # wanted places last, so that logits are computed for few others
            chosen = [np.concatenate([np.setdiff1d(n, w), w]) for n, w in zip(chosen, wanted, strict=True)]
        nodes = self.forward.placed(chosen)
        step = self._step(batch, nodes)
        self._count(nodes, self.tree.own[nodes] & (nodes >= 0))
        placed = sent(nodes, self.forward.device)
        self.read(index, step, lambda: self.forward(model, placed, past, keep=step.keep)[0])
        self.done |= {(index, row) for row in step.rows}

    def _count(self, nodes: Int[np.ndarray, "batch seq"], acts: Bool[np.ndarray, "batch seq"]) -> None:
        self.mask.value = sent(acts, self.forward.device)
        self.computed.forwards += 1
        self.computed.tokens += int((nodes >= 0).sum())

    def _wanted(self, row: int) -> Int[np.ndarray, " wanted"]:
        return self.tree.paths[row][self.rows[row].wanted :]

    def _step(self, batch: Sequence[tuple[int, ...]], nodes: Int[np.ndarray, "batch seq"]) -> Step:
        length, flat, counts = nodes.shape[1], [], []
        for place, (group, held) in enumerate(zip(batch, nodes, strict=True)):
            order = np.argsort(held)
            for row in group:
                wanted = self._wanted(row)
                flat.append(place * length + order[np.searchsorted(held, wanted, sorter=order)])
                counts.append(len(wanted))
        where = np.concatenate(flat)
        keep = length - int((where % length).min()) if self.limits.logits else 1
        rows = tuple(row for group in batch for row in group)
        return Step(rows, (len(batch), length), keep, torch.from_numpy(where), tuple(counts))


def _united(paths: Sequence[np.ndarray]) -> Int[np.ndarray, " node"]:
    """Return the nodes of paths, each once and in order, as they stand in every single path."""
    return paths[0] if len(paths) == 1 else np.unique(np.concatenate(paths))


def kept_logits(logits: Tensor, step: Step) -> Tensor:
    """Return the logits of the step's last `keep` places, one place after the other."""
    return logits[:, -step.keep :].flatten(0, 1)


def kept_places(step: Step) -> Int[Tensor, " wanted"]:
    """Return the wanted places' rows in `kept_logits`; on the CPU."""
    batch, place = step.flat // step.shape[1], step.flat % step.shape[1]
    return batch * step.keep + place - (step.shape[1] - step.keep)
