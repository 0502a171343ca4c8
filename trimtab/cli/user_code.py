"""FILE.py:NAME on the command line: a user's own function."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import BadValue


@dataclass(frozen=True)
class UserFunction:
    """A function of a user's file; what it raises becomes one sentence that names file and line."""

    function: Callable[..., Any]
    path: Path
    record: dict[str, Any]
    """Goes into results: a changed file is another judge."""

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns; raises `BadValue` if it fails."""
        try:
            return self.function(*arguments)
        except Exception as cause:
            raise BadValue(f"{self.record['name']} failed{_place(cause, self.path)}: {_said(cause)}") from cause


def is_user_function(spec: str) -> bool:
    """Return whether an option's value has the form FILE.py:NAME."""
    return ".py:" in spec


def open_object(spec: str) -> Any:
    """Return what FILE.py:NAME names; raises `BadValue` as `open_function` does."""
    return _opened(spec)[0]


def open_function(spec: str) -> UserFunction:
    """Return the function that FILE.py:NAME names. The file is run, as `python FILE.py` would run it as a module.

    Raises:
        BadValue: no such file, it fails, or it has no such function (the nearest names are offered).
    """
    value, path, digest = _opened(spec)
    if not callable(value):
        raise BadValue(f"{spec} is no function; give FILE.py:NAME, a function in a file")
    name = spec.rpartition(":")[2]
    return UserFunction(value, path, {"name": f"{path.name}:{name}", "sha256": digest})


def _opened(spec: str) -> tuple[Any, Path, str]:
    from trimtab.cli.setup import nearest

    given, _, name = spec.rpartition(":")
    path = Path(given).expanduser()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as cause:
        raise BadValue(f"{path} cannot be read ({cause.strerror}); give FILE.py:NAME, a function in a file") from cause
    found = _run(path)
    known = [n for n in found if not n.startswith("_")]
    if name not in known:
        raise BadValue(f"{path} has no function {name!r}{nearest(name, known)}")
    return found[name], path, digest


def _run(path: Path) -> dict[str, Any]:
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    name = f"trimtab_user_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        raise BadValue(f"{path} cannot be run{_place(cause, path)}: {_said(cause)}") from cause
    return vars(module)


def _place(cause: BaseException, path: Path) -> str:
    """Return the last line of the file that was running."""
    if isinstance(cause, SyntaxError):
        return f" in line {cause.lineno}"
    lines, trace = [], cause.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path.resolve() or trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" in line {lines[-1]}" if lines else ""


def _said(cause: BaseException) -> str:
    said = cause.msg if isinstance(cause, SyntaxError) else str(cause).split("\n")[0]
    return f"{type(cause).__name__}{f' ({said})' if said else ''}"
