"""gguf_with_biases: a head shift worked into a GGUF file, which llama.cpp and Ollama then run steered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from trimtab.errors import BadValue, Incompatible, UnsupportedModel
from trimtab.protocols import Edit
from trimtab.storage import written_file

ATTENTION_OUTPUT = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.(?:self_attn\.o_proj|attn\.c_proj|self_attention\.dense)$")
READ_BY_LLAMA_CPP = ("llama",)
"""Architectures of which llama.cpp adds a bias behind attention where a file has one (tests/export/test_llama_cpp.py).
Others have one in every file (GPT-2, BLOOM, StarCoder2), or are not loaded with one ("wrong number of tensors"): Qwen 2
and 3, Gemma 2 and 3, Phi 3, StableLM."""


def gguf_with_biases(file: str | Path, model: Any, edit: Edit, out: str | Path) -> dict[int, float]:
    """Write a copy of a GGUF file in which a head shift acts at all positions; return its biases' norms by layer.

    A shift before attention's output map is a constant after it (Li et al. 2023, section 3.2): a tensor
    `blk.N.attn_output.bias`, added to one that is there. Every other tensor is copied byte for byte, so that nothing
    is quantised again; the copy is read back and compared before it is kept.

    Args:
        model: the file's, as `load_model` gives it.

    Raises:
        BadValue: an edit that does anything else than add constants behind attention, or changes nothing.
        UnsupportedModel: an architecture of which llama.cpp does not read these biases; the package `gguf` is not
            installed; the file is not the model's.
        Incompatible: the edit is another model's; the file cannot be written.
    """
    if find_spec("gguf") is None:
        raise UnsupportedModel("writing GGUF needs the package gguf: pip install 'trimtab[gguf]'")
    from gguf import GGUFReader

    file, out = Path(file), Path(out)
    if out.resolve() == file.resolve():
        raise BadValue(f"{out} is the file that the copy is made of; name another one")
    biases = _biases(model, edit)
    reader = GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    held = {tensor.name: tensor for tensor in reader.tensors}
    if architecture not in READ_BY_LLAMA_CPP and not any(name.endswith("attn_output.bias") for name in held):
        raise UnsupportedModel(
            f"llama.cpp does not read a bias behind attention in a model of architecture {architecture!r} (it does for "
            f"{', '.join(READ_BY_LLAMA_CPP)}, and where a file has such biases); write a checkpoint instead (trimtab "
            "bake --out FOLDER)"
        )
    added: dict[str, Float[np.ndarray, " width"]] = {}
    for layer, bias in biases.items():
        name = f"blk.{layer}.attn_output.bias"
        if f"blk.{layer}.attn_output.weight" not in held:
            raise UnsupportedModel(f"{file} has no layer {layer} with attention: it is not the file of this model")
        own = held[name].data.astype(np.float32) if name in held else np.float32(0)
        added[name] = (own + bias).astype(np.float32)
    with written_file(out) as staging:
        _write(reader, architecture, added, staging)
        _require_copied(reader, added, staging)
    return {layer: float(np.linalg.norm(bias)) for layer, bias in biases.items()}


def _biases(model: Any, edit: Edit) -> dict[int, Float[np.ndarray, " width"]]:
    found = {}
    for name, constant in edit.constants(model).items():
        place = ATTENTION_OUTPUT.search(name)
        if place is None:
            raise BadValue(
                f"{edit.name} adds to {name}, for which a GGUF file has no tensor; only shifts of attention heads can "
                "be written: fit one with --site heads, or write a checkpoint (trimtab bake --out FOLDER)"
            )
        found[int(place[1])] = constant.detach().float().cpu().numpy()
    if not any(bias.any() for bias in found.values()):
        raise BadValue(f"{edit.name} (strength {edit.strength}) changes nothing: there is nothing to write")
    return found


def _write(reader: Any, architecture: str, added: Mapping[str, np.ndarray], out: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    writer = GGUFWriter(out, architecture, endianess=reader.endianess)
    for field in reader.fields.values():
        # the writer's own, and what the reader makes of the header
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    written = []
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if tensor.name in added:
            data, kind = added[tensor.name], GGMLQuantizationType.F32
        written.append((tensor.name, data, kind))
    present = {name for name, *_ in written}
    written += [(n, data, GGMLQuantizationType.F32) for n, data in added.items() if n not in present]
    for name, data, kind in written:
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, data, _ in written:
        writer.write_tensor_data(data, tensor_endianess=reader.endianess)
    writer.close()


def _require_copied(reader: Any, added: Mapping[str, np.ndarray], out: Path) -> None:
    from gguf import GGUFReader

    copy = GGUFReader(out)
    new = {tensor.name: tensor for tensor in copy.tensors}
    same = all(
        tensor.name in added or np.array_equal(tensor.data, new[tensor.name].data) for tensor in reader.tensors
    ) and all(np.array_equal(new[name].data, bias) for name, bias in added.items())
    said = {n: f.contents() for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    if not same or said != {n: f.contents() for n, f in copy.fields.items() if not n.startswith("GGUF.")}:
        raise Incompatible(f"{out} does not hold what was written to it; check the disk, and the release of gguf")
