"""What makes two runs the same comparison, as plain values: the record that a run folder opens with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trimtab.compare.machine import hardware
from trimtab.compare.recorded_meters import recorded
from trimtab.compare.search import SEARCH
from trimtab.errors import Incompatible
from trimtab.models.identity import fingerprint
from trimtab.plain_values import hash_of, in_words
from trimtab.protocols import settings_of
from trimtab.storage import versions

if TYPE_CHECKING:
    from trimtab.compare.design import Job

GROWS = ("methods", "told", "code", "grids", "controls", "control_of", "planned")
"""What may be added to a run: methods, the user's code of some, how many settings they have, whom controls follow or
stand beside, methods at each size."""
FREE = ("versions", "hardware")
"""Those of the process that began the run; every record says on which machine it was made."""


_PLACE = re.compile(" at 0x[0-9a-f]+")
"""Where an object, such as a function, stands in memory: another place in every process."""


def specification(job: Job, model: Any) -> dict[str, Any]:
    """Return what a run compares, and with what."""
    made_on = fingerprint(model)
    return {
        "design": job.design.as_dict(),
        "search": SEARCH,
        "meters": recorded(job.meters),
        "model": {**made_on, "sample": hash_of(made_on["sample"])[:16]},
        "questions": _described(job.questions),
        "test": _described(job.test) if job.test else None,
        "methods": {name: _PLACE.sub("", repr(method)) for name, method in job.methods.items()},
        "told": {name: in_words(method) for name, method in job.methods.items()},
        "code": dict(job.code),
        "grids": {name: len(settings_of(method)) for name, method in job.fitted.items()},
        "controls": {name: control.follows for name, control in job.controls.items()},
        "control_of": {name: m.control_of for name, m in job.fitted.items() if m.control_of is not None},
        "planned": {_key(size): job.methods_at(size) for size in job.design.train_sizes},
        "versions": versions(),
        "hardware": hardware(model),
    }


def _described(questions: Any) -> dict[str, Any]:
    return {
        "name": questions.name,
        "n": len(questions),
        "item": questions.item_word,
        "fingerprint": questions.fingerprint,
    }


def _key(size: int | None) -> str:
    return "all" if size is None else str(size)


def planned(specification: Mapping[str, Any]) -> dict[int | None, list[str]]:
    """Return number of training questions -> the methods to measure there; smaller numbers first, None (all) last."""
    found = specification.get("planned")
    if found is None:
        return {size: list(specification["methods"]) for size in specification["design"]["train_sizes"]}
    sizes = {None if key == "all" else int(key): list(names) for key, names in found.items()}
    return dict(sorted(sizes.items(), key=lambda item: (item[0] is None, item[0] or 0)))


def grown(held: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return a run's specification with what another one adds, and the methods whose records no longer hold.

    These are the ones whose settings differ, and the controls that follow them.

    Raises:
        Incompatible: they differ in more than methods and numbers of training questions.
    """
    differing = [key for key in ours if key not in (*GROWS, *FREE) and _fixed(ours[key]) != _fixed(held.get(key))]
    if differing:
        raise Incompatible(f"it differs in {', '.join(differing)}")
    # a run of before says nothing of code
    kept = [(ours[key], held.get(key, {})) for key in ("methods", "code")]
    changed = {name for now, then in kept for name, text in now.items() if then.get(name, text) != text}
    if others := changed - ours["methods"].keys():
        raise Incompatible(f"it differs in the code of {', '.join(sorted(others))}")
    changed |= {
        name for name, follows in {**held.get("controls", {}), **ours["controls"]}.items() if follows in changed
    }
    both = joint_specification(held, ours)
    both["design"] = {**held["design"], "train_sizes": list(planned(both))}
    return both, changed


def joint_specification(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first specification with the second one's methods, at the sizes that they are planned at."""
    both = {**one, **{key: {**one.get(key, {}), **other.get(key, {})} for key in GROWS}}
    both["planned"] = {_key(size): names for size, names in planned(one).items()}
    for size, names in planned(other).items():
        both["planned"][_key(size)] = list(dict.fromkeys([*both["planned"].get(_key(size), ()), *names]))
    return both


def _fixed(value: Any) -> Any:
    return {k: v for k, v in value.items() if k not in ("train_sizes", "item")} if isinstance(value, Mapping) else value
