"""What is the user's own: FILE.py:NAME on the command line, a function or class, and what a comparison's file names."""

import ast
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from trimtab.cli.checking import made
from trimtab.errors import BadValue, nearest
from trimtab.plain_values import hash_of


@dataclass(frozen=True)
class UserObject:
    """What a user's file calls by a name."""

    value: Any
    path: Path
    record: dict[str, Any]
    """Goes into results: a changed file is another judge."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return what the function returns; what it raises becomes a `BadValue` that names file and line."""
        try:
            return self.value(*arguments, **options)
        except Exception as cause:
            raise BadValue(f"{self.record['name']} failed{_place(cause, self.path)}: {_said(cause)}") from cause


def is_user_code(spec: str) -> bool:
    """Return whether an option's value has the form FILE.py:NAME."""
    return ".py:" in spec


def hash_of_code(said: Any) -> str | None:
    """Return a hash of what an entry of a comparison names as FILE.py:NAME or `edit: DIR`; None if it names nothing.

    Modules beside such a file that it imports belong to it, and those that they import.
    """
    files = sorted({path for path in _files_in(said) if path.is_file()})
    return hash_of([hash_of(path.read_bytes()) for path in files])[:16] if files else None


def _files_in(said: Any) -> Iterator[Path]:
    if isinstance(said, str):
        for part in said.split("+"):
            if is_user_code(part):
                yield from _with_imported(Path(part.strip().rpartition(":")[0]).expanduser())
    elif isinstance(said, Mapping):
        yield from _files_in([*said, *said.values()])
        saved = said.get("edit")
        folder = saved.get("folder") if isinstance(saved, Mapping) else saved
        if isinstance(folder, str):
            yield from with_strength(folder)[0].rglob("*")
    elif isinstance(said, list | tuple):
        for one in said:
            yield from _files_in(one)


def _with_imported(path: Path) -> set[Path]:
    found, left = set[Path](), [path]
    while left:
        file = left.pop()
        if file not in found and file.is_file():
            found.add(file)
            for name in _imported_by(file):
                left += [path.parent / f"{name}.py", *(path.parent / name).rglob("*.py")]
    return found


def _imported_by(file: Path) -> set[str]:
    """Return the modules and packages that a file imports, but trimtab, whose version a comparison has anyway."""
    names = set[str]()
    with suppress(SyntaxError):  # of a file that nothing has imported yet
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - {"trimtab"}


def with_strength(spec: str) -> tuple[Path, float | None]:
    """Return the folder that DIR[:STRENGTH] names, and the strength behind its colon, or None."""
    folder, colon, strength = spec.rpartition(":")
    with suppress(ValueError):
        if colon and not Path(spec).exists():
            return Path(folder).expanduser(), float(strength)
    return Path(spec).expanduser(), None


def open_object(spec: str, what: str = "function") -> UserObject:
    """Return what FILE.py:NAME names. The file is run, as `python FILE.py` would run it as a module.

    Args:
        what: what is expected of it, for the message.

    Raises:
        BadValue: no such file, it fails, or it has no such name (the nearest ones are offered).
    """
    given, _, name = spec.rpartition(":")
    path = Path(given).expanduser()
    try:
        digest = hash_of(path.read_bytes())
    except OSError as cause:
        raise BadValue(f"{path} cannot be read ({cause.strerror}); give FILE.py:NAME, a {what} in a file") from cause
    found = _run(path, digest)
    known = [n for n, value in found.items() if callable(value) and not n.startswith("_")]
    if name not in found:
        raise BadValue(f"{path} has no {what} {name!r}{nearest(name, known)}")
    return UserObject(found[name], path, {"name": f"{path.name}:{name}", "sha256": digest})


def open_instance(spec: str, what: str, options: Mapping[str, Any] | None = None) -> Any:
    """Return what FILE.py:NAME names: an instance as it is, a class called with these options.

    Raises:
        BadValue: as `open_object`; options that the class does not take, or for what is no class.
    """
    found = open_object(spec, what)
    if isinstance(found.value, type):
        return made(found.value, options, spec) if options and is_dataclass(found.value) else found(**(options or {}))
    if options:
        raise BadValue(f"{spec} is no class, so that it takes no options; leave out {', '.join(map(str, options))}")
    return found.value


def _run(path: Path, digest: str) -> dict[str, Any]:
    """Return a file's names; they are of one module however many are asked for, so that its classes know each other."""
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    name = f"trimtab_user_{path.stem}"
    there = vars(sys.modules.get(name, object))
    if (there.get("__file__"), there.get("__sha256__")) == (str(path.absolute()), digest):
        return dict(there)
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        raise BadValue(f"{path} cannot be run{_place(cause, path)}: {_said(cause)}") from cause
    vars(module)["__sha256__"] = digest
    return dict(vars(module))


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
