"""Loading in 4 and 8 bits with bitsandbytes, and the guard that keeps its CPU kernels honest."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias, get_args

import torch

from trimtab.errors import BadValue, UnsupportedModel

Quantization: TypeAlias = Literal["nf4", "fp4", "nf4-dq", "fp4-dq", "int8"]
"""4-bit NormalFloat or float (Dettmers et al. 2023, section 3), `-dq` with double quantisation; 8-bit LLM.int8()."""

DEVICES = ("cpu", "cuda", "xpu")


def quantization_config(kind: Quantization, dtype: torch.dtype | str, device: Any) -> Any:
    """Return the `BitsAndBytesConfig` for a kind of quantisation; 4-bit weights compute in `dtype`.

    Raises:
        UnsupportedModel: bitsandbytes is not installed.
        BadValue: an unknown kind, a device it has no kernels for, or float64.
    """
    if kind not in get_args(Quantization):
        given = repr(kind) if isinstance(kind, str) else f"of type {type(kind).__name__}"
        raise BadValue(f"unknown quantization {given}; choose {', '.join(get_args(Quantization))} or None")
    device_type = getattr(device, "type", None)
    if device_type is not None and device_type not in DEVICES:
        raise BadValue(
            f"quantization {kind!r} does not run on device {str(device)!r}; choose {', '.join(DEVICES)}, "
            "or load without quantization"
        )
    if dtype == torch.float64:
        raise BadValue(f"quantization {kind!r} computes in float32, bfloat16 or float16, not in float64; choose one")
    require_bitsandbytes(f"quantization {kind!r}")
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        # it says at every call of every layer that inputs are cast to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind.removesuffix("-dq"),
        bnb_4bit_use_double_quant=kind.endswith("-dq"),
        bnb_4bit_compute_dtype=dtype,
    )


def require_bitsandbytes(what: str) -> None:
    """Raise `UnsupportedModel` if what needs bitsandbytes cannot have it."""
    if find_spec("bitsandbytes") is None:
        raise UnsupportedModel(
            f"{what} needs bitsandbytes, which is not installed: pip install 'trimtab[quantization]'"
        )


def keep_unpacked(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place on CPUs with AVX512-BF16.

    Its first forward in evaluation mode would round the scales to bfloat16 and leave a format that later gradients,
    merges and dequantisation misread without an error (bitsandbytes 0.50).
    """
    for _, module in _four_bit_layers(model):
        module.support_avx512bf16_for_cpu = False


def _four_bit_layers(model: Any) -> Iterator[tuple[str, Any]]:
    if find_spec("bitsandbytes") is not None and getattr(model, "is_loaded_in_4bit", False):
        from bitsandbytes.nn.modules import Linear4bit

        yield from ((name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit))


def require_read_rightly(model: Any) -> None:
    """Raise `UnsupportedModel` if bitsandbytes dequantises a 4-bit weight in the CPU's memory by the wrong scales.

    Blocks run on over the ends of rows. Its kernel for CPUs with AVX-512 begins a new one with each row (bitsandbytes
    0.50), which is the same only where rows are whole blocks.
    """
    for name, module in _four_bit_layers(model):
        packed, state = module.weight.data, module.weight.quant_state
        if packed.device.type != "cpu" or state.shape[-1] % state.blocksize == 0:
            continue
        from bitsandbytes.functional import dequantize_4bit

        one_row = copy.copy(state)
        one_row.shape = torch.Size((1, state.shape.numel()))
        if not torch.equal(dequantize_4bit(packed, state).flatten(), dequantize_4bit(packed, one_row).flatten()):
            raise UnsupportedModel(
                f"bitsandbytes misreads 4-bit weights on this CPU where a row is no whole number of blocks of "
                f'{state.blocksize}: {name} has rows of {state.shape[-1]}; use quantization "int8", a GPU, or none'
            )
