"""Which checkpoint a result was made on, cheaply: geometry and a sample of weights that quantisation leaves alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from trimtab.errors import Incompatible
from trimtab.models.heads import base_of, text_config

N_SAMPLED = 128


def fingerprint(model: Any) -> dict[str, Any]:
    """Return the model's identity for records.

    `geometry` and `sample` (values of the input embedding, which 4-bit and 8-bit loading keep) tell checkpoints
    apart; `dtype`, `quantization` and `adapter` are recorded beside them.
    """
    base, config = base_of(model), text_config(model)
    weight = base.get_input_embeddings().weight
    rows = torch.linspace(0, min(weight.shape[0], 1000) - 1, N_SAMPLED).long()
    columns = torch.arange(N_SAMPLED) * 7 % weight.shape[1]
    sample = weight.detach()[rows.to(weight.device), columns.to(weight.device)].float().cpu()
    quantization = getattr(base.config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, Mapping):
        quantization = quantization.to_dict()
    return {
        "name": base.config.name_or_path,
        "revision": getattr(base.config, "_commit_hash", None),
        "geometry": {
            "model_type": config.model_type,
            "n_layers": config.num_hidden_layers,
            "n_heads": config.num_attention_heads,
            "d_model": config.hidden_size,
        },
        "sample": [round(float(v), 8) for v in sample],
        "dtype": str(base.dtype).removeprefix("torch."),
        "quantization": _quantization_name(quantization),
        "adapter": sorted(getattr(model, "peft_config", None) or {}),
    }


def require_same_model(made_on: Mapping[str, Any], model: Any, what: str) -> None:
    """Refuse another checkpoint or geometry; warn about another dtype, quantisation or adapter.

    Raises:
        Incompatible: naming what differs.
    """
    here = fingerprint(model)
    if made_on["geometry"] != here["geometry"]:
        theirs, ours = made_on["geometry"], here["geometry"]
        differing = ", ".join(f"{k} {theirs[k]} against {ours[k]}" for k in ours if theirs.get(k) != ours[k])
        raise Incompatible(f"{what} was made for another model ({made_on['name']}): {differing}; fit it on this model")
    theirs, ours = torch.tensor(made_on["sample"]), torch.tensor(here["sample"])
    # bfloat16 keeps 8 bits: the same checkpoint in another dtype differs by up to 2^-8 of a value
    if not torch.allclose(theirs, ours, rtol=2**-7, atol=1e-6):
        raise Incompatible(
            f"{what} was made for another checkpoint of this architecture ({made_on['name']}, here {here['name']}); "
            "fit it on this model"
        )
    for key in ("dtype", "quantization", "adapter"):
        if made_on[key] != here[key]:
            warnings.warn(f"{what} was made with {key} {made_on[key]}, the model has {here[key]}", stacklevel=3)


def _quantization_name(config: Mapping[str, Any] | None) -> str | None:
    if config is None:
        return None
    if config.get("load_in_4bit"):
        return str(config.get("bnb_4bit_quant_type"))
    return str(getattr(config.get("quant_method"), "value", config.get("quant_method")))
