"""load_model: a folder, a hub id or the embedded model, with its tokenizer, ready for inference."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from trimtab.devices import available_device
from trimtab.embedded import EMBEDDED, EMBEDDED_FOLDER
from trimtab.errors import BadValue, TrimtabError, UnsupportedModel
from trimtab.hub import hub_advice
from trimtab.models.load.gguf import dequantised, file_in
from trimtab.models.load.loading_report import require_all_weights
from trimtab.models.load.packaged import PACKAGED, packaged_file
from trimtab.models.load.quantization import (
    Quantization,
    keep_unpacked,
    quantization_config,
    require_bitsandbytes,
    require_read_rightly,
)
from trimtab.models.processes import plain_launch
from trimtab.noise import without_bars_in_pipes, without_kernel_advice

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
SAVED = "give the whole folder that save_pretrained wrote, or a hub id"
TOO_LARGE = "Some modules are dispatched on the CPU or the disk"
"""How transformers begins to say that quantised weights would have to be offloaded."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class LoadedModel(NamedTuple):
    """A Hugging Face causal language model and its tokenizer."""

    model: Any
    tokenizer: Any


def load_model(
    name: str | Path = EMBEDDED,
    *,
    dtype: torch.dtype | Literal["float32", "bfloat16", "float16", "float64"] | None = None,
    device: str | torch.device | Mapping[str, Any] | None = None,
    quantization: Quantization | None = None,
    revision: str | None = None,
    gguf_file: str | None = None,
) -> LoadedModel:
    """Return `(model, tokenizer)` in evaluation mode.

    Args:
        name: a model folder, a GGUF file, a hub id (`organisation/model`, the only case that uses the network),
            `"embedded"`, the small model that ships with trimtab, or `"smollm2"` or `"gemma3-270m"`, real ones that
            Python packages carry.
        dtype: of the weights; the checkpoint's own if not given (the embedded model: float32).
        device: such as `"cpu"` or `"cuda:1"`, or `"auto"` to spread a large model over all devices (needs
            accelerate), or a map from module names to devices; the GPU if there is one, else the CPU, if not given.
        quantization: `"nf4"` or `"fp4"` (4 bits a weight; `"nf4-dq"`, `"fp4-dq"` with double quantisation) or
            `"int8"`, by bitsandbytes. 4-bit weights compute in `dtype`.
        revision: branch, tag or commit on the hub.
        gguf_file: which GGUF file of a folder or of a hub's repository. GGUF weights are dequantised once, into a
            folder in trimtab's cache.

    Raises:
        UnsupportedModel: there is no such folder, it cannot be read, it is not a decoder-only language model, or
            quantization was asked for without bitsandbytes, or bitsandbytes misreads its 4-bit weights on this CPU.
        BadValue: unknown dtype or quantization, a device that is not there or that cannot run the quantization.
    """
    path, local = _resolve(name, revision, gguf_file)
    source: dict[str, Any] = {"local_files_only": True} if local else {"revision": revision}
    where = f"the folder {path}" if local else f"the hub's {path}"
    weights = _dtype(dtype, name)
    if isinstance(device, Mapping):
        for place in {"cpu", "disk", *device.values()} - {"cpu", "disk"}:
            available_device(place)
    elif device != "auto":
        device = available_device(device)
    with _reading(f"{where} cannot be loaded as a causal language model", SAVED, path, source):
        reader, options = _reader_and_options(path, source, weights, device, quantization)
    loaded = _load(path, where, source, reader, options)
    held = quantization is None and getattr(loaded.model.config, "quantization_config", None) is not None
    if held and dtype is not None and loaded.model.dtype != weights:
        raise BadValue(
            f"{where} holds quantised weights beside others in {str(loaded.model.dtype).removeprefix('torch.')}, which "
            "loading does not change; leave dtype out, or load the unquantised model with quantization"
        )
    return loaded


def load_config(name: str | Path = EMBEDDED, *, revision: str | None = None, gguf_file: str | None = None) -> Any:
    """Return the config of the model that `load_model` would load, without its weights.

    Raises:
        UnsupportedModel: there is no such folder, or it is not a decoder-only language model.
    """
    from transformers import AutoConfig

    path, local = _resolve(name, revision, gguf_file)
    source: dict[str, Any] = {"local_files_only": True} if local else {"revision": revision}
    with _reading(f"the config of {path} cannot be read", SAVED, path, source):
        config = AutoConfig.from_pretrained(path, **source)
        _reader(config, path)
    return config


