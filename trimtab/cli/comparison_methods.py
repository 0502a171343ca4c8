"""The entries of `methods:` in a comparison's file, read into methods and controls."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.cli.method_names import METHODS, TUNING
from trimtab.cli.user_code import is_user_code, open_instance
from trimtab.errors import BadValue, nearest

if TYPE_CHECKING:
    from trimtab.protocols import Control, Method


def method_of(said: Any) -> "Method | Control":
    """Return the method or control that an entry of `methods:` means.

    An entry is a name (`iti`, or FILE.py:NAME of a method, control or edit of one's own), a name with options
    (`lora: {r: 8}`), names joined by + for a stack, `stack: [...]` of such entries, an edit that a folder holds
    (`edit: runs/shift`), or a control that is searched as the entry below it is (`random tries: iti`,
    `shuffled labels: iti`).
    The option `grid` adds knobs to try: `lora: {grid: {epochs: [5, 15]}}`.

    Raises:
        BadValue: an unknown name (the nearest ones are offered), or options or knobs that the method does not have.
        Incompatible: a folder that holds no edit.
    """
    if isinstance(said, str) and "+" in said:
        return _stacked([part.strip() for part in said.split("+")])
    if not isinstance(said, Mapping):
        if said in CONTROLS_OF_A_METHOD:
            raise BadValue(f"{said!r} needs the method that it stands beside, such as `{said}: iti`")
        return _made(said, {})
    if len(said) != 1:
        raise BadValue(f"an entry of methods is one name, with its options below it; got {', '.join(map(str, said))}")
    name, options = next(iter(said.items()))
    if name in CONTROLS_OF_A_METHOD:
        return _beside(str(name), options)
    if name == "edit":
        return _saved(options)
    if name == "stack":
        if not isinstance(options, list):
            raise BadValue(f"a stack is a list of methods, such as `stack: [lora, iti]`; got {options!r:.60}")
        return _stacked(options)
    if not isinstance(options, Mapping | None):
        raise BadValue(f"the options of {name!r} are keys with values, such as `lora: {{r: 8}}`; got {options!r:.60}")
    return _made(name, dict(options or {}))


def rows_of(entries: Sequence[Any]) -> "dict[str, Method | Control]":
    """Return the methods of `methods:` by the names of their rows; the option `name` gives a row a name of its own.

    Raises:
        BadValue: as `method_of`; two rows of one name.
    """
    rows = {}
    for entry in entries:
        own, said = _own_name(entry)
        method = method_of(said)
        name = own or method.name
        if name in rows:
            raise BadValue(
                f"two methods are called {name!r}; give one of them another name, such as "
                "`iti: {name: ITI (8 heads), top_ks: [8]}`, or `edit: {folder: runs/shift, name: Mine}`"
            )
        rows[name] = method
    return rows


def _own_name(entry: Any) -> tuple[str | None, Any]:
    if not isinstance(entry, Mapping) or len(entry) != 1:
        return None, entry
    method, options = next(iter(entry.items()))
    if not isinstance(options, Mapping) or "name" not in options:
        return None, entry
    own = options["name"]
    if not isinstance(own, str) or not own.strip():
        raise BadValue(f"the method {method!r}: name must be text, got {own!r:.60}")
    return own, {method: {key: value for key, value in options.items() if key != "name"}}


def _saved(said: Any) -> "Method | Control":
    from trimtab.cli.setup import open_edit
    from trimtab.protocols import as_entrant

    folder = said["folder"] if isinstance(said, Mapping) and set(said) == {"folder"} else said
    if not isinstance(folder, str):
        raise BadValue(
            "edit takes the folder of a saved edit, such as `edit: runs/shift` or `edit: {folder: runs/shift, name: "
            f"Mine}}`; got {said!r:.60}"
        )
    return as_entrant(open_edit([folder]))


def _stacked(parts: list[Any]) -> "Method":
    from trimtab.compare.stack import Stack

    methods: list[Any] = [method_of(part) for part in parts]
    for method in methods:
        if method.follows is not None:
            raise BadValue(f"{method.name} is a control of a whole row; it cannot be part of a stack")
    return Stack(tuple(methods))


CONTROLS_OF_A_METHOD = ("random tries", "shuffled labels")


def _beside(name: str, said: Any) -> "Method":
    from trimtab.compare.controls import RandomTries, ShuffledLabels

    method: Any = method_of(said)
    if method.follows is not None or method.control_of is not None:
        raise BadValue(f"{name!r} is a control of a method, such as `{name}: iti`; {method.name} is a control itself")
    return (RandomTries if name == "random tries" else ShuffledLabels)(method)


def _made(name: Any, options: dict[str, Any]) -> "Method | Control":
    from trimtab.compare.on_quantized import OnQuantized
    from trimtab.compare.widened import STRENGTH, Widened
    from trimtab.protocols import as_entrant

    key, where = str(name).lower(), f"the method {name!r}"
    # a leading q is a tuning method on a 4-bit copy: qlora
    quantized = key not in METHODS and key.removeprefix("q") in TUNING
    named = METHODS.get(key.removeprefix("q") if quantized else key)
    if named is None and not is_user_code(str(name)):
        raise BadValue(f"unknown method {name!r:.60}{nearest(key, [*METHODS, 'qlora'])}")
    grid = options.pop("grid", {})
    given = named.made(options, where) if named else open_instance(str(name), "method", options)
    method: Any = as_entrant(given)
    method = OnQuantized(method) if quantized else method
    if not grid:
        return method
    if not isinstance(grid, Mapping) or not all(isinstance(values, list) for values in grid.values()):
        raise BadValue(f"{where}: grid holds knobs with lists of values, such as {{epochs: [5, 15]}}; got {grid!r:.60}")
    if method.follows is not None:
        raise BadValue(f"{where} is a control and chooses nothing; leave out its grid")
    for knob, values in grid.items():
        known = {*method.grid[0], STRENGTH}
        if named and named in TUNING.values() and knob != STRENGTH:
            for value in values:
                named.made({**options, knob: value}, f"{where}: grid")
        elif knob not in known:
            raise BadValue(f"{where} has no knob {knob!r}{nearest(str(knob), known)}")
    return Widened(method, tuple((knob, tuple(values)) for knob, values in grid.items()))
