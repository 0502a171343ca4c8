"""`trimtab chat`: talk to the steered model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.generate import DoSample, MaxNewTokens, Plain, Temperature, TopK, TopP
from trimtab.cli.options import Alpha, Device, Dtype, MaybeShiftFolder, ModelName, Quantization, Revision, Seed

if TYPE_CHECKING:
    from trimtab.edits.vectors import HeadShift, ResidualShift

HELP = """/alpha N    set the strength      /off      steer no longer (/alpha N steers again)
/compare    the last answer with and without the shift
/save FILE  write the conversation (.jsonl), or the shift at this strength (any other name: a folder)
/new        begin a new conversation    /quit     leave (as Ctrl-D does)"""


def chat(
    model: ModelName = "embedded",
    shift: MaybeShiftFolder = None,
    alpha: Alpha = None,
    max_new_tokens: MaxNewTokens = 200,
    do_sample: DoSample = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    plain: Plain = False,
    dtype: Dtype = None,
    device: Device = None,
    quantization: Quantization = None,
    revision: Revision = None,
    seed: Seed = 0,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object an answer instead (JSONL); all else goes to standard error."
        ),
    ] = False,
) -> None:
    """Chat with the steered model in its own template, answers streaming; /help lists what can be changed on the way.

    Lines may come from a pipe: each one is a question or a command.

    Example: trimtab chat --shift runs/shift
    """
    import torch

    from trimtab.cli.generate import require_shift, sampling
    from trimtab.cli.setup import open_model, open_shift
    from trimtab.engine.conversation import has_template

    edit = open_shift(shift, alpha)
    require_shift(edit, alpha=alpha)
    loaded = open_model(model, dtype=dtype, device=device, quantization=quantization, revision=revision)
    torch.manual_seed(seed)
    template = has_template(loaded.tokenizer) and not plain
    settings = sampling(max_new_tokens, do_sample, temperature, top_p, top_k)
    talk = _Talk(loaded, edit, template, settings, as_json=as_json)
    form = "its chat template" if template else "plain form (Q: ... A: ...)"
    why = "" if template or plain else "; the model has no chat template"
    talk.say(f"{model}, asked in {form}{why}. {talk.strength()}. /help for commands.")
    # a line that is no text is refused when it is asked, and the conversation goes on
    sys.stdin.reconfigure(errors="surrogateescape")  # pyright: ignore[reportAttributeAccessIssue]
    while True:
        try:
            line = _line(as_json)
        except EOFError:
            if sys.stdin.isatty():
                talk.say("")
            return
        if line in ("/quit", "/exit"):
            return
        talk.hear(line)


def _line(as_json: bool) -> str:
    """Return the next line of standard input; only a terminal is asked for it."""
    if sys.stdin.isatty() and as_json:
        typer.echo("> ", nl=False, err=True)
    return input("> " if sys.stdin.isatty() and not as_json else "").strip()


class _Talk:
    """A conversation: what was said, and how the next answer is steered."""

    def __init__(
        self, loaded: Any, edit: "HeadShift | ResidualShift | None", template: bool, settings: Any, *, as_json: bool
    ) -> None:
        self.loaded, self.edit, self.template, self.settings = loaded, edit, template, settings
        self.on, self.as_json = edit is not None, as_json
        self.turns: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        """Print what is no answer."""
        typer.echo(text, err=self.as_json)

    def strength(self) -> str:
        """Say how the next answer will be steered."""
        if self.edit is None:
            return "No shift"
        return f"Shift {self.edit.name} at alpha {self.edit.strength:g}" if self.on else "Shift off"

    def hear(self, line: str) -> None:
        """Answer a question or do what a command says; a mistake is one sentence, and the conversation goes on."""
        from trimtab.errors import TrimtabError

        word, _, rest = line.partition(" ")
        commands = {"/alpha": self._alpha, "/off": self._off, "/compare": self._compare, "/save": self._save,
                    "/new": self._new, "/help": lambda _: self.say(HELP)}  # fmt: skip
        try:
            if word in commands:
                commands[word](rest.strip())
            elif word.startswith("/"):
                from trimtab.cli.setup import nearest

                self.say(f"unknown command {word}{nearest(word, [*commands, '/quit'])}")
            elif line:
                answer = self._answer(line, self.turns, self._steering())
                alpha = self.edit.strength if self.on and self.edit else 0
                self.turns.append({"question": line, "answer": answer, "alpha": alpha})
                self._record(self.turns[-1])
        except TrimtabError as mistake:
            self.say(str(mistake))

    def _record(self, plain: dict[str, Any]) -> None:
        if self.as_json:
            typer.echo(_as_line(plain))

    def _steering(self) -> Any:
        return self.edit if self.on else None

    def _answer(self, question: str, before: list[dict[str, Any]], edit: Any) -> str:
        from trimtab.cli.streaming import Printed
        from trimtab.engine.conversation import Turn, prompt_ids, reply

        model, tokenizer = self.loaded
        history = [Turn(t["question"], t["answer"]) for t in before]
        ids = prompt_ids(tokenizer, question, history, template=self.template)
        streamer = None if self.as_json else Printed(tokenizer, until_next_question=not self.template)
        try:
            return reply(model, tokenizer, ids, edit, template=self.template, settings=self.settings, streamer=streamer)
        finally:
            if streamer is not None:
                typer.echo()

    def _alpha(self, text: str) -> None:
        from dataclasses import replace

        from trimtab.errors import BadValue

        if self.edit is None:
            raise BadValue("there is no shift to scale: start with --shift DIR")
        try:
            value = float(text)
        except ValueError:
            raise BadValue(f"alpha must be a number, got {text!r}") from None
        if not abs(value) < float("inf"):
            raise BadValue(f"alpha must be a finite number, got {text!r}")
        self.edit, self.on = replace(self.edit, strength=value), True
        self.say(self.strength())

    def _off(self, text: str) -> None:  # noqa: ARG002
        self.on = False
        self.say(self.strength())

    def _new(self, text: str) -> None:  # noqa: ARG002
        self.turns = []
        self.say("a new conversation")

    def _compare(self, text: str) -> None:
        from trimtab.errors import BadValue

        if self.edit is None:
            raise BadValue("there is no shift to compare with: start with --shift DIR")
        if not text and not self.turns:
            raise BadValue("nothing to compare yet: ask something first, or give a question after /compare")
        question, before = (text, self.turns) if text else (self.turns[-1]["question"], self.turns[:-1])
        columns = {}
        for name, edit in {"unedited": None, "shifted": self.edit}.items():
            if not self.as_json:
                typer.echo("unedited: " if edit is None else f"alpha {self.edit.strength:g}: ", nl=False)
            columns[name] = self._answer(question, before, edit)
        self._record({"question": question, **columns, "alpha": self.edit.strength})

    def _save(self, text: str) -> None:
        from trimtab.errors import BadValue
        from trimtab.storage import write_errors, written_file

        path = Path(text).expanduser()
        if not text:
            raise BadValue("give a name: /save talk.jsonl (the conversation), /save runs/mine (the shift)")
        if path.suffix != ".jsonl":
            if self.edit is None:
                raise BadValue("there is no shift to save; a conversation's name ends in .jsonl")
            self.edit.save(path)
            self.say(f"shift at alpha {self.edit.strength:g} written to {path}")
            return
        if not self.turns:
            raise BadValue("nothing to save yet: ask something first")
        with write_errors(path), written_file(path) as file:
            file.writelines(_as_line(turn) + "\n" for turn in self.turns)
        self.say(f"{len(self.turns)} answers written to {path}")


def _as_line(plain: dict[str, Any]) -> str:
    import json

    return json.dumps(plain, ensure_ascii=False)
