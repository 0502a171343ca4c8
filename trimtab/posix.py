"""What only POSIX systems have, said in one sentence elsewhere."""

from importlib import import_module
from typing import Any

from trimtab.errors import Incompatible


def posix_module(name: str, what: str) -> Any:
    """Return a module of Python's that Windows lacks; raises `Incompatible`, naming what needs it."""
    try:
        return import_module(name)
    except ImportError as cause:
        raise Incompatible(f"{what} needs Linux or macOS ({name}); on Windows, run it under WSL") from cause
