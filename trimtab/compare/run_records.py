"""RunRecords: the records of a run, and which of them belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from trimtab.compare.design import BASELINE, Unit
from trimtab.compare.specification import planned
from trimtab.errors import Incompatible
from trimtab.protocols import Meter

Variant = Literal["best", "within"]


@dataclass(frozen=True)
class RunRecords:
    """A run, finished or not: what was compared, by which meters, and every record."""

    specification: dict[str, Any]
    trials: tuple[dict[str, Any], ...]
    tests: tuple[dict[str, Any], ...]
    meters: tuple[Meter, ...] = field(compare=False)

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in the order in which they were given."""
        return list(self.specification["methods"])

    @property
    def sizes(self) -> list[int | None]:
        """Numbers of training questions that were planned; the last one, None where it is all, is the main table's."""
        return list(planned(self.specification))

    @property
    def n_units(self) -> int:
        """Folds times seeds: how often every method is measured at one size."""
        design = self.specification["design"]
        return design["folds"] * len(design["seeds"])

    @property
    def n_planned(self) -> int:
        """Last measurements of a finished run."""
        return self.n_units * sum(len(methods) for methods in planned(self.specification).values())

    @property
    def finished(self) -> bool:
        """Whether every method was measured, or recorded as failed, everywhere."""
        return len(self.tests) == self.n_planned

    @property
    def failed_everywhere(self) -> list[str]:
        """Names of the methods that failed wherever they were to be measured."""
        wanted = Counter(name for names in planned(self.specification).values() for name in names)
        failed = Counter(t["method"] for t in self.tests if t["status"] == "failed")
        return [name for name in self.methods if failed[name] == self.n_units * wanted[name]]

    def worded(self, text: str, part: Literal["test", "questions"] = "test") -> str:
        """Return a text about questions as one about what the run's items are: facts, prompts.

        Of those that it is measured on, or (`"questions"`) of those that it is fitted and chosen on.
        """
        said = self.specification.get(part) or self.specification["questions"]
        return text.replace("question", said.get("item", "question"))

    @property
    def chooser(self) -> Meter:
        """The meter that settings were chosen by."""
        return self.meter(self.specification["design"]["choose_by"])

    @property
    def main(self) -> Meter:
        """The meter that pictures and conclusions are about: the first one that can tell something here."""
        return next((meter for meter in self.meters if meter.name not in self.mute), self.meters[0])

    @property
    def valued(self) -> tuple[Meter, ...]:
        """The meters that have no rows of items, but a value for every edit."""
        found = {
            name
            for t in self.tests
            if t["status"] == "done"
            for m in self.measurements(t, "best")
            for name in m["values"]
        }
        return tuple(meter for meter in self.meters if meter.name in found)

    @property
    def summed(self) -> tuple[Meter, ...]:
        """The meters that sum up rows of items."""
        valued = [meter.name for meter in self.valued]
        return tuple(meter for meter in self.meters if meter.name not in valued)

    @property
    def mute(self) -> dict[str, str]:
        """Name of a meter that can tell nothing of any edit here -> why, as the unedited model showed everywhere."""
        units = [t.get("mute", {}) for t in self.of(BASELINE, self.sizes[-1]) if t["status"] == "done"]
        return {name: why for name, why in units[0].items() if all(name in unit for unit in units)} if units else {}

    @property
    def control_of(self) -> dict[str, str]:
        """Name of a control's row -> name of the method whose effect it could have had by luck."""
        return {key: name for of in ("controls", "control_of") for key, name in self.specification.get(of, {}).items()}

    def meter(self, name: str) -> Meter:
        """Return the meter of this name."""
        return next(meter for meter in self.meters if meter.name == name)

    def instrument(self, meter: Meter) -> str:
        """Return the name under which records keep the rows that a meter sums up."""
        return next(m["instrument"] for m in self.specification["meters"] if m["name"] == meter.name)

    def of(self, method: str, size: int | None = None) -> list[dict[str, Any]]:
        """Return a method's last measurements at one size."""
        return [t for t in self.tests if t["method"] == method and t["size"] == size]

    def trial(self, test: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Return the record of a trial of the same unit as a last measurement."""
        for trial in self.trials_of(test):
            if trial["step"] == number:
                return trial
        raise Incompatible(
            f"{test['method']}, fold {test['fold']}, seed {test['seed']}: there is a measurement of trial {number} and "
            "no record of it; delete the measurement (its test.json in records/) and run the comparison again"
        )

    def trials_of(self, test: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the trials of the same unit as a last measurement."""
        return self._by_unit.get(_unit(test), [])

    @cached_property
    def _by_unit(self) -> dict[Unit, list[dict[str, Any]]]:
        found: dict[Unit, list[dict[str, Any]]] = {}
        for trial in self.trials:
            found.setdefault(_unit(trial), []).append(trial)
        return found

    def measurements(self, test: Mapping[str, Any], variant: Variant) -> list[dict[str, Any]]:
        """Return the last measurement of a method's chosen setting, or those of a control's draws."""
        if "follows" in test:
            return [t["measured"] for t in self.trials_of(test) if t["status"] == "done"]
        return [test["measured"][str(test[variant])]]

    @property
    def machines(self) -> dict[str, int]:
        """What the measurements and trials were made on, each with how many of them; the most frequent first."""
        unknown = f"not recorded (the run was begun on {self.specification['hardware']})"
        return dict(Counter(r.get("machine", unknown) for r in (*self.trials, *self.tests)).most_common())

    @property
    def peak_kinds(self) -> dict[str, int]:
        """What the peak memory of the trials is a peak of, each with how many of them; the most frequent first."""
        made = [t["made"] for t in self.trials if t["status"] == "done"]
        return dict(Counter(m["peak_kind"] for m in made if m["peak_bytes"] is not None).most_common())

    @property
    def crowds(self) -> dict[str, int]:
        """How many processes shared a device, each with how many records were made so."""
        return dict(Counter(str(r.get("workers", "not recorded")) for r in (*self.trials, *self.tests)).most_common())


def _unit(record: Mapping[str, Any]) -> Unit:
    return Unit(*(record[f] for f in Unit._fields))
