"""`--judge` and its relatives: from a word on the command line to a judge."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trimtab.protocols import Judge

PANEL = "The judge"


@dataclass(frozen=True)
class Judging:
    """Which judge, and how it is reached."""

    judge: Annotated[
        str,
        typer.Option("--judge", metavar="exact|allenai|tfidf:DIR|trained:DIR|http://...|A,B|FILE.py:NAME",
                     help="exact: the questions' own answers; allenai: the two fine-tuned 7B judges; tfidf:DIR: a "
                     "small indicative judge trained on the judge data there; trained:DIR: what `trimtab judge train` "
                     "wrote; an OpenAI-compatible address; two models; or a function of your own, for contrast "
                     "pairs too.", rich_help_panel=PANEL),
    ] = "exact"  # fmt: skip
    judge_model: Annotated[
        str | None,
        typer.Option(
            "--judge-model", help="The model to ask for at an OpenAI-compatible address.", rich_help_panel=PANEL
        ),
    ] = None
    judge_key: Annotated[
        str | None,
        typer.Option(
            "--judge-key", envvar="TRIMTAB_JUDGE_KEY", help="The key for that address.", rich_help_panel=PANEL
        ),
    ] = None

    @property
    def fits_pairs(self) -> bool:
        """Whether contrast pairs can be judged so: by their probabilities alone, or by a function of the user's."""
        from trimtab.cli.user_code import is_user_code

        return self.judge == "exact" or is_user_code(self.judge)

    def open(self, questions: Any, **loading: Any) -> "Judge":
        """Return the judge, asked for one verdict so that a wrong address or function shows at once.

        Raises:
            BadValue: as `open_judge`; it cannot be asked, or gives no verdict.
        """
        judge = open_judge(self.judge, self.judge_model, self.judge_key, **loading)
        try_judge(judge, questions)
        return judge


def open_judge(name: str, model: str | None = None, key: str | None = None, **loading: Any) -> "Judge":
    """Return the judge that the options describe; `loading` are options of `load_model` for judges run here.

    Raises:
        BadValue: an unknown judge (the nearest names are offered), an address without a model, a file without the
            function.
    """
    from trimtab.cli.setup import quiet
    from trimtab.cli.user_code import is_user_code, open_object
    from trimtab.errors import BadValue, nearest
    from trimtab.evaluate.judges.endpoint import EndpointJudge
    from trimtab.evaluate.judges.exact import exact_judge
    from trimtab.evaluate.judges.local import LocalJudge
    from trimtab.evaluate.judges.tfidf import TfidfJudge
    from trimtab.protocols import as_judge

    quiet()
    loading = {k: v for k, v in loading.items() if v is not None}
    if name == "exact":
        return exact_judge
    if name == "allenai":
        return LocalJudge.load(**loading)
    if name.startswith("tfidf:"):
        return TfidfJudge.train(Path(name.removeprefix("tfidf:")).expanduser())
    if name.startswith(("http://", "https://")):
        if not model:
            how = "--judge-model NAME (in a file: judge_model)"
            raise BadValue(f"the judge at {name} needs a model to ask for: give {how}")
        return EndpointJudge(name, model, key)
    if is_user_code(name):
        found = open_object(name, "judge")
        return as_judge(replace(found, value=found.value()) if isinstance(found.value, type) else found)
    if name.startswith("trained:"):
        return LocalJudge.trained(Path(name.removeprefix("trained:")).expanduser(), **loading)
    if name.count(",") == 1:
        return LocalJudge.load(*name.split(","), **loading)
    known = ("exact", "allenai", "tfidf:DIR", "trained:DIR", "http://...", "TRUTH_MODEL,INFO_MODEL", "FILE.py:NAME")
    raise BadValue(f"unknown judge {name!r}{nearest(name, known)}")


def try_judge(judge: "Judge", questions: Any) -> None:
    """Ask for one verdict before anything long is done, so that a wrong address or function shows at once.

    Raises:
        BadValue: the judge cannot be asked, or gives no verdict.
    """
    from trimtab.cli.measuring import meters_for

    meters_for(questions, judge)[0].try_out(questions)


def print_judge(record: dict[str, Any]) -> None:
    """Print which judge gave the figures; an indicative one's agreement stands beside them, also in a pipe."""
    from trimtab.cli.printing import remark
    from trimtab.evaluate.judges.checking import judge_line

    (typer.echo if record.get("indicative") else remark)(judge_line(record))
