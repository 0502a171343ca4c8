"""The YAML file that describes a comparison, read into methods, questions, design and meters."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from trimtab.cli.checking import made, yaml_value
from trimtab.cli.comparison_methods import rows_of
from trimtab.errors import BadValue, nearest

if TYPE_CHECKING:
    from trimtab.compare.design import Job
    from trimtab.datasets.behaviours import Behaviour
    from trimtab.datasets.item_set import ItemSet

QUICK_LEFT_OUT = (
    "beside the shipped comparison, two of three seeds, one of two folds, half of the trials, seven of ten random "
    "draws, all but 50 of the test questions, all but 120 of the training questions, ITI along probe weights, CAA, "
    "LoRA + ITI, and every tuning method but LoRA (at 3 passes over the data); its intervals are wide"
)


Count = Annotated[int, Field(ge=1)]
USUAL: Mapping[str, Sequence[str | Mapping[str, Any]]] = {
    "answers": (
        "few-shot",
        "retrieved few-shot",
        "iti",
        "random direction",
        {"random tries": "iti"},
        "few-shot + iti",
    ),
    "facts": ("facts in context", "rome", "memit", "alphaedit", "ft-l", "lora"),
}
"""What a set is measured by -> the methods that are compared if none are named; the first row's for others."""


@dataclass(frozen=True)
class LoadOptions:
    """How the model is loaded, as in `load_model`."""

    dtype: str | None = None
    device: str | None = None
    quantization: str | None = None
    revision: str | None = None
    gguf_file: str | None = None


