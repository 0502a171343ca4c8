"""Biases in place of vectors added live: what they are, and which stock Hugging Face class can carry them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.activations.labelled import Head
from trimtab.errors import UnsupportedModel
from trimtab.models.anatomy import input_width
from trimtab.models.heads import HeadSite

AS_LLAMA = ("mistral", "qwen2", "phi3")
"""Architectures that compute what Llama computes when their own features are switched off (`_why_not_llama`)."""


def through_projections(
    sites: Iterable[HeadSite], deltas: Mapping[Head, Float[Tensor, " d_head"]]
) -> dict[str, Float[Tensor, " d_model"]]:
    """Return by module name what vectors added to heads add after each output projection: W_O times them.

    Computed in double precision (Li et al. 2023, section 3.2).
    """
    by_layer = {site.layer: site for site in sites}
    rows: dict[int, Tensor] = {}
    for (layer, head), delta in deltas.items():
        site = by_layer[layer]
        row = rows.setdefault(layer, torch.zeros(site.n_heads, site.d_head, dtype=torch.float64))
        row[head] += delta.double().cpu()
    return {by_layer[k].name: _through(by_layer[k].module, row.flatten()) for k, row in rows.items()}


def _through(module: nn.Module, x: Float[Tensor, " width"]) -> Float[Tensor, " d_model"]:
    weight: Any = module.weight
    weight = weight.detach().cpu().double()
    return x @ weight if hasattr(module, "nx") else weight @ x  # Conv1D keeps its weight transposed


def with_biases(model: Any, biases: Mapping[str, Tensor]) -> Any:
    """Return a model of a stock class whose named projections carry these biases, on top of any of their own.

    It shares its weights with `model`. Where the class has no such bias by default, the first of these that gives
    one is taken: a switch of its config (all other biases it brings are zero), or the Llama class for architectures
    that compute the same.

    Args:
        model: an unquantised Hugging Face model without adapters.
        biases: by module name, as in `model.named_modules()`. That of a module without a weight of its own, such as a
            decoder layer, is carried by its last projection.

    Raises:
        UnsupportedModel: no stock class can carry them; the message says why.
    """
    weights = dict(model.state_dict())
    biases = {_carrier(model, name): bias for name, bias in biases.items()}
    wanted = {f"{name}.bias" for name in biases}
    config = model.config if wanted <= set(weights) else _switched(model, wanted, set(weights))
    if config is not None:
        return _filled(type(model), copy.deepcopy(config), model, weights, biases)
    kind = type(model).__name__
    if model.config.model_type in AS_LLAMA:
        why = _why_not_llama(model.config)
        if why:
            raise UnsupportedModel(f"{kind} has no bias after this projection, and cannot be saved as Llama: {why}")
        return _as_llama(model, weights, biases)
    raise UnsupportedModel(
        f"{kind} cannot carry a bias at {min(biases)}: no switch of its config adds one, and no other stock class "
        "computes the same; steer it live, or export the shift for lm-evaluation-harness"
    )


def _carrier(model: Any, name: str) -> str:
    # families list a layer's modules in the order of use; where that misleads, the comparison of logits refuses
    inside = [n for n, m in model.get_submodule(name).named_modules() if input_width(m) is not None]
    return f"{name}.{inside[-1]}".rstrip(".")


def _switched(model: Any, wanted: set[str], present: set[str]) -> Any | None:
    switches = [name for name, value in vars(model.config).items() if "bias" in name and value is False]
    for switch in switches:
        config = copy.deepcopy(model.config)
        setattr(config, switch, True)
        with torch.device("meta"):
            names = set(type(model)(config).state_dict())
        added = names - present
        if wanted <= names and present <= names and all(name.endswith(".bias") for name in added):
            return config
    return None


def _why_not_llama(config: Any) -> str | None:
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) and window and window < config.max_position_embeddings:
        return f"it attends through a sliding window of {window} tokens, which Llama does not have"
    rope = config.rope_parameters or {}
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "it rotates a part of each head only, which Llama does not"
    if rope.get("rope_type", "default") == "longrope":
        return "its rotary frequencies change with the length of the text"
    return None


def _as_llama(model: Any, weights: dict[str, Tensor], biases: Mapping[str, Tensor]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    known = set(LlamaConfig().to_dict()) - {"model_type", "architectures", "transformers_version", "head_dim"}
    shared = {key: value for key, value in model.config.to_dict().items() if key in known}
    head_dim = getattr(model.config, "head_dim", None)
    mlp = any(".mlp." in name for name in biases)
    config = LlamaConfig(**{**shared, "head_dim": head_dim, "attention_bias": True, "mlp_bias": mlp})
    config.rope_parameters = dict(model.config.rope_parameters)
    config.rope_parameters.pop("partial_rotary_factor", None)
    return _filled(LlamaForCausalLM, config, model, dict(_unfused(weights, config)), biases)


def _unfused(weights: Mapping[str, Tensor], config: Any) -> Iterable[tuple[str, Tensor]]:
    """Yield the weights with Phi-3's fused projections cut into Llama's."""
    d_head = config.head_dim or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * d_head, config.num_key_value_heads * d_head
    for name, weight in weights.items():
        if ".qkv_proj." in name:
            for part, piece in zip("qkv", weight.split([queries, keys, keys]), strict=True):
                yield name.replace("qkv_proj", f"{part}_proj"), piece
        elif ".gate_up_proj." in name:
            for part, piece in zip(("gate", "up"), weight.chunk(2), strict=True):
                yield name.replace("gate_up_proj", f"{part}_proj"), piece
        else:
            yield name, weight


def _filled(
    kind: type[nn.Module], config: Any, model: Any, weights: dict[str, Tensor], biases: Mapping[str, Tensor]
) -> Any:
    with torch.device("meta"):
        target: Any = kind(config)
    shapes = target.state_dict()
    state = dict(weights)
    for name in shapes.keys() - weights.keys():
        assert name.endswith(".bias"), name
        like = weights[name.removesuffix("bias") + "weight"]
        state[name] = torch.zeros(shapes[name].shape, dtype=like.dtype, device=like.device)
    for module, bias in biases.items():
        own = state[f"{module}.bias"]
        # summed in double precision and rounded once
        state[f"{module}.bias"] = (own.double() + bias.to(own.device).double()).to(own.dtype)
    target.load_state_dict({name: state[name] for name in shapes}, assign=True)
    computed = dict(model.named_buffers())
    for name, buffer in target.named_buffers():
        if buffer.is_meta:  # rotary frequencies and the like, which no state holds
            owner, _, leaf = name.rpartition(".")
            setattr(target.get_submodule(owner), leaf, computed[name])
    target.tie_weights()
    target.generation_config = copy.deepcopy(model.generation_config)  # end tokens that the config does not name
    return target.eval()
