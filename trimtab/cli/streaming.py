"""Printed: an answer on the terminal as it comes, and no further than it goes."""

from typing import Any

import typer
from transformers import TextStreamer


class Printed(TextStreamer):
    """Prints new text as it is generated; in plain form it ends where the next question or a blank line starts."""

    def __init__(self, tokenizer: Any, *, until_next_question: bool) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.until_next_question = until_next_question
        self.text, self.shown = "", 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what is certain to belong to the answer."""
        from trimtab.engine.completion import cut

        self.text += text
        answer = cut(self.text) if self.until_next_question else self.text.strip()
        # a last letter that may begin "Q:" waits for what follows
        certain = answer.removesuffix("Q") if self.until_next_question and not stream_end else answer
        if len(certain) > self.shown:
            typer.echo(certain[self.shown :], nl=False)
            self.shown = len(certain)
