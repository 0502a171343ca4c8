"""The options that verbs share: one spelling, one help text, one meaning; those that belong together in a bundle."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.setup import DATA_NAMES, open_edit, quiet

if TYPE_CHECKING:
    from trimtab.models.load.checkpoints import LoadedModel
    from trimtab.protocols import Edit

FAILED = 3
"""The exit code of what ran and came to nothing: a fit that was not kept, a method that failed everywhere."""
FROM_CHECKPOINT = "the checkpoint's own (the embedded model: float32)"

_model = partial(typer.Option, rich_help_panel="The model")
_edit = partial(typer.Option, rich_help_panel="The edit")
_answers = partial(typer.Option, rich_help_panel="Answers")


def _data_names(incomplete: str) -> list[str]:
    return [name for name in DATA_NAMES if name.startswith(incomplete)]


ModelName = Annotated[
    str,
    _model(
        "--model",
        "-m",
        metavar="MODEL",
        help="A model folder, a GGUF file, a hub id, 'smollm2', which `trimtab real` brings, or 'embedded', which "
        "ships here.",
    ),
]


@dataclass(frozen=True)
class Loading:
    """Which model, and how it is loaded."""

    model: ModelName = "embedded"
    dtype: Annotated[
        str | None, _model("--dtype", help="float32, bfloat16, float16 or float64.", show_default=FROM_CHECKPOINT)
    ] = None
    device: Annotated[
        str | None,
        _model(
            "--device",
            help="Such as cpu or cuda:1, or auto to spread a large model.",
            show_default="the GPU, else the CPU",
        ),
    ] = None
    quantization: Annotated[
        str | None,
        _model("--quantization", help="nf4, fp4, nf4-dq, fp4-dq or int8 (needs bitsandbytes).", show_default="none"),
    ] = None
    revision: Annotated[
        str | None, _model("--revision", help="Branch, tag or commit on the hub.", show_default="the newest")
    ] = None
    gguf_file: Annotated[
        str | None,
        _model(
            "--gguf-file", help="Which GGUF file of a folder or of a hub's repository.", show_default="the only one"
        ),
    ] = None

    @property
    def settings(self) -> dict[str, str]:
        """How it is loaded, for judges that are loaded beside it: what was given, but for the revision."""
        given = {"dtype": self.dtype, "device": self.device, "quantization": self.quantization}
        return {name: value for name, value in given.items() if value is not None}

    def open(self) -> "LoadedModel":
        """Return the model and its tokenizer."""
        from trimtab.models.load.checkpoints import load_model

        quiet()
        where = {"revision": self.revision, "gguf_file": self.gguf_file}
        return load_model(self.model, **where, **self.settings)  # pyright: ignore[reportArgumentType]


Strength = Annotated[
    float | None,
    _edit(
        "--strength",
        "--alpha",
        help="Strength of the edit in place of its own (of ITI's shifts in sigmas, of CAA's in mean differences); "
        "negative ones push the other way.",
        show_default="the strength that the folder holds",
    ),
]
EditClasses = Annotated[
    list[str],
    _edit("--edit-class", metavar="FILE.py:NAME", help="A class of your own that a folder holds; may be repeated."),
]


@dataclass(frozen=True)
class Editing:
    """Which edits, and how strong."""

    edits: Annotated[
        list[str],
        _edit(
            "--edit",
            "--shift",
            metavar="DIR[:STRENGTH]",
            help="A folder of `trimtab fit` or `trimtab tune`, or a PEFT adapter; repeated, they are applied in order.",
        ),
    ] = field(default_factory=list)
    strength: Strength = None
    edit_class: EditClasses = field(default_factory=list)

    def open(self, *needed_by: str) -> "Edit | None":
        """Return the edit, several as a stack, or None if none was named.

        Args:
            needed_by: flags or a verb for which there must be one.

        Raises:
            Incompatible: a folder that is not there (the nearest ones are offered) or holds no edit.
            BadValue: a strength that the edit cannot have, or none of what `needed_by` needs.
        """
        from trimtab.errors import BadValue

        needed = [*needed_by, *(["--strength"] if self.strength is not None else [])]
        if not self.edits and needed:
            raise BadValue(f"{needed[0]} needs an edit: give --edit DIR")
        return open_edit(self.edits, strength=self.strength, classes=self.edit_class) if self.edits else None


@dataclass(frozen=True)
class Sampling:
    """How answers are generated."""

    max_new_tokens: Annotated[int, _answers("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 50
    do_sample: Annotated[bool, _answers("--do-sample", help="Sample instead of taking the likeliest token.")] = False
    temperature: Annotated[float | None, _answers("--temperature", help="Of sampling.", show_default="the model's")] = (
        None
    )
    top_p: Annotated[
        float | None, _answers("--top-p", min=0, max=1, help="Of sampling.", show_default="the model's")
    ] = None
    top_k: Annotated[int | None, _answers("--top-k", min=1, help="Of sampling.", show_default="the model's")] = None

    def settings(self) -> dict[str, Any]:
        """Return the options for `generate`; any option of sampling switches it on.

        Raises:
            BadValue: a temperature that is not above 0.
        """
        from trimtab.errors import BadValue

        if self.temperature is not None and not self.temperature > 0:
            raise BadValue(
                f"--temperature must be above 0, got {self.temperature:g}; leave it out for the likeliest tokens"
            )
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given = {name: value for name, value in chosen.items() if value is not None}
        return {"max_new_tokens": self.max_new_tokens, "do_sample": self.do_sample or bool(given), **given}


_ASKING = (
    "plain (Q: ... A:), bare (the text as it goes on, as facts are), primer (six questions with answers before it), "
    "chat (the model's chat template)"
)


def _known_asking(name: str) -> str:
    from trimtab.datasets.asking import ASKINGS

    return one_of(name, "way to ask", ASKINGS)


Asking = Annotated[
    str,
    typer.Option(
        "--asking",
        metavar="auto|plain|bare|primer|chat",
        callback=_known_asking,
        help=f"How the model is asked: {_ASKING}; auto: chat where there is a template, else plain. "
        "Ask an edit as it was fitted or tuned.",
    ),
]


Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="FILE|NAME",
        help="Questions or contrast pairs: a .jsonl, .json or .csv file, TruthfulQA.csv, mc_task.json, or truthfulqa, "
        "folklore, atlas; pairs that ship: cheerful, casual, unsure.",
        autocompletion=_data_names,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the earlier result that stands there.")]


@dataclass(frozen=True)
class Output:
    """Where a result goes, and whether an earlier one may go for it."""

    out: Annotated[Path, typer.Option("--out", help="What to write; an earlier result stays, unless --overwrite.")]
    overwrite: Overwrite = False

    def checked(self, kind: str | None = None) -> Path:
        """Return the place, before any work.

        Args:
            kind: of the result, if it is a folder.

        Raises:
            Incompatible: something else stands there, or an earlier result that is not to be replaced; or it cannot be
                written.
        """
        from trimtab.storage import check_writable, require_free

        if kind is not None:
            check_writable(self.out, kind)
        if not self.overwrite:
            require_free(self.out)
        return self.out


Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of splits and samples.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use the first so many questions only.", show_default="all")
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="At most so many texts in one forward.", show_default="as memory allows"),
]
Texts = Annotated[
    int | None,
    typer.Option("--texts", min=1, help="Neutral texts on which drift is measured.", show_default="as many as needed"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object an answer instead (JSONL).")]


def one_of(value: str, what: str, known: Sequence[str]) -> Any:
    """Return a value that is among the known ones; raises `BadValue`, offering the nearest."""
    from trimtab.errors import BadValue, nearest

    if value not in known:
        raise BadValue(f"unknown {what} {value!r}{nearest(value, known)}")
    return value
