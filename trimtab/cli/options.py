"""The options that verbs share: one spelling, one help text, one meaning."""

from pathlib import Path
from typing import Annotated

import typer

DATA_NAMES = ("folklore", "truthfulqa")
FROM_CHECKPOINT = "the checkpoint's own (the embedded model: float32)"


def _data_names(incomplete: str) -> list[str]:
    return [name for name in DATA_NAMES if name.startswith(incomplete)]


ModelName = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="A model folder, a hub id, or 'embedded', which ships here.")
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16, float16 or float64.", show_default=FROM_CHECKPOINT),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="Such as cpu or cuda:1, or auto to spread a large model.", show_default="the GPU, else the CPU"
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option("--quantization", help="nf4, fp4, nf4-dq, fp4-dq or int8 (needs bitsandbytes).", show_default="none"),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.", show_default="the newest")
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="FILE|NAME",
        help="Questions: a .jsonl or .csv file, TruthfulQA.csv, mc_task.json, or one of truthfulqa, folklore.",
        autocompletion=_data_names,
    ),
]
ShiftFolder = Annotated[
    Path, typer.Option("--shift", metavar="DIR", help="A shift folder that `trimtab fit` wrote.", show_default=False)
]
MaybeShiftFolder = Annotated[
    Path | None, typer.Option("--shift", metavar="DIR", help="A shift folder that `trimtab fit` wrote.")
]
Alpha = Annotated[
    float | None,
    typer.Option("--alpha", help="Strength in its place, in sigmas; negative ones push the other way.",
                 show_default="the strength that the folder holds"),
]  # fmt: skip
Out = Annotated[Path, typer.Option("--out", help="Folder to write; it must not hold anything else.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of splits and samples.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use the first so many questions only.", show_default="all")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Texts in one forward.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
