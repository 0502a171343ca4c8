"""GGUF files, as llama.cpp and Ollama run them: dequantised once into a model folder, which is loaded from then on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from trimtab.devices import free_on_cpu, in_bytes
from trimtab.errors import OutOfMemory, UnsupportedModel, first_line
from trimtab.models.load.loading_report import require_all_weights
from trimtab.models.saving import save_model
from trimtab.noise import without_bars_in_pipes
from trimtab.storage import RECORD, cache_folder, kind_of, load_record, versions, write_json, written_folder

KIND = "dequantised model"
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def file_in(folder: Path, name: str | None) -> Path | None:
    """Return the GGUF file of a folder: the one named, or the only one where no config.json stands beside it.

    Raises:
        UnsupportedModel: no such file, or several and none named.
    """
    if name is not None:
        if not (folder / name).is_file():
            raise UnsupportedModel(
                f"{folder} holds no file {name}; name one of its .gguf files, or leave gguf_file out"
            )
        return folder / name
    files = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() or not files:
        return None
    if len(files) > 1 and not PART.search(files[0].name):
        raise UnsupportedModel(
            f"{folder} holds {len(files)} GGUF files ({', '.join(file.name for file in files[:3])}); name one with "
            "gguf_file (--gguf-file)"
        )
    return files[0]


def dequantised(file: Path, licence: str = "") -> Path:
    """Return the model folder, in trimtab's cache, that holds the file's weights in float32 and its tokenizer.

    Made by transformers and the package `gguf` at the first call for a file of this content; found at later ones under
    the same release of transformers.

    Raises:
        UnsupportedModel: no GGUF file, a damaged one, one part of several, an architecture that transformers does not
            read, no tokenizer or one that does not fit, or the package `gguf` is not installed.
        BadValue: there is not enough memory.
    """
    _require_whole_file(file)
    with file.open("rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
    folder = cache_folder("models") / f"{file.stem}-{content[:12]}"
    if kind_of(folder) == KIND and _made_by(folder) == versions()["transformers"]:
        return folder
    if find_spec("gguf") is None:
        raise UnsupportedModel(f"reading {file} needs the package gguf: pip install 'trimtab[gguf]'")
    reader = _checked(file)
    warnings.warn(f"{licence or file.name}: weights are dequantised, once, into {folder}", stacklevel=2)
    with written_folder(folder, KIND) as staging:
        with without_bars_in_pipes():
            model, tokenizer = _read(file, reader)
        save_model(model, tokenizer, staging)
        write_json(staging / RECORD, {"kind": KIND, "file": file.name, "sha256": content, "versions": versions()})
    return folder


def _made_by(folder: Path) -> str:
    # what one release reads wrongly, another may read rightly
    return str(load_record(folder, KIND)["versions"]["transformers"])


def _require_whole_file(file: Path) -> None:
    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic != b"GGUF":
        raise UnsupportedModel(f"{file} is a file, and no GGUF file; give a model folder, a hub id or a .gguf file")
    part = PART.search(file.name)
    if part is None:
        return
    n = int(part[2])
    names = [f"{file.name[: part.start()]}-{i:05d}-of-{n:05d}.gguf" for i in range(1, n + 1)]
    missing = [name for name in names if not (file.parent / name).is_file()]
    raise UnsupportedModel(
        f"{file} is one of {n} parts{f', of which {missing[0]} is missing' if missing else ''}; join them into one "
        f"file with llama.cpp: llama-gguf-split --merge {names[0]} whole.gguf"
    )


def _checked(file: Path) -> Any:
    """Return the file's reader; raise for what transformers would read wrongly, or only after minutes."""
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = GGUFReader(file)
    except Exception as cause:  # numpy's and the package's own, over whatever stands in the file
        raise UnsupportedModel(
            f"{file} is truncated or damaged: {in_bytes(file.stat().st_size)} of it are here; download or copy it again"
        ) from cause
    architecture = _text(reader, "general.architecture")
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise UnsupportedModel(
            f"{file} is of the architecture {architecture!r}, which this release of transformers does not read from "
            "GGUF (it reads llama, qwen2, qwen3, gemma2, gemma3, phi3 and others); give the model's folder or hub id"
        )
    tokens, shapes = reader.get_field("tokenizer.ggml.tokens"), {t.name: t.shape for t in reader.tensors}
    if tokens is None:
        raise UnsupportedModel(f"{file} holds no tokenizer; give the model's folder or hub id instead")
    rows = int(shapes["token_embd.weight"][-1]) if "token_embd.weight" in shapes else 0
    if len(tokens.data) > rows:
        raise UnsupportedModel(
            f"{file} holds a tokenizer of {len(tokens.data)} tokens for embeddings of {rows}: they are not of one model"
        )
    # the tensors, and the model that they are copied into
    needed, free = 2 * 4 * sum(int(t.n_elements) for t in reader.tensors), free_on_cpu()
    if needed > free:
        raise OutOfMemory(
            f"dequantising {file} takes about {in_bytes(needed)} of memory, and {in_bytes(free)} are free; use a "
            "machine with more, or give the model's folder or hub id with quantization"
        )
    return reader


def _text(reader: Any, name: str) -> str:
    found = reader.get_field(name)
    return "" if found is None else str(found.contents())


def _read(file: Path, reader: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": file.name, "local_files_only": True}
    try:
        # its bar over tensors knows no switch
        quiet = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
        with quiet:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, output_loading_info=True, **source
            )
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **source)
    except Exception as cause:
        raise UnsupportedModel(
            f"transformers cannot read {file} ({first_line(cause)}); give the model's folder"
        ) from cause
    model, report = loaded
    require_all_weights(report, str(file))
    _require_every_number_read(file, reader, model)
    _require_whole_words(file, tokenizer)
    # what is left of the file's quantisation on the model, which save_pretrained would refuse
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.config._name_or_path = ""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _require_every_number_read(file: Path, reader: Any, model: Any) -> None:
    """Raise `UnsupportedModel` for tensors that transformers passed over in silence, such as biases."""
    tables = ("rope_freqs.", "rope_factors_")
    stored = {t.name: int(t.n_elements) for t in reader.tensors if not t.name.startswith(tables)}
    read = sum(p.numel() for p in model.parameters())
    if sum(stored.values()) > read:
        biases = [name for name in stored if name.endswith("attn_output.bias")]
        which = f" ({biases[0]} and others: biases that were added to it)" if biases else ""
        raise UnsupportedModel(
            f"{file} holds {sum(stored.values()):,} numbers, of which transformers reads {read:,}{which}: what it "
            "would load is another model; give the file that this one was made of, or the model's folder"
        )


def _require_whole_words(file: Path, tokenizer: Any) -> None:
    """Raise `UnsupportedModel` for a tokenizer that splits words of its own vocabulary, its merges having been lost.

    Transformers 5.17 loses those of Gemma 3 in silence: the model then answers every prompt with one token repeated.
    """
    texts = (tokenizer.decode([i]) for i in range(0, len(tokenizer), max(1, len(tokenizer) // 1000)))
    words = [text for text in texts if text.isascii() and text.strip().isalpha() and len(text.strip()) > 3]
    split = sum(len(tokenizer.encode(word, add_special_tokens=False)) > 2 for word in words)
    if 2 * split > len(words):
        version = versions()["transformers"]
        raise UnsupportedModel(
            f"{file}: transformers {version} reads its tokenizer wrongly: it splits {split} of {len(words)} words of "
            "its own vocabulary; use another release (5.24 reads Gemma 3's), or give the model's folder"
        )
