"""`trimtab chat`: talk to the edited model."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.options import Asking, Editing, Loading, Sampling, Seed

if TYPE_CHECKING:
    from trimtab.datasets.asking import Form
    from trimtab.protocols import Edit

HELP = """/strength N set the strength      /off      edit no longer (/strength N edits again)
/compare    the last answer with and without the edit
/save FILE  write the conversation (.jsonl), or the edit at this strength (any other name: a folder)
/new        begin a new conversation    /quit     leave (as Ctrl-D does)"""


@verb
def chat(
    loading: Loading = Loading(),
    editing: Editing = Editing(),
    sampling: Sampling = Sampling(max_new_tokens=200),
    asking: Asking = "auto",
    seed: Seed = 0,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object an answer instead (JSONL); all else goes to standard error."
        ),
    ] = False,
) -> None:
    """Chat with the edited model in its own template, answers streaming; /help lists what can be changed on the way.

    Lines may come from a pipe: each one is a question or a command.

    Example: trimtab chat --edit runs/shift
    """
    import torch

    from trimtab.datasets.asking import asking_for
    from trimtab.engine.conversation import note_asked_otherwise

    edit = editing.open()
    loaded = loading.open()
    torch.manual_seed(seed)
    form = asking_for(asking, loaded.tokenizer)
    note_asked_otherwise(edit, form.name)
    talk = _Talk(loaded, edit, form, sampling.settings(), as_json=as_json)
    named = "its chat template" if form.template else f"{form.name} form (Q: ... A: ...)"
    why = "; the model has no chat template" if asking == "auto" and not form.template else ""
    talk.say(f"{loading.model}, asked in {named}{why}. {talk.strength()}. /help for commands.")
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
    # a file that is piped in may begin with a byte order mark
    return input("> " if sys.stdin.isatty() and not as_json else "").strip().removeprefix("\ufeff")


class _Talk:
    """A conversation: what was said, and how the next answer is edited."""

    def __init__(self, loaded: Any, edit: "Edit | None", form: "Form", settings: Any, *, as_json: bool) -> None:
        self.loaded, self.edit, self.form, self.settings = loaded, edit, form, settings
        self.on, self.as_json = edit is not None, as_json
        self.turns: list[dict[str, Any]] = []
        self.saved: set[Path] = set()

    def say(self, text: str) -> None:
        """Print what is no answer."""
        typer.echo(text, err=self.as_json)

    def strength(self) -> str:
        """Say how the next answer will be edited."""
        if self.edit is None:
            return "No edit"
        return f"Edit {self.edit.name} at strength {self.edit.strength:g}" if self.on else "Edit off"

    def hear(self, line: str) -> None:
        """Answer a question or do what a command says; a mistake is one sentence, and the conversation goes on."""
        from trimtab.errors import TrimtabError, nearest

        word, _, rest = line.partition(" ")
        commands = {"/strength": self._alpha, "/alpha": self._alpha, "/off": self._off, "/compare": self._compare,
                    "/save": self._save, "/new": self._new, "/help": lambda _: self.say(HELP)}  # fmt: skip
        try:
            if word in commands:
                commands[word](rest.strip())
            elif word.startswith("/"):
                self.say(f"unknown command {word}{nearest(word, [*commands, '/quit'])}")
            elif line:
                answer = self._answer(line, self.turns, self.edit if self.on else None)
                alpha = self.edit.strength if self.on and self.edit else 0
                self.turns.append({"question": line, "answer": answer, "alpha": alpha})
                self._record(self.turns[-1])
        except TrimtabError as mistake:
            self.say(str(mistake))

    def _record(self, plain: dict[str, Any]) -> None:
        if self.as_json:
            typer.echo(json.dumps(plain, ensure_ascii=False))

    def _answer(self, question: str, before: list[dict[str, Any]], edit: Any) -> str:
        from trimtab.cli.streaming import Printed
        from trimtab.engine.conversation import Turn, prompt_ids, reply

        model, tokenizer = self.loaded
        history = [Turn(t["question"], t["answer"]) for t in before]
        ids, template = prompt_ids(tokenizer, question, history, asking=self.form, edit=edit), self.form.template
        streamer = None if self.as_json else Printed(tokenizer, until_next_question=not template)
        try:
            return reply(model, tokenizer, ids, edit, template=template, settings=self.settings, streamer=streamer)
        finally:
            if streamer is not None:
                typer.echo()

    def _alpha(self, text: str) -> None:
        from trimtab.errors import BadValue

        if self.edit is None:
            raise BadValue("there is no edit to scale: start with --edit DIR")
        try:
            value = float(text)
        except ValueError:
            raise BadValue(f"the strength must be a number, got {text!r}") from None
        if not abs(value) < float("inf"):
            raise BadValue(f"the strength must be a finite number, got {text!r}")
        self.edit, self.on = self.edit.at_strength(value), True
        self._changed()

    def _off(self, text: str) -> None:  # noqa: ARG002
        self.on = False
        self._changed()

    def _changed(self) -> None:
        # a model copies how it has spoken so far, loops too, whatever its strength is now
        self.say(self.strength() + ("; what was said so far is still read: /new begins anew" if self.turns else ""))

    def _new(self, text: str) -> None:  # noqa: ARG002
        self.turns = []
        self.say("a new conversation")

    def _compare(self, text: str) -> None:
        from trimtab.errors import BadValue

        if self.edit is None:
            raise BadValue("there is no edit to compare with: start with --edit DIR")
        if not text and not self.turns:
            raise BadValue("nothing to compare yet: ask something first, or give a question after /compare")
        question, before = (text, self.turns) if text else (self.turns[-1]["question"], self.turns[:-1])
        columns = {}
        for name, edit in {"unedited": None, "edited": self.edit}.items():
            if not self.as_json:
                typer.echo("unedited: " if edit is None else f"strength {self.edit.strength:g}: ", nl=False)
            columns[name] = self._answer(question, before, edit)
        self._record({"question": question, **columns, "alpha": self.edit.strength})

    def _save(self, text: str) -> None:
        from trimtab.errors import BadValue
        from trimtab.storage import require_free, written_file

        path = Path(text).expanduser()
        talk = path.suffix.lower() == ".jsonl"
        if not text:
            raise BadValue("give a name: /save talk.jsonl (the conversation), /save runs/mine (the edit)")
        if talk and not self.turns:
            raise BadValue("nothing to save yet: ask something first")
        if not talk and self.edit is None:
            raise BadValue("there is no edit to save; a conversation's name ends in .jsonl")
        if path not in self.saved:  # what this conversation wrote it may write anew
            require_free(path, "give another name")
        if talk:
            with written_file(path) as staging:
                lines = [json.dumps(turn, ensure_ascii=False) + "\n" for turn in self.turns]
                staging.write_text("".join(lines), encoding="utf-8")
            self.say(f"{len(self.turns)} answers written to {path}")
        elif self.edit is not None:
            self.edit.save(path)
            self.say(f"edit at strength {self.edit.strength:g} written to {path}")
        self.saved.add(path)
