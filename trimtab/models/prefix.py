"""Run many token sequences under one or many edits, computing every shared prefix once."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trimtab.edits import Edit, NoEdit, TokenMask
from trimtab.errors import BadValue, TrimtabError
from trimtab.models.heads import base_of, inference
from trimtab.models.prefix_cache import Mode, Past, TreeForward, may_be_packed
from trimtab.models.token_tree import TokenTree, TreeRow
from trimtab.progress import progress

WORTHWHILE = 1.15
"""Below this saving in tokens, plain batches of similar length are as fast as anything."""
SMALLEST_BUDGET = 64


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
    """The wanted places (batch * length + place) of all rows, one row after the other."""
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


def run_rows(
    model: Any,
    rows: Sequence[TreeRow],
    read: Read,
    *,
    pad: int,
    edits: Sequence[Edit] | None = None,
    token_budget: int | None = None,
    max_rows: int | None = None,
    logits: bool = True,
    task: str = "computing",
) -> Computed:
    """Run all rows under every edit, handing each forward to `read`, and return what it took.

    Rows that begin alike share what they share: what all of them begin with is computed once, a prompt once for all
    its rows and, where edits leave the prompt unedited, once for all edits. An edit acts from each row's split on.
    Whether sharing gives the model's plain results is tried out first on a few short sequences; where it does not,
    a slower way is taken, and `notes` says so (also as a warning).

    Args:
        edits: the unedited model alone if not given.
        token_budget: how many tokens, cached ones included, one forward may hold; halved whenever memory runs out.
        max_rows: at most so many rows in one forward.
        logits: whether the wanted places' logits are needed; if not, the model's head runs on one place only.

    Raises:
        BadValue: a budget below 1.
    """
    for name, value in (("token_budget", token_budget), ("batch_size", max_rows)):
        if value is not None and value < 1:
            raise BadValue(f"{name} must be at least 1, got {value}")
    edits = (NoEdit(),) if edits is None else edits
    tree, computed = TokenTree.grown(rows), Computed()
    limits = _Limits.of(model, token_budget, max_rows, logits)
    shared = [i for i, edit in enumerate(edits) if edit.leaves_prompt_unedited]

    def one_pass(model: Any, entries: Mapping[int, Enter], mask: TokenMask) -> None:
        mode = _mode(model, tree, len(entries), pad, mask, computed)
        _Pass(model, tree, rows, mode, pad, limits, mask, computed, read).run(entries, task)

    if shared:
        mask = TokenMask()
        one_pass(model, {i: _entering(edits[i], model, mask) for i in shared}, mask)
    for i in sorted(set(range(len(edits))) - set(shared)):
        mask = TokenMask()
        with edits[i].applied(model, positions=mask) as edited:
            one_pass(edited, {i: lambda edited=edited: contextlib.nullcontext(edited)}, mask)
    return computed


Enter: TypeAlias = Callable[[], AbstractContextManager[Any]]


def _entering(edit: Edit, model: Any, mask: TokenMask) -> Enter:
    return lambda: edit.applied(model, positions=mask)


@dataclass
class _Limits:
    budget: int
    row_length: int
    """A packed row grows up to this length: attention within it is dense, so longer rows cost more than they save."""
    max_rows: int
    shelf: int
    """How many tokens of prompts' caches may be held at once."""
    logits: bool = True

    @classmethod
    def of(cls, model: Any, token_budget: int | None, max_rows: int | None, logits: bool = True) -> _Limits:
        on_gpu = base_of(model).device.type == "cuda"
        budget = token_budget or (16384 if on_gpu else 2048)
        return cls(budget, 512 if on_gpu else 256, max_rows or 1 << 30, 8 * budget, logits)

    def shrink(self) -> None:
        """Halve what is held at once."""
        self.budget, self.shelf = self.budget // 2, self.shelf // 2
        self.row_length = min(self.row_length, self.budget)


