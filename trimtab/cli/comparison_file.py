"""The YAML file that describes a comparison, read into methods, questions, design and meters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.compare import Job
    from trimtab.datasets import QuestionSet
    from trimtab.edits import Method

QUICK_LEFT_OUT = (
    "two of three seeds, one of two folds, half of the trials, all but 50 of the "
    "test questions, all but 120 of the training questions, and every tuning method but LoRA (at 3 passes over the "
    "data); its intervals are wide"
)


@dataclass(frozen=True)
class ComparisonFile:
    """What the file may say; every key may be left out."""

    model: str = "embedded"
    questions: str = "folklore"
    """A file or a name; folklore means its development part, with its final part to test on."""
    test: str | None = None
    """Another file to measure on; each fold's held-out part if not given."""
    limit: int | None = None
    """Use only the first so many questions."""
    test_limit: int | None = None
    methods: Sequence[Any] = ("few-shot", "retrieved few-shot", "iti", "random direction", "few-shot + iti")
    folds: int = 2
    seeds: Sequence[int] = (0, 1, 2)
    trials: int = 8
    kl_budget: float = 0.1
    validation: float = 0.25
    train_sizes: Sequence[int | str] = ("all",)
    metric: str = "true_info"
    convention: str = "plain"
    max_new_tokens: int = 50
    texts: str | None = None
    """A file of neutral texts, one a line; trimtab's own if not given."""
    load: Mapping[str, str] = field(default_factory=dict)
    """Options of load_model: dtype, device, quantization, revision."""


def read_comparison_file(path: Path) -> ComparisonFile:
    """Return what a YAML file says.

    Raises:
        BadValue: it cannot be read as YAML, or has keys that a comparison does not know.
    """
    import yaml

    from trimtab.errors import BadValue

    if not path.is_file():
        raise BadValue(f"there is no file {path}; give a YAML file that describes the comparison")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as cause:
        raise BadValue(f"{path} cannot be read as YAML: {' '.join(str(cause).split())}") from cause
    if not isinstance(said, dict):
        raise BadValue(f"{path} must hold keys such as `methods:` and `trials:`, got {type(said).__name__}")
    unknown = set(said) - set(ComparisonFile.__dataclass_fields__)
    if unknown:
        known = ", ".join(ComparisonFile.__dataclass_fields__)
        raise BadValue(f"{path}: unknown key {sorted(map(str, unknown))[0]!r}; the keys are {known}")
    return ComparisonFile(**said)


def quick() -> ComparisonFile:
    """Return the small comparison of `--quick`."""
    methods = ("few-shot", "retrieved few-shot", "iti", "random direction", "few-shot + iti", "lora")
    return ComparisonFile(folds=1, seeds=(0,), trials=2, test_limit=50, limit=120, methods=methods, max_new_tokens=24)


def job_of(said: ComparisonFile) -> "Job":
    """Return the comparison that the file describes.

    Raises:
        BadValue, BadDataset: naming the key whose value cannot be used.
    """
    from trimtab.compare import Design, Job, Meters
    from trimtab.compare.design import named
    from trimtab.errors import BadValue

    questions, test = _questions(said)
    try:
        design = Design(
            said.folds, tuple(said.seeds), said.trials, said.kl_budget, said.validation,
            tuple(None if n == "all" else int(n) for n in said.train_sizes),
        )  # fmt: skip
        meters = Meters(
            convention=said.convention,  # pyright: ignore[reportArgumentType]
            metric=said.metric,  # pyright: ignore[reportArgumentType]
            max_new_tokens=said.max_new_tokens,
            texts=None if said.texts is None else read_lines(Path(said.texts)),
        )
    except (TypeError, ValueError) as cause:
        raise BadValue(
            f"the comparison's numbers cannot be used: {cause}; see docs/comparing.md for an example"
        ) from cause
    return Job(named([method_of(m) for m in said.methods]), questions, test, design, meters)


def read_lines(path: Path) -> list[str]:
    """Return a file's lines that are not empty; raises `BadDataset` if it cannot be read."""
    from trimtab.errors import BadDataset

    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as cause:
        raise BadDataset(f"{path} cannot be read as UTF-8 text; neutral texts are a file with one a line") from cause


def _questions(said: ComparisonFile) -> "tuple[QuestionSet, QuestionSet | None]":
    from trimtab.cli.setup import read_data

    if said.questions == "folklore" and said.test is None:
        return read_data("folklore", part="development", limit=said.limit), read_data(
            "folklore", part="final", limit=said.test_limit
        )
    test = None if said.test is None else read_data(said.test, limit=said.test_limit)
    return read_data(said.questions, limit=said.limit), test


def method_of(said: Any) -> "Method":
    """Return the method that an entry of `methods:` means.

    An entry is a name (`iti`), a name with options (`lora: {r: 8}`), names joined by + for a stack, or
    `stack: [...]` of such entries. The option `grid` adds knobs to try: `lora: {grid: {epochs: [5, 15]}}`.

    Raises:
        BadValue: an unknown name (the known ones are listed) or options that the method does not have.
    """
    from trimtab.compare import Stack

    if isinstance(said, str) and "+" in said:
        return Stack(tuple(method_of(part.strip()) for part in said.split("+")))
    if isinstance(said, Mapping) and len(said) == 1:
        name, options = next(iter(said.items()))
        if name == "stack":
            return Stack(tuple(method_of(part) for part in options))
    else:
        name, options = said, {}
    return _made(name, dict(options or {}))


def _made(name: Any, options: dict[str, Any]) -> "Method":
    from trimtab.cli.setup import nearest
    from trimtab.cli.tuning_methods import tuning_methods
    from trimtab.compare import OnQuantized, Widened
    from trimtab.errors import BadValue

    known, tuned = known_methods(), tuning_methods()
    key = str(name).lower()
    if key not in known and key.removeprefix("q") not in tuned:
        raise BadValue(f"unknown method {name!r:.60}{nearest(key, [*known, *tuned, 'qlora'])}")
    grid = options.pop("grid", {})
    try:
        if key in known:
            method = known[key](**_tuples(options))
        else:
            # a leading q is a tuning method on a 4-bit copy: qlora
            plain = key in tuned
            method = tuned[key if plain else key.removeprefix("q")].with_knobs(_tuples(options))
            method = method if plain else OnQuantized(method)
        knobs = tuple((knob, tuple(values)) for knob, values in grid.items())
    except (TypeError, AttributeError) as cause:
        raise BadValue(f"the method {name!r} cannot be made from {options!r} and grid {grid!r}: {cause}") from cause
    return Widened(method, knobs) if knobs else method


def known_methods() -> "dict[str, Callable[..., Method]]":
    """Return name -> what makes the method, besides the tuning methods."""
    from trimtab.compare import FewShot, Ready, RetrievedFewShot, RetrievedPassages
    from trimtab.edits import NoEdit
    from trimtab.steer import CAA, ITI, RandomDirection

    return {
        "none": lambda: Ready(NoEdit()),
        "few-shot": FewShot,
        "retrieved few-shot": RetrievedFewShot,
        "retrieved passages": RetrievedPassages,
        "iti": ITI,
        "iti probe": lambda **options: ITI(direction="probe", **options),
        "random direction": RandomDirection,
        "caa": CAA,
    }


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
