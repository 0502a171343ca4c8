"""Plain models: without quantisation, in one dtype, or without weights at all."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from trimtab.models.anatomy import base_of
from trimtab.models.twin import twin_of


def skeleton(model_or_config: Any) -> Any:
    """Return the model of a config without weights (on the meta device)."""
    from transformers import AutoModelForCausalLM

    config = model_or_config if not isinstance(model_or_config, nn.Module) else base_of(model_or_config).config
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def dequantized(model: Any, dtype: torch.dtype | None = None) -> Any:
    """Return the model in plain weights of a dtype (its own if not given); a copy, unless it is that already."""
    base = base_of(model)
    dtype = dtype or base.dtype
    quantised = getattr(base, "is_quantized", False)
    if not quantised and dtype == base.dtype:
        return base
    if quantised:
        made: Any = copy.deepcopy(base).dequantize(dtype=dtype)
        _turn_conv1d_back(made)
    else:
        made = twin_of(base)
    stored = made.state_dict().keys()  # rotary frequencies are not, and stay as exact as they are
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        if name in stored and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return made.eval()


def _turn_conv1d_back(model: Any) -> None:
    """Put Conv1D where quantisation left a Linear of the transposed weight, so that the model is saved as its class."""
    from transformers.pytorch_utils import Conv1D

    for name, module in skeleton(model).named_modules():
        if isinstance(module, Conv1D):
            linear: Any = model.get_submodule(name)
            if isinstance(linear, nn.Linear):
                with torch.device("meta"):
                    turned = Conv1D(module.nf, module.nx)
                turned.weight = nn.Parameter(linear.weight.detach().t().contiguous(), requires_grad=False)
                turned.bias = linear.bias
                model.set_submodule(name, turned)
