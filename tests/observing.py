"""What tests look at on a live model: everything an edit could leave behind, its logits, and what it generates."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.tiny import VOCAB

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks")


def state_of(model: Any) -> dict[str, Any]:
    """Return everything an edit could leave behind: hooks, modules, modes, configs, and the weights' bytes."""
    return {
        "hooks": {name: tuple(tuple(getattr(m, kind)) for kind in HOOKS) for name, m in model.named_modules()},
        "modules": {name: type(m) for name, m in model.named_modules()},
        "forwards": {name: "forward" in vars(m) for name, m in model.named_modules()},
        "training": {name: m.training for name, m in model.named_modules()},
        "config": json.dumps([model.config.to_dict(), model.generation_config.to_dict()], default=str),
        "weights": {name: t.numpy().tobytes() for name, t in model.state_dict().items()},
        "gradients": {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()},
    }


def attributes_of(model: Any) -> dict[str, set[str]]:
    """Return the names that stand on every module itself."""
    return {name: set(vars(m)) for name, m in model.named_modules()}


def random_state() -> Any:
    """Return the state of torch's and numpy's global generators (beartype itself draws from Python's)."""
    return torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist()


def tokens(batch: int = 2, length: int = 9) -> Tensor:
    """Return random tokens, batch seq."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model: Any, ids: Tensor | None = None, **given: Any) -> Tensor:
    """Return a model's logits without a cache, in float64."""
    return model(input_ids=tokens() if ids is None else ids, use_cache=False, **given).logits.double()


def generated(model: Any, ids: Tensor, padding: Tensor | None = None, n: int = 3) -> tuple[Tensor, Tensor]:
    """Return (whole sequences, logits of the new tokens) of cached greedy decoding."""
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if padding is None else padding,
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences, torch.stack(out.logits, dim=1).double()
