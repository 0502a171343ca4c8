"""Token sequences as a tree, so that what they share is known and computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from trimtab.models.tokens import n_common


class TreeRow(NamedTuple):
    """A token sequence, where it parts from its prompt, and where its outputs begin to be wanted."""

    ids: Sequence[int]
    split: int
    """Tokens from here on are the row's own: they are shared with rows of the same prompt only, and edits act here."""
    wanted: int
    """The outputs from this position on are read; not before `split`."""


@dataclass(frozen=True)
class TokenTree:
    """The rows' tokens, each shared beginning once, numbered in depth-first order.

    Node j is an ancestor of node i, or i itself, exactly if `j <= i < end[j]`: this is the attention mask.
    """

    rows: tuple[TreeRow, ...]
    pad: int
    tokens: Int[np.ndarray, " node"]
    depth: Int[np.ndarray, " node"]
    """A node's position in its row, from 0."""
    end: Int[np.ndarray, " node"]
    """One past a node's last descendant."""
    own: Bool[np.ndarray, " node"]
    """Whether the node stands behind its row's split."""
    paths: tuple[Int[np.ndarray, " _"], ...]
    """Each row's nodes, in the order of the rows."""
    units: tuple[tuple[int, ...], ...]
    """Rows that have the same prompt, in depth-first order."""
    n_root: int
    """How many of the first nodes every row's prompt starts with."""

    @classmethod
    def of(cls, rows: Sequence[TreeRow], pad: int = 0) -> TokenTree:
        """Return the tree of the rows; `pad` is the token that stands where a batch has no other."""
        prompts: dict[tuple[int, ...], tuple[int, ...]] = {}
        parts = []
        for row in rows:
            prompt = tuple(row.ids[: row.split])
            # one object for each prompt: rows that share it are then compared without a look inside
            parts.append((prompts.setdefault(prompt, prompt), tuple(row.ids[row.split :])))
        order = sorted(range(len(rows)), key=parts.__getitem__)
        nodes = _Nodes(sum(len(row.ids) for row in rows))
        paths: dict[int, Int[np.ndarray, " _"]] = {}
        units: list[list[int]] = []
        for row in order:
            if not nodes.row or nodes.row[0] != parts[row][0]:
                units.append([])
            units[-1].append(row)
            paths[row] = nodes.add(*parts[row])
        nodes.leave(0)
        first, last = (parts[order[i]][0] for i in (0, -1)) if order else ((), ())
        return cls(
            rows=tuple(rows),
            pad=pad,
            tokens=nodes.tokens[: nodes.n],
            depth=nodes.depth[: nodes.n],
            end=nodes.end[: nodes.n],
            own=nodes.own[: nodes.n],
            paths=tuple(paths[i] for i in range(len(rows))),
            units=tuple(map(tuple, units)),
            n_root=n_common(first, last),
        )

    def wanted(self, row: int) -> Int[np.ndarray, " wanted"]:
        """Return the nodes of a row whose outputs are read."""
        return self.paths[row][self.rows[row].wanted :]


class _Nodes:
    """The nodes of rows that are added in order, and the path to the last one."""

    def __init__(self, most: int) -> None:
        self.n = 0
        self.tokens, self.depth, self.end = (np.empty(most, dtype=np.int64) for _ in range(3))
        self.own = np.empty(most, dtype=bool)
        self.path: Int[np.ndarray, " node"] = np.zeros(0, dtype=np.int64)
        self.row: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def add(self, prompt: tuple[int, ...], rest: tuple[int, ...]) -> Int[np.ndarray, " node"]:
        """Add what the row does not share with the one before, and return its nodes."""
        common = 0
        if self.row is not None:
            common = n_common(self.row[0], prompt)
            common += n_common(self.row[1], rest) if self.row[0] == prompt else 0
        self.leave(common)
        places = np.arange(common, len(prompt) + len(rest))
        new = slice(self.n, self.n + len(places))
        self.tokens[new] = prompt[common:] + rest[max(0, common - len(prompt)) :]
        self.depth[new], self.own[new] = places, places >= len(prompt)
        self.path = np.concatenate([self.path, np.arange(new.start, new.stop)])
        self.n = new.stop
        self.row = (prompt, rest)
        return self.path

    def leave(self, common: int) -> None:
        """End the last path's nodes behind its first `common` ones: they have no more descendants."""
        self.end[self.path[common:]] = self.n
        self.path = self.path[:common]