class _Pass:
    """One way through the tree, in one mode, under edits that share their prompts' caches."""

    def __init__(
        self,
        model: Any,
        tree: TokenTree,
        rows: Sequence[TreeRow],
        mode: Mode,
        pad: int,
        limits: _Limits,
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
        return np.unique(np.concatenate([self.tree.paths[i][self.n_root :] for i in group]))

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
        batch: list[tuple[int, ...]] = []
        width = n_rows = 0
        for group in shelf:
            wider = max(width, self.n_root + len(self._nodes(group)))
            full = (len(batch) + 1) * wider > self.limits.budget or n_rows + len(group) > self.limits.max_rows
            if batch and full:
                yield batch
                batch, wider, n_rows = [], self.n_root + len(self._nodes(group)), 0
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
        nodes = self._placed(prompts)
        self._count(nodes, torch.zeros_like(nodes, dtype=torch.bool))
        return self.forward(self.model, nodes, past, keep=1, remember=True)[1]

    def _answers(self, model: Any, index: int, batch: list[tuple[int, ...]], known: bool, past: Past | None) -> None:
        chosen = [self._nodes(group) for group in batch]
        if known:
            chosen = [nodes[self.tree.own[nodes]] for nodes in chosen]
        wanted = [np.unique(np.concatenate([self._wanted(i) for i in group])) for group in batch]
        if self.mode == "packed":  # wanted places last, so that logits are computed for few others
            chosen = [np.concatenate([np.setdiff1d(n, w), w]) for n, w in zip(chosen, wanted, strict=True)]
        nodes = self._placed(chosen)
        step = self._step(batch, nodes)
        own = torch.from_numpy(self.tree.own).to(nodes.device)[nodes.clamp(min=0)] & (nodes >= 0)
        self._count(nodes, own)
        self.read(index, step, lambda: self.forward(model, nodes, past, keep=step.keep)[0])
        self.done |= {(index, row) for row in step.rows}

    def _placed(self, rows: Sequence[np.ndarray]) -> Int[Tensor, "batch seq"]:
        side = "left" if self.mode == "packed" else "right"
        tensors = [torch.from_numpy(row) for row in rows]
        placed = pad_sequence(tensors, batch_first=True, padding_value=-1, padding_side=side)
        return placed.to(self.forward.device)

    def _count(self, nodes: Int[Tensor, "batch seq"], acts: Bool[Tensor, "batch seq"]) -> None:
        self.mask.value = acts
        self.computed.forwards += 1
        self.computed.tokens += int((nodes >= 0).sum())

    def _wanted(self, row: int) -> Int[np.ndarray, " wanted"]:
        return self.tree.paths[row][self.rows[row].wanted :]

    def _step(self, batch: Sequence[tuple[int, ...]], nodes: Int[Tensor, "batch seq"]) -> Step:
        length, flat, counts = nodes.shape[1], [], []
        for place, group in enumerate(batch):
            held = nodes[place].cpu().numpy()
            order = np.argsort(held)
            for row in group:
                wanted = self._wanted(row)
                flat.append(place * length + order[np.searchsorted(held, wanted, sorter=order)])
                counts.append(len(wanted))
        where = torch.from_numpy(np.concatenate(flat))
        keep = length - int((where % length).min()) if self.limits.logits else 1
        rows = tuple(row for group in batch for row in group)
        return Step(rows, (len(batch), length), keep, where.to(nodes.device), tuple(counts))


def _mode(model: Any, tree: TokenTree, n_edits: int, pad: int, mask: TokenMask, computed: Computed) -> Mode:
    """Return the fastest way that gives this model's plain results."""
    plain = n_edits * sum(map(len, tree.paths))
    n_own = int(tree.own.sum())
    if plain < WORTHWHILE * (len(tree.tokens) - n_own + n_edits * n_own):
        return "plain"
    failures = []
    for mode in MODES:
        failure = _failure(model, mode, pad, mask)
        if failure is None:
            computed.mode = mode
            return mode
        failures.append(failure)
    note = (
        f"{type(base_of(model)).__name__}: prefixes are not shared, every sequence is computed whole "
        f"({'; '.join(failures)})"
    )
    computed.notes.append(note)
    warnings.warn(note, stacklevel=2)
    return "plain"


MODES: tuple[Mode, ...] = ("packed", "padded")
TRIED = (
    TreeRow((9, 4, 11, 7, 5, 3, 8, 6, 10), 7, 7),
    TreeRow((9, 4, 11, 7, 5, 3, 8, 12, 4, 9), 7, 7),
    TreeRow((9, 4, 11, 7, 6, 3, 4, 10, 5), 6, 6),
)


def _failure(model: Any, mode: Mode, pad: int, mask: TokenMask) -> str | None:
    """Return why a mode does not give what plain forwards over single rows give, or None if it does."""
    if mode == "packed" and not may_be_packed(model):
        return "packed: layers of a kind that a mask over ancestors does not describe"
    expected = _tried(model, "plain", pad, mask, max_rows=1)
    try:
        found = _tried(model, mode, pad, mask, max_rows=3)
    except (torch.OutOfMemoryError, TrimtabError):
        raise
    except Exception as cause:  # other people's models raise what they like
        return f"{mode}: {type(cause).__name__}"
    far = float((found - expected).abs().max() / expected.std().clamp(min=1e-12))
    quantized = getattr(base_of(model).config, "quantization_config", None) is not None
    exact = base_of(model).dtype in (torch.float32, torch.float64) and not quantized
    return None if far <= (1e-3 if exact else 0.1) else f"{mode}: other results by {far:.2g} standard deviations"


@torch.inference_mode()
def _tried(model: Any, mode: Mode, pad: int, mask: TokenMask, max_rows: int) -> Tensor:
    found: dict[int, Tensor] = {}

    def read(index: int, step: Step, forward: Callable[[], Any]) -> None:  # noqa: ARG001
        values = kept_logits(forward().logits, step)[kept_places(step)].double().cpu()
        found.update(zip(step.rows, values.split(step.counts), strict=True))

    n_known = base_of(model).get_input_embeddings().weight.shape[0]
    rows = [TreeRow([t % n_known for t in row.ids], row.split, row.wanted) for row in TRIED]
    limits = _Limits.of(model, None, max_rows)
    enter = {0: lambda: contextlib.nullcontext(model)}
    _Pass(model, TokenTree.grown(rows), rows, mode, pad, limits, mask, Computed(), read).run(enter, "")
    return torch.cat([found[i] for i in range(len(rows))])


def kept_logits(logits: Tensor, step: Step) -> Tensor:
    """Return the logits of the step's last `keep` places, one place after the other."""
    return logits[:, -step.keep :].flatten(0, 1)


def kept_places(step: Step) -> Int[Tensor, " wanted"]:
    """Return the wanted places' rows in `kept_logits`."""
    batch, place = step.flat // step.shape[1], step.flat % step.shape[1]
    return batch * step.keep + place - (step.shape[1] - step.keep)
