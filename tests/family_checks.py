"""The five promises to every family, each as a measured difference, and the table of what is covered.

    python -m tests.family_checks        runs every check on every family and writes docs/families.md

The oracles are plain PyTorch: one prompt at a time, attention modules named by hand in tests/families.py.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.by_hand import hook_counts, padded, prompt_ids, seen_inputs
from tests.families import FAMILIES, family_model
from tests.tiny import tiny_questions, tiny_tokenizer
from trimtab.activations import Head
from trimtab.edits.vectors import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.models.adding import add_to_heads
from trimtab.models.heads import find_heads
from trimtab.models.identity import fingerprint
from trimtab.protocols import TokenMask

DOCS = Path(__file__).resolve().parents[1] / "docs" / "families.md"
TOLERANCE = 5e-6
"""Of the largest value: float32 rounding through three layers with weights far larger than usual."""


@cache
def the_model(name: str) -> Any:
    model = family_model(name)
    model.generation_config.eos_token_id = None
    return model


@cache
def sites(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*are left out")
        return find_heads(the_model(name))


def the_shift(name: str) -> HeadShift:
    """Return a shift on one head of every layer that attends, as large as the activations themselves."""
    heads = tuple(Head(layer, 1 + i) for i, layer in enumerate(FAMILIES[name].layers))
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(len(heads), FAMILIES[name].d_head, generator=generator)
    unit = directions / directions.norm(dim=1, keepdim=True)
    return HeadShift(heads, unit, torch.ones(len(heads)), 3.0, record={"model": fingerprint(the_model(name))})


@contextlib.contextmanager
def shifted(name: str, positions: Any) -> Iterator[None]:
    with add_to_heads(the_model(name), the_shift(name).deltas, positions, heads=sites(name)):
        yield


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest expected value; infinite for NaN or other shapes."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max())


def attention_output(name: str, ids: Tensor) -> list[Tensor]:
    """Return what each attention module adds to the last position, from the module's own output."""
    model, family, out = the_model(name), FAMILIES[name], []
    handles = []
    for layer in family.layers:

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            out.append((first - (args[1] if family.adds_residual else 0))[0, -1])

        module = model.get_submodule(family.attention.format(layer))
        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return out


def captured_heads_reproject(name: str) -> float:
    """Captured in padded batches, each head's activations through the projection give the attention's output."""
    statements = tiny_questions(3).statements()[:5]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*are left out")
        acts = capture_heads(the_model(name), tiny_tokenizer(), statements, batch_size=3)
    worst = 0.0 if acts.layers == FAMILIES[name].layers else math.inf
    for row, statement in zip(acts.values, statements, strict=True):
        expected = attention_output(name, torch.tensor([tiny_tokenizer()(statement.text)["input_ids"]]))
        with torch.no_grad():
            for site, heads, output in zip(sites(name), row, expected, strict=True):
                projected = site.module(heads.flatten()[None, None])[0, 0]
                worst = max(worst, difference(projected, output))
    return worst


def padding_agrees(name: str) -> float:
    """The last logits of a shifted batch of unequal prompts, padded left or right, are those of each prompt alone."""
    model, rows, mask = the_model(name), [prompt_ids(n, seed=n) for n in (11, 4, 7)], TokenMask()
    with torch.no_grad(), shifted(name, mask):
        alone = []
        for row in rows:
            mask.value = torch.ones(row.shape, dtype=torch.bool)
            alone.append(model(input_ids=row).logits[0, -1])
        worst = 0.0
        for side in ("left", "right"):
            ids, real = padded(rows, side)
            mask.value = real.bool()
            places = real.cumsum(1) - 1
            logits = model(input_ids=ids, attention_mask=real, position_ids=places.clamp(min=0)).logits
            last = logits[torch.arange(3), places.argmax(1)]
            worst = max(worst, difference(last, torch.stack(alone)))
    return worst