@dataclass(frozen=True)
class ComparisonFile:
    """What the file may say; every key may be left out. Values are checked against these types."""

    model: str = "embedded"
    questions: str = "folklore"
    """A file or a name; folklore means its development part, with its final part to test on, and a behaviour that
    ships its pairs, with its property counted in answers to its neutral prompts."""
    test: str | None = None
    """Another file to measure on; each fold's held-out part if not given."""
    limit: Count | None = None
    """Use only the first so many questions."""
    test_limit: Count | None = None
    methods: Annotated[Sequence[str | Mapping[str, Any]], Field(min_length=1)] | None = None
    """Those of `USUAL` for such items if not given."""
    folds: Count = 2
    seeds: Annotated[Sequence[Annotated[int, Field(ge=0)]], Field(min_length=1)] = (0, 1, 2)
    trials: Count = 8
    kl_budget: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.25
    train_sizes: Annotated[Sequence[Annotated[int, Field(ge=3)] | Literal["all"]], Field(min_length=1)] = ("all",)
    """Numbers of training questions for a low-data curve."""
    low_data_methods: Sequence[str] | None = None
    """The methods that the curve shows, as `methods` names them; all of them if not given."""
    judge: str = "exact"
    """As `--judge` of `trimtab evaluate`, or `none`: then answers are not judged, and MC1 chooses; the key for an
    address is taken from TRIMTAB_JUDGE_KEY."""
    judge_model: str | None = None
    """The model to ask for at an OpenAI-compatible address."""
    capability: Sequence[str] = ()
    """Files of choices with one right answer (MMLU's, ARC's form), measured beside the hundred that ship."""
    off_target: Sequence[str] = ()
    """Files of contrast pairs of other behaviours, which edits ought to leave as they are."""
    refusals: str | None = None
    """A file of prompts that ought to be answered: the share that is refused is counted."""
    two_way: bool = False
    """Whether questions are asked with two lettered options as well, the best answer and the first false one."""
    meters: Sequence[str] = ()
    """Meters of your own, FILE.py:NAME, measured beside those that speak of the questions."""
    metric: str | None = None
    """The meter that settings are chosen by; the first one (true_info of questions) if not given."""
    asking: Literal["auto", "plain", "bare", "primer", "chat"] = "auto"
    """How questions are asked in fitting and measuring alike: in the chat template of a model that has one, if auto."""
    convention: Literal["plain", "bare", "primer", "chat", "lm-eval", "iti"] | None = None
    """How multiple choice asks, if otherwise."""
    max_new_tokens: Count = 50
    texts: str | Count | None = None
    """A file of neutral texts, one a line, or how many of trimtab's own: a fifth is chosen on; all of them if not
    given."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """See `LoadOptions`."""


def read_comparison_file(path: Path) -> ComparisonFile:
    """Return what a YAML file says.

    Raises:
        BadValue: it cannot be read as YAML, or a key or its value is none that a comparison knows.
    """
    if not path.is_file():
        raise BadValue(f"there is no file {path}; give a YAML file that describes the comparison")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise BadValue(f"{path} cannot be read as YAML: {cause}") from cause
    said = yaml_value(text, f"{path} cannot be read as YAML")
    if not isinstance(said, dict):
        raise BadValue(f"{path} must hold keys such as `methods:` and `trials:`, got {type(said).__name__}")
    file = made(ComparisonFile, said, str(path))
    made(LoadOptions, file.load, f"{path}: load")
    return file


def quick() -> ComparisonFile:
    """Return the small comparison of `--quick`."""
    controls = {"random direction": {"draws": 3}}, {"random tries": "iti"}
    methods = ("few-shot", "retrieved few-shot", "iti", *controls, "few-shot + iti", "lora")
    return ComparisonFile(folds=1, seeds=(0,), trials=2, test_limit=50, limit=120, methods=methods, max_new_tokens=24)


def job_of(said: ComparisonFile) -> "Job":
    """Return the comparison that the file describes.

    Raises:
        BadValue, BadDataset: naming the key whose value cannot be used.
    """
    from trimtab.cli.judging import open_judge
    from trimtab.cli.measuring import Broken, own_meters
    from trimtab.cli.user_code import hash_of_code
    from trimtab.compare.design import Design, Job, named
    from trimtab.datasets.lines import read_lines
    from trimtab.datasets.prose import neutral_texts
    from trimtab.evaluate.defaults import default_meters, options_of

    questions, test, counted = _questions(said)
    sizes = tuple(None if n == "all" else int(n) for n in said.train_sizes)
    fixed = (said.folds, tuple(said.seeds), said.trials, said.kl_budget, said.validation, sizes)
    loading = {k: v for k, v in said.load.items() if k != "revision"}  # that is of the compared model alone
    key = os.environ.get("TRIMTAB_JUDGE_KEY")
    judge = None if said.judge == "none" else open_judge(said.judge, said.judge_model, key, **loading)
    texts = said.texts
    texts = read_lines(texts, "neutral text") if isinstance(texts, str) else texts and neutral_texts(texts)
    options: dict[str, Any] = {"texts": texts, "max_new_tokens": said.max_new_tokens, "behaviour": counted}
    options |= {"divide_texts": True, "broken": True, "convention": said.convention, "two_way": said.two_way}
    options |= {} if said.judge == "exact" else {"judge": judge}
    measured = questions if test is None else test
    taken = options_of(measured)
    if "judge" in options and "judge" not in taken:
        raise BadValue(f"judge: no judge is asked about {questions.name}; leave the key out")
    own = {name: value for name, value in options.items() if name in taken}
    damage = Broken(list(said.capability), list(said.off_target), said.refusals).meters(said.max_new_tokens)
    meters = (*default_meters(measured, **own), *damage, *own_meters(said.meters))
    entries = said.methods or USUAL.get(questions.measured_by, USUAL["answers"])
    methods = rows_of(entries)
    design = Design(*fixed, choose_by=said.metric or "", asking=said.asking)
    come_from = {**dict(zip(methods, entries, strict=True)), **{f"meter {spec}": spec for spec in said.meters}}
    code = {name: found for name, entry in come_from.items() if (found := hash_of_code(entry))}
    return Job(named(methods), questions, test, design, meters, _low_data(said, entries, list(methods)), code)


def _low_data(said: ComparisonFile, entries: Sequence[Any], names: Sequence[str]) -> tuple[str, ...] | None:
    if said.low_data_methods is None:
        return None
    # an entry's own word for it, or the name of its row
    keys = [str(next(iter(m))) if isinstance(m, Mapping) else m for m in entries]
    rows = {**dict(zip(keys, names, strict=True)), **{name: name for name in names}}
    for name in said.low_data_methods:
        if name not in rows:
            raise BadValue(f"low_data_methods: {name!r} is not among the methods{nearest(name, rows)}")
    return tuple(rows[name] for name in said.low_data_methods)


def _questions(said: ComparisonFile) -> "tuple[ItemSet[Any], ItemSet[Any] | None, Behaviour | None]":
    from trimtab.cli.setup import read_data
    from trimtab.datasets.behaviours import BEHAVIOURS, behaviour
    from trimtab.datasets.prompt_set import PromptSet

    named = said.questions if said.test is None else ""
    questions = read_data(said.questions, part="development" if named == "folklore" else None, limit=said.limit)
    if named == "folklore":
        return questions, read_data("folklore", part="final", limit=said.test_limit), None
    if named in BEHAVIOURS:
        counted = behaviour(named)
        return questions, PromptSet.of(counted.prompts[: said.test_limit], named), counted
    return questions, None if said.test is None else read_data(said.test, limit=said.test_limit), None
