"""load_model: a folder, a hub id or the embedded model, with its tokenizer, ready for inference."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from trimtab.errors import BadValue, UnsupportedModel

EMBEDDED = "embedded"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class LoadedModel(NamedTuple):
    """A Hugging Face causal language model and its tokenizer."""

    model: Any
    tokenizer: Any


def load_model(
    name: str | Path = EMBEDDED,
    *,
    dtype: torch.dtype | Literal["float32", "bfloat16", "float16", "float64"] | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
) -> LoadedModel:
    """Return `(model, tokenizer)` in evaluation mode.

    Args:
        name: a model folder, a hub id (`organisation/model`, the only case that uses the network), or
            `"embedded"`, the small model that ships with trimtab.
        dtype: of the weights; the checkpoint's own if not given (the embedded model: float32).
        device: such as `"cpu"` or `"cuda:1"`, or `"auto"` to spread a large model over all devices (needs
            accelerate); the GPU if there is one, else the CPU, if not given.
        revision: branch, tag or commit on the hub.

    Raises:
        UnsupportedModel: there is no such folder, it cannot be read, or it is not a decoder-only language model.
        BadValue: unknown dtype, or a device that is not there.
    """
    path, local = _resolve(name)
    return _load(path, local, _dtype(dtype, name), "auto" if device == "auto" else available_device(device), revision)


def embedded_folder() -> Path:
    """Return the folder that holds the embedded model's weights, tokenizer and training record."""
    return Path(str(files("trimtab.models.embedded").joinpath("weights")))


def _resolve(name: str | Path) -> tuple[str, bool]:
    if str(name) == EMBEDDED:
        if not embedded_folder().is_dir():
            raise UnsupportedModel(
                f"the embedded model is missing from {embedded_folder().parent}; install trimtab again, or make the "
                "model with `trimtab build-embedded`"
            )
        return str(embedded_folder()), True
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnsupportedModel(f"{path} has no config.json; expected a Hugging Face model folder")
        return str(path), True
    if isinstance(name, str) and HUB_ID.fullmatch(name) and not path.exists():
        return name, False
    raise UnsupportedModel(
        f"no model folder at {name}; give an existing folder, a hub id such as organisation/model, or 'embedded'"
    )


def _dtype(dtype: torch.dtype | str | None, name: str | Path) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if str(name) == EMBEDDED else "auto"
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise BadValue(f"unknown dtype {dtype!r}; choose {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return dtype


def available_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for, or the GPU if there is one; raises `BadValue` if it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        raise BadValue(f"device {str(device)!r} is not available here; try 'cpu' or leave it out") from cause
    return device


def _load(
    path: str, local: bool, dtype: torch.dtype | str, device: str | torch.device, revision: str | None
) -> LoadedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = {"local_files_only": True} if local else {"revision": revision}
    where = f"the folder {path}" if local else f"the hub's {path}"
    with _reading(f"{where} cannot be loaded as a causal language model"):
        config = AutoConfig.from_pretrained(path, **source)
        _check_decoder_only(config, path)
        placed = {"device_map": "auto"} if device == "auto" else {}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **placed, **source
        )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise UnsupportedModel(
            f"{where} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}), which would be random; "
            "give a folder that was saved from a causal language model"
        )
    with _reading(f"the tokenizer of {where} cannot be loaded; save it there with tokenizer.save_pretrained"):
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
    if device != "auto":
        model = model.to(device)
    return LoadedModel(model.eval(), tokenizer)


@contextlib.contextmanager
def _reading(failure: str) -> Iterator[None]:
    """Turn what transformers raises over unreadable files into `UnsupportedModel`."""
    try:
        yield
    except UnsupportedModel:
        raise
    except Exception as cause:  # the readers of many formats raise what they like
        first = str(cause).strip().split("\n")[0].rstrip(": ") or type(cause).__name__
        raise UnsupportedModel(f"{failure}: {first}") from cause


def _check_decoder_only(config: Any, path: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        kind = "an encoder-only"
    else:
        return
    raise UnsupportedModel(
        f"{path} holds {kind} model ({config.model_type}); trimtab edits decoder-only language models"
    )
