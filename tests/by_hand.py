"""Plain PyTorch oracles that share no code with the library: where the heads are, and hooks written out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

N_LAYERS = 3
N_HEADS = 4


class Geometry(NamedTuple):
    """Where a family of tests/tiny.py keeps its layers and each layer's attention output projection."""

    layers: str
    projection: str
    d_head: int


GEOMETRY = {
    "llama": Geometry("model.layers", "self_attn.o_proj", 12),
    "llama-gqa": Geometry("model.layers", "self_attn.o_proj", 12),
    "llama-odd-head-dim": Geometry("model.layers", "self_attn.o_proj", 10),
    "gpt2": Geometry("transformer.h", "attn.c_proj", 12),
    "gpt-neox": Geometry("gpt_neox.layers", "attention.dense", 12),
    "qwen3": Geometry("model.layers", "self_attn.o_proj", 16),
    "gemma2": Geometry("model.layers", "self_attn.o_proj", 16),
}


def projection_name(family: str, layer: int) -> str:
    return f"{GEOMETRY[family].layers}.{layer}.{GEOMETRY[family].projection}"


def projection(model: nn.Module, family: str, layer: int) -> nn.Module:
    return model.get_submodule(projection_name(family, layer))


def delta(family: str, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a vector for one head, as large as the activations themselves."""
    return torch.randn(GEOMETRY[family].d_head, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def prompt_ids(n: int, seed: int = 0) -> Tensor:
    """Return one row of n ordinary tokens."""
    return torch.randint(5, 290, (1, n), generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Return rows of different lengths as one batch, with its attention mask."""
    width = max(row.shape[1] for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - row.shape[1], width) if side == "left" else slice(0, row.shape[1])
        ids[i, place], mask[i, place] = row[0], 1
    return ids, mask


@contextlib.contextmanager
def input_changed(module: nn.Module, change: Callable[[Tensor], None]) -> Iterator[None]:
    """Apply an in-place change to a copy of the module's input at every call."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        x = args[0].clone()
        change(x)
        return (x,)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def head_slice(family: str, head: int) -> slice:
    width = GEOMETRY[family].d_head
    return slice(head * width, (head + 1) * width)


def seen_inputs(model: nn.Module, modules: dict[str, nn.Module], call: Callable[[], Any]) -> dict[str, Tensor]:
    """Return the first input of each module in the last forward that `call` makes."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in modules.items():

        def hook(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            seen[name] = args[0].detach().clone()

        handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    return seen


def hook_counts(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return how many hooks each module carries."""
    return {n: (len(m._forward_pre_hooks), len(m._forward_hooks)) for n, m in model.named_modules()}
