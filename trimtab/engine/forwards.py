"""Run many token sequences under one or many edits, computing every shared prefix once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from trimtab.edits.combined import NoEdit
from trimtab.engine.passes import Computed, Enter, Limits, Pass, Read
from trimtab.engine.sharing import chosen_mode
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.errors import BadValue
from trimtab.models.tokens import require_known
from trimtab.protocols import Edit, TokenMask


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
        BadValue: a budget below 1; a token that the model does not know.
    """
    for name, value in (("token_budget", token_budget), ("batch_size", max_rows)):
        if value is not None and value < 1:
            raise BadValue(f"{name} must be at least 1, got {value}")
    edits = (NoEdit(),) if edits is None else edits
    tree, computed = TokenTree.grown(rows), Computed()
    require_known(model, int(tree.tokens.max(initial=0)))
    limits = Limits.of(model, token_budget, max_rows, logits)
    shared = [i for i, edit in enumerate(edits) if edit.leaves_prompt_unedited]

    def one_pass(model: Any, entries: Mapping[int, Enter], mask: TokenMask) -> None:
        mode = chosen_mode(model, tree, len(entries), pad, mask, computed)
        Pass(model, tree, rows, mode, pad, limits, mask, computed, read).run(entries, task)

    if shared:
        mask = TokenMask()
        one_pass(model, {i: partial(edits[i].prepared(model), mask) for i in shared}, mask)
    for i in sorted(set(range(len(edits))) - set(shared)):
        mask = TokenMask()
        with edits[i].applied(model, positions=mask) as edited:
            one_pass(edited, {i: lambda edited=edited: contextlib.nullcontext(edited)}, mask)
    return computed
