"""Where Python lacks a module of POSIX, the sentence says what to do."""

from __future__ import annotations

import sys

import pytest

from trimtab.errors import Incompatible
from trimtab.posix import posix_module


def test_what_needs_posix_says_so(monkeypatch):
    assert posix_module("fcntl", "this").flock
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(Incompatible, match=r"a comparison needs Linux or macOS \(fcntl\); on Windows,"):
        posix_module("fcntl", "a comparison")