def generation_equals_masked_forward(name: str) -> float:
    """Each step of cached, left-padded generation under "generated" is one masked forward without a cache."""
    model, rows = the_model(name), [prompt_ids(n, seed=n) for n in (9, 5)]
    ids, real = padded(rows, "left")
    with torch.no_grad(), shifted(name, "generated"):
        out = model.generate(
            input_ids=ids, attention_mask=real, max_new_tokens=5, do_sample=False, output_logits=True, use_cache=True,
            return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
    worst, mask = 0.0, TokenMask()
    for i, row in enumerate(rows):
        whole = torch.cat([row, out.sequences[i : i + 1, ids.shape[1] : -1]], dim=1)
        mask.value = (torch.arange(whole.shape[1]) >= row.shape[1] - 1)[None]
        with torch.no_grad(), shifted(name, mask):
            expected = model(input_ids=whole).logits[0, row.shape[1] - 1 :]
        worst = max(worst, difference(torch.stack([step[i] for step in out.logits]), expected))
    return worst


def shift_is_a_constant_after_projection(name: str) -> float:
    """A shift at all positions is projection(x + delta) - projection(x), added to the projection's output."""
    model, ids = the_model(name), prompt_ids(8)
    constants, x = {}, torch.zeros(1, 1, sites(name)[0].n_heads, FAMILIES[name].d_head)
    for (layer, head), delta in the_shift(name).deltas.items():
        site = next(s for s in sites(name) if s.layer == layer)
        moved = x.clone()
        moved[..., head, :] = delta
        with torch.no_grad():
            constants[site.module] = (site.module(moved.flatten(2)) - site.module(x.flatten(2)))[0, 0]
    with torch.no_grad():
        with shifted(name, "all"):
            found = model(input_ids=ids).logits
        handles = [m.register_forward_hook(lambda m, a, out, c=c: out + c) for m, c in constants.items()]
        expected = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return difference(found, expected)


def hooks_fire(name: str) -> float:
    """At one position and one head a layer the input of the projection moves by the delta, elsewhere by nothing.

    Measured at the first attending layer, before which nothing moves, and as 1 if the logits stay as they were.
    """
    model, ids, mask = the_model(name), prompt_ids(8), torch.zeros(1, 8, dtype=torch.bool)
    mask[0, 5] = True
    before, site = hook_counts(model), sites(name)[0]
    plain = seen_inputs(model, {"x": site.module}, lambda: model(input_ids=ids))["x"]
    with shifted(name, mask), torch.no_grad():
        moved = seen_inputs(model, {"x": site.module}, lambda: model(input_ids=ids))["x"]
        edited = model(input_ids=ids).logits
    expected = plain.clone()
    head, delta = next(iter(the_shift(name).deltas.items()))
    expected[0, 5].view(site.n_heads, -1)[head.head] += delta
    with torch.no_grad():
        acts = difference(edited[:, 5:], model(input_ids=ids).logits[:, 5:]) > 1e-3
    return difference(moved, expected) if acts and hook_counts(model) == before else 1.0


CHECKS: dict[str, Callable[[str], float]] = {
    "capture": captured_heads_reproject,
    "padding": padding_agrees,
    "generation": generation_equals_masked_forward,
    "constant": shift_is_a_constant_after_projection,
    "hooks": hooks_fire,
}


@cache
def measured(name: str, check: str) -> float:
    """Return the largest relative difference of one check on one family."""
    return CHECKS[check](name)


def holds(name: str, check: str) -> bool:
    """Return whether a family keeps a promise."""
    return measured(name, check) <= TOLERANCE


def row(name: str, kept: Callable[[str, str], bool]) -> str:
    """Return the family's line of the table."""
    site = sites(name)[0]
    path = site.name.replace(f".{site.layer}.", ".*.")
    passed = ["yes" if kept(name, check) else "**no**" for check in CHECKS]
    layers = f"{len(sites(name))} of {the_model(name).config.get_text_config().num_hidden_layers}"
    cells = [name, type(the_model(name)).__name__, f"`{path}`", layers, *passed]
    return f"| {' | '.join(cells)} |"


def table(kept: Callable[[str, str], bool] = holds) -> str:
    """Return docs/families.md."""
    head = ["Family", "Class", "Where the heads are found", "Attending layers", *CHECKS]
    meaning = "\n".join(
        f"- **{check}**: {(function.__doc__ or '').split(chr(10))[0]}" for check, function in CHECKS.items()
    )
    return f"""# Model families

Written by the test run (`python -m tests.family_checks`), from tiny random models of each family in float32.
Heads are found by what modules do; trimtab has no table of paths. A family that is not listed is tried in the same
way and refused by name if its heads cannot be verified.

{meaning}

All differences are below {TOLERANCE:g} of the largest value.

| {" | ".join(head)} |
|{"---|" * len(head)}
{chr(10).join(row(name, kept) for name in FAMILIES)}

Layers without attention (state spaces, convolutions, recurrences) are left out with a warning, and so are layers whose
heads have another size than those of most (Gemma 4's global attention), which `heads=` takes by name. Models without
any, such as Mamba, and encoder-decoder models are refused.

Zamba 2 is not in the table: its heads are found and captured, but transformers' own cached step of its Mamba layers
differs from its whole forward, without any edit and in float64 too (by about 5e-05 of the largest logit of a tiny
random model; the first step agrees), so steered generation equals a masked forward only to the same order
(`tests/models/test_families.py`).
"""


if __name__ == "__main__":
    DOCS.write_text(table(), encoding="utf-8")