def gguf_source(
    name: str | Path, *, revision: str | None = None, gguf_file: str | None = None
) -> tuple[Path, str] | None:
    """Return the GGUF file that `load_model` would read and whose work it is, or None where it would read no such file.

    Raises:
        UnsupportedModel: as `load_model`.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        file = file_in(path, gguf_file)
        return None if file is None else (file, "")
    if gguf_file is not None:
        if path.is_file() or not HUB_ID.fullmatch(str(name)):
            raise UnsupportedModel(
                f"gguf_file (--gguf-file) names a file of a folder or of a hub's repository, and {name} is neither; "
                "leave it out, or correct the model's name"
            )
        from huggingface_hub import hf_hub_download

        with _reading(f"the hub's {name} has no file {gguf_file} to load", SAVED, str(name), {"revision": revision}):
            return Path(hf_hub_download(str(name), gguf_file, revision=revision)), ""
    if path.is_file():
        return path, ""
    if str(name) in PACKAGED:
        return packaged_file(str(name)), PACKAGED[str(name)].licence
    if path.suffix.lower() == ".gguf":  # the hub is not asked: it has no answer for long where there is no network
        raise UnsupportedModel(
            f"there is no file {name}; give an existing GGUF file, or a hub's repository and which of its files with "
            "gguf_file (--gguf-file)"
        )
    return None


def _resolve(name: str | Path, revision: str | None, gguf_file: str | None) -> tuple[str, bool]:
    """Return the folder or hub id that transformers is given, and whether it is a folder."""
    if str(name) == EMBEDDED and gguf_file is None:
        if not EMBEDDED_FOLDER.is_dir():
            raise UnsupportedModel(
                f"the embedded model is missing from {EMBEDDED_FOLDER.parent}; install trimtab again, or make the "
                "model with `trimtab build-embedded`"
            )
        return str(EMBEDDED_FOLDER), True
    found = gguf_source(name, revision=revision, gguf_file=gguf_file)
    if found is not None:
        return str(dequantised(*found)), True
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnsupportedModel(f"{path} has no config.json; expected a Hugging Face model folder")
        return str(path), True
    if isinstance(name, str) and HUB_ID.fullmatch(name):
        return name, False
    raise UnsupportedModel(
        f"no model folder at {name}; give an existing folder, a GGUF file, a hub id such as organisation/model, "
        f"{', '.join(map(repr, PACKAGED))} or 'embedded'"
    )


def _dtype(dtype: torch.dtype | str | None, name: str | Path) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if str(name) == EMBEDDED else "auto"
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise BadValue(f"unknown dtype {dtype!r}; choose {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise BadValue(f"dtype {dtype!r} is not one that a model can run in; choose {', '.join(DTYPES)}")
    return dtype


def _reader_and_options(
    path: str,
    source: Mapping[str, Any],
    dtype: torch.dtype | str,
    device: torch.device | str | Mapping[str, Any],
    quantization: Quantization | None,
) -> tuple[Any, dict[str, Any]]:
    """Return the class of transformers that reads the model, and how it is to place and quantise the weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, **source)
    reader = _reader(config, path)
    placed = {"": device} if isinstance(device, torch.device) else device
    held = getattr(config, "quantization_config", None)
    if quantization is None:
        if isinstance(held, Mapping) and held.get("quant_method") == "bitsandbytes":
            require_bitsandbytes(f"the quantised model in {path}")
        return reader, {"dtype": dtype, "device_map": placed}
    if held is not None:
        raise BadValue(f"{path} holds a model that is quantised already; load it without quantization")
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or torch.float32
    quantized = quantization_config(quantization, dtype, device)
    return reader, {"dtype": dtype, "device_map": placed, "quantization_config": quantized}


def _reader(config: Any, path: str) -> Any:
    """Return the class of transformers that reads a model; raises `UnsupportedModel` for what is no decoder."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        kind = "an encoder-only"
    elif type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    elif type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText  # a vision-language model is edited in its text tower
    else:
        kind = "another kind of"
    raise UnsupportedModel(
        f"{path} holds {kind} model ({config.model_type}); trimtab edits decoder-only language models"
    )


def _load(path: str, where: str, source: Mapping[str, Any], reader: Any, options: Mapping[str, Any]) -> LoadedModel:
    from transformers import AutoTokenizer

    # under FSDP transformers would load the weights on the first process alone
    with _reading(f"{where} cannot be loaded as a causal language model", SAVED, path, source), plain_launch():
        # shapes are compared below, since the reader itself leaves out which ones differ
        loaded: Any = reader.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **options, **source
        )
    model, report = loaded
    require_all_weights(report, where)
    advice = "save it there with tokenizer.save_pretrained"
    with _reading(f"the tokenizer of {where} cannot be loaded", advice, path, source):
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
    require_read_rightly(model)
    keep_unpacked(model)
    return LoadedModel(model.eval(), tokenizer)


@contextlib.contextmanager
def _reading(failure: str, advice: str, path: str, source: Mapping[str, Any]) -> Iterator[None]:
    """Turn what transformers raises over unreadable files, or over the hub, into `UnsupportedModel`."""
    try:
        with without_bars_in_pipes(), without_kernel_advice():
            yield
    except TrimtabError:
        raise
    except Exception as cause:  # the readers of many formats raise what they like
        if str(cause).startswith(TOO_LARGE):
            raise UnsupportedModel(
                f"{path} does not fit on the device as it is quantised, and bitsandbytes keeps no weights on disk or "
                "beside a GPU; use a larger GPU or several, keep disk out of the map, or load without quantization"
            ) from cause
        hub = None if "local_files_only" in source else hub_advice(path, source["revision"], cause)
        if hub is not None:
            raise UnsupportedModel(hub) from cause
        first = re.split(r"\n|(?<=[.!?])\s", str(cause).strip())[0].rstrip(".: ") or type(cause).__name__
        raise UnsupportedModel(f"{failure} ({first}); {advice}") from cause
