"""Token sequences as a tree, so that what they share is known and computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


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
    def grown(cls, rows: Sequence[TreeRow]) -> TokenTree:
        """Return the tree of the rows."""
        parts = [(tuple(row.ids[: row.split]), tuple(row.ids[row.split :])) for row in rows]
        order = sorted(range(len(rows)), key=parts.__getitem__)
        tokens, depth, end, own = [], [], [], []
        paths: dict[int, list[int]] = {}
        units: list[list[int]] = []
        path: list[int] = []
        before: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        for row in order:
            prompt, rest = parts[row]
            same_prompt = before is not None and before[0] == prompt
            common = 0 if before is None else n_common(before[0], prompt)
            common += n_common(before[1], rest) if before is not None and same_prompt else 0
            for node in path[common:]:
                end[node] = len(tokens)
            new = range(len(tokens), len(tokens) + len(prompt) + len(rest) - common)
            path = [*path[:common], *new]
            tokens += (*prompt, *rest)[common:]
            depth += range(common, len(path))
            own += [place >= len(prompt) for place in range(common, len(path))]
            end += [0] * len(new)
            paths[row] = path
            if same_prompt:
                units[-1].append(row)
            else:
                units.append([row])
            before = parts[row]
        for node in path:
            end[node] = len(tokens)
        whole = tuple(np.array(paths[i], dtype=np.int64) for i in range(len(rows)))
        first, last = (parts[order[i]][0] for i in (0, -1)) if order else ((), ())
        return cls(
            tokens=np.array(tokens, dtype=np.int64),
            depth=np.array(depth, dtype=np.int64),
            end=np.array(end, dtype=np.int64),
            own=np.array(own, dtype=bool),
            paths=whole,
            units=tuple(map(tuple, units)),
            n_root=n_common(first, last),
        )

    @property
    def sharing(self) -> float:
        """How many times as many tokens the rows have as the tree."""
        return sum(map(len, self.paths)) / max(1, len(self.tokens))


def n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    n = min(len(one), len(other))
    if one[:n] == other[:n]:
        return n
    return next(i for i in range(n) if one[i] != other[i])
