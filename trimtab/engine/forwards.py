"""run_tree: many token sequences under one or many edits, every shared beginning computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.engine.batching import Batching, Budget, Group, Limits, Mode, attempted, merged_paths
from trimtab.engine.sharing import TRIED, chosen_mode
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.engine.tree_forward import Past, TreeForward
from trimtab.models.anatomy import base_of
from trimtab.models.calling import differentiable, entering, inference
from trimtab.models.tokens import require_known
from trimtab.progress import progress
from trimtab.protocols import Edit, TokenMask


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

    def kept(self, logits: Float[Tensor, "batch seq vocab"]) -> Float[Tensor, "place vocab"]:
        """Return the logits of the last `keep` places, one place after the other."""
        return logits[:, -self.keep :].flatten(0, 1)

    @property
    def kept_places(self) -> Int[Tensor, " wanted"]:
        """The wanted places' rows in `kept`; on the CPU."""
        batch, place = self.flat // self.shape[1], self.flat % self.shape[1]
        return batch * self.keep + place - (self.shape[1] - self.keep)


Read: TypeAlias = Callable[[int, Step, Callable[[], Any]], None]
"""Gets the edit's index, the step, and the function that runs the forward and returns its output."""
Enter: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Puts an edit in place and gives the model to call."""


@dataclass
class Computed:
    """What a run took."""

    tokens: int = 0
    """Tokens computed, without padding."""
    forwards: int = 0
    mode: Mode = "plain"
    notes: list[str] = field(default_factory=list)
    """Why prefixes were not shared, if they were not."""


def run_tree(
    model: Any,
    tree: TokenTree,
    read: Read,
    *,
    edits: Sequence[Edit | None] = (None,),
    budget: Budget | None = None,
    logits: bool = True,
    task: str = "computing",
) -> Computed:
    """Run the tree's rows under every edit (None: none), handing each forward to `read`, and return what it took.

    What all rows begin with is computed once, a prompt once for all its rows and, where edits leave the prompt
    unedited, once for all edits. An edit acts from each row's split on. Whether sharing gives the model's plain
    results is tried out first on a few short sequences; where it does not, a slower way is taken, and `notes` says so
    (also as a warning).

    Args:
        logits: whether the wanted places' logits are needed; if not, the model's head runs on one place only.

    Raises:
        BadValue: a token that the model does not know.
    """
    require_known(model, int(tree.tokens.max(initial=0)))
    limits, computed = Limits.of(model, budget or Budget()), Computed()

    def run(model: Any, entries: Mapping[int, Enter], mask: TokenMask) -> None:
        computed.mode, note = chosen_mode(model, tree, len(entries), partial(trial_logits, model, tree.pad, mask))
        if note is not None:
            computed.notes.append(note)
        _Run(model, TreeForward(model, tree, computed.mode, mask), limits, read, computed, logits).run(entries, task)

    together = [i for i, edit in enumerate(edits) if edit is None or edit.leaves_prompt_unedited]
    if together:
        mask = TokenMask()
        run(model, {i: partial(entering(edits[i], model), mask) for i in together}, mask)
    for i in sorted(set(range(len(edits))) - set(together)):
        mask = TokenMask()
        with entering(edits[i], model)(mask) as edited:
            run(edited, {i: partial(contextlib.nullcontext, edited)}, mask)
    return computed


def run_differentiable(
    model: Any,
    tree: TokenTree,
    read: Read,
    enter: Callable[[TokenMask], AbstractContextManager[Any]],
    *,
    budget: Budget | None = None,
    task: str = "computing",
) -> Computed:
    """Run the tree's rows, each in a row of its own, with gradients behind each one's split.

    What stands before a split is computed first, without gradients, and once for all rows that begin with it, where
    that gives the model's plain results, as in `run_tree`.

    Args:
        enter: puts in place what acts on the rows from their splits on, given the mask that says where these are.
    """
    require_known(model, int(tree.tokens.max(initial=0)))
    limits, computed, mask = Limits.of(model, budget or Budget()), Computed(), TokenMask()
    tried = partial(trial_logits, model, tree.pad, mask)
    computed.mode, _ = chosen_mode(model, tree, 1, tried, among=("padded",))
    forward = TreeForward(model, tree, computed.mode, mask)
    run = _Run(model, forward, limits, read, computed, calling=differentiable)
    run.run({0: partial(enter, mask)}, task)
    return computed


@torch.inference_mode()
def trial_logits(model: Any, pad: int, mask: TokenMask, mode: Mode, max_rows: int) -> Float[Tensor, "place vocab"]:
    """Return the wanted logits of a few short sequences in this mode, at most so many of them in one forward."""
    found: dict[int, Tensor] = {}

    def read(index: int, step: Step, forward: Callable[[], Any]) -> None:  # noqa: ARG001
        values = step.kept(forward().logits)[step.kept_places].double().cpu()
        found.update(zip(step.rows, values.split(step.counts), strict=True))

    n_known = base_of(model).get_input_embeddings().weight.shape[0]
    rows = [TreeRow([t % n_known for t in row.ids], row.split, row.wanted) for row in TRIED]
    forward = TreeForward(model, TokenTree.of(rows, pad), mode, mask)
    limits = Limits.of(model, Budget(rows=max_rows))
    _Run(model, forward, limits, read, Computed()).run({0: partial(contextlib.nullcontext, model)}, "")
    return torch.cat([found[i] for i in range(len(rows))])


class _Run:
    """One way through the tree, in one mode, under edits that share their prompts' caches."""

    def __init__(
        self,
        model: Any,
        forward: TreeForward,
        limits: Limits,
        read: Read,
        computed: Computed,
        logits: bool = True,
        calling: Callable[[Any], AbstractContextManager[None]] = inference,
    ) -> None:
        self.model, self.forward, self.read, self.computed, self.logits = model, forward, read, computed, logits
        self.calling = calling
        self.tree, self.mode, self.limits = forward.tree, forward.mode, limits
        self.batching = Batching(self.tree, self.mode, limits)
        self.root: Past | None = None
        self.done: set[tuple[int, int]] = set()

    def run(self, entries: Mapping[int, Enter], task: str) -> None:
        """Run all rows under every entry; the prompts' caches that are held serve all of them before the next."""
        left = set(range(len(self.tree.rows)))
        groups = self.batching.groups(left)
        with progress(task, len(left)) as advance:
            while groups:
                together = self.batching.cached_together(groups)
                if attempted(partial(self._compute, together, entries), self.limits.shrunk):
                    del groups[: len(together)]
                    left -= {row for group in together for row in group}
                    advance(sum(map(len, together)))
                else:
                    done = {row for row in left if all((index, row) in self.done for index in entries)}
                    left -= done
                    advance(len(done))
                    groups = self.batching.groups(left)

    def _compute(self, groups: list[Group], entries: Mapping[int, Enter]) -> None:
        prompts_first = self.mode == "padded" or (self.mode == "packed" and len(entries) > 1)
        with inference(self.model):
            if self.batching.n_root and self.root is None:
                self.root = self._prompts([np.arange(self.batching.n_root)], None)
            batches = [
                (batch, self._past(batch) if prompts_first else self.root) for batch in self.batching.batches(groups)
            ]
        for index, enter in entries.items():
            todo = [b for b in batches if any((index, row) not in self.done for group in b[0] for row in group)]
            if not todo:
                continue
            with enter() as edited, self.calling(edited):
                for batch, past in todo:
                    nodes = self._nodes(batch, without_prompts=prompts_first)
                    step = self._step(batch, nodes)
                    self._count(nodes)
                    self.read(index, step, partial(self._output, edited, nodes, past, step.keep))
                    self.done |= {(index, row) for row in step.rows}

    def _output(self, model: Any, nodes: Int[np.ndarray, "batch seq"], past: Past | None, keep: int) -> Any:
        return self.forward(model, nodes, past, keep=keep)[0]

    def _past(self, batch: list[Group]) -> Past | None:
        """Return the computed prompts of a batch."""
        prompts = [nodes[~self.tree.own[nodes]] for nodes in map(self.batching.nodes, batch)]
        if self.mode == "packed":
            return self._prompts(prompts, self.root)
        unique = {tuple(nodes.tolist()): nodes for nodes in prompts}
        places = {key: i for i, key in enumerate(unique)}
        past = self._prompts(list(unique.values()), self.root)
        if past is None:
            return None
        index = torch.tensor([places[tuple(nodes.tolist())] for nodes in prompts], device=self.forward.device)
        return past.expanded(len(unique)).gathered(index)

    def _prompts(self, prompts: Sequence[np.ndarray], past: Past | None) -> Past | None:
        if not max(map(len, prompts)):
            return past
        nodes = self.forward.padded(prompts)
        self._count(nodes)
        return self.forward(self.model, nodes, past, keep=1, remember=True)[1]

    def _count(self, nodes: Int[np.ndarray, "batch seq"]) -> None:
        self.computed.forwards += 1
        self.computed.tokens += int((nodes >= 0).sum())

    def _nodes(self, batch: list[Group], *, without_prompts: bool) -> Int[np.ndarray, "batch seq"]:
        chosen = list(map(self.batching.nodes, batch))
        if without_prompts:
            chosen = [nodes[self.tree.own[nodes]] for nodes in chosen]
        if self.mode == "packed":  # wanted places last, so that logits are computed for few others
            wanted = [merged_paths([self.tree.wanted(row) for row in group]) for group in batch]
            chosen = [np.concatenate([np.setdiff1d(n, w), w]) for n, w in zip(chosen, wanted, strict=True)]
        return self.forward.padded(chosen)

    def _step(self, batch: Sequence[Group], nodes: Int[np.ndarray, "batch seq"]) -> Step:
        length, flat, counts = nodes.shape[1], [], []
        for place, (group, held) in enumerate(zip(batch, nodes, strict=True)):
            order = np.argsort(held)
            for row in group:
                wanted = self.tree.wanted(row)
                flat.append(place * length + order[np.searchsorted(held, wanted, sorter=order)])
                counts.append(len(wanted))
        where = np.concatenate(flat)
        keep = length - int((where % length).min()) if self.logits else 1
        rows = tuple(row for group in batch for row in group)
        return Step(rows, (len(batch), length), keep, torch.from_numpy(where), tuple(counts))
