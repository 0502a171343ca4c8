"""What the command line prints as JSON, verb by verb, and the parameters that it takes."""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.golden.plain import masked, plain

TINY = """\
model: model
questions: mine.jsonl
folds: 2
seeds: [0]
trials: 1
max_new_tokens: 3
texts: texts.txt
methods:
  - few-shot: {shots: [1]}
  - iti: {top_ks: [2], alphas: [1]}
"""


def folder_of_files(folder, made):
    """Write a tiny model, questions, pairs, texts and a comparison's file into a folder."""
    made.fresh_model("llama").save_pretrained(folder / "model")
    made.tokenizer_of().save_pretrained(folder / "model")
    rows = [
        {"question": q.question, "correct": list(q.correct), "incorrect": list(q.incorrect)}
        for q in made.questions_of(8)
    ]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, made.PAIRS)))
    (folder / "texts.txt").write_text("\n".join(made.TEXTS))
    (folder / "c.yaml").write_text(TINY)
    (folder / "judge.py").write_text(
        "def odd(question, answer):\n    return len(answer) % 2, 1.0\n\n"
        "def score(pair, text):\n    return len(text) % 5 / 4\n\n"
        "def broken(question, answer):\n    raise RuntimeError('out of luck')\n"
    )
    (folder / "asked.txt").write_text("What is coal?\nWhat is milk?\n")


class Shell:
    """Runs verbs in this process, in a folder of their own, and gives back what they print."""

    def __init__(self, app, folder, places=()):
        self.app, self.folder = app, folder
        self.places = ((folder.resolve(), "<folder>"), (folder, "<folder>"), *places)

    def __call__(self, line, stdin=""):
        """Return (exit code, stdout, stderr) of a line, or of a list of arguments."""
        from typer.testing import CliRunner

        torch.manual_seed(0)
        before, start = Path.cwd(), time.perf_counter()
        os.chdir(self.folder)
        try:
            arguments = line.split() if isinstance(line, str) else line
            done = CliRunner().invoke(self.app, arguments, input=stdin, terminal_width=200)
        finally:
            os.chdir(before)
        if os.environ.get("GOLDEN_TIMES"):
            print(f"{time.perf_counter() - start:6.1f} s  {' '.join(arguments)[:100]}", file=sys.stderr, flush=True)
        error = done.stderr
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            error += f" RAISED {type(done.exception).__name__}: {done.exception}"
        return done.exit_code, done.stdout, said(error, self.places)


def said(text, places):
    """Return what stands on a terminal in one line, without boxes and bars of progress."""
    lines = [line for line in text.replace("\r", "\n").split("\n") if "it/s]" not in line and "%|" not in line]
    words = " ".join(" ".join(lines).split())
    return masked("".join(c for c in words if c not in "╭╮╰╯│─").strip(), places)


MINE = "--model model --data mine.jsonl"
STEPS = {
    "fit": "fit --limit 20 --top-k 4 --strength 5 --out shift --json",
    "fit given": "fit --limit 20 --strength 3 --top-k 3 --direction probe --out probe --json",
    "fit random": "fit --limit 20 --strength 3 --top-k 3 --direction random --seed 2 --out random --json",
    "fit residual": "fit --limit 20 --strength 1.5 --site residual --out residual --json",
    "fit residual again": "fit --limit 20 --strength 1 --site residual --top-k 2 --out residual2 --json",
    "fit mine": "fit --data mine.jsonl --model model --strength 2 --top-k 2 --held-out 0.25 --out mine --json",
    "fit mine other": "fit --data mine.jsonl --model model --strength 1 --direction probe --held-out 0.25 --out mine2",
    "fit swept": "fit --data mine.jsonl --model model --top-k 4 --kl-budget 0.02 --held-out 0.25 --out swept --json",
    "fit pairs": "fit --model model --data pairs.jsonl --strength 1 --top-k 2 --out pairs --held-out 0 --json",
    "fit judged": f"fit {MINE} --top-k 2 --kl-budget 0.01 --judge judge.py:odd --out judged --json",
    "fit text": "fit --limit 20 --strength 3 --top-k 3 --out text",
    "heads": "heads shift --top 6 --json",
    "heads text": "heads shift --top 3",
    "heads residual": "heads residual --top 2 --json",
    "evaluate": "evaluate --shift mine --model model --data mine.jsonl --limit 4 --baseline --batch-size 4 --json",
    "evaluate keep": "evaluate --shift mine --model model --data mine.jsonl --choices-only --keep --json",
    "evaluate keep other": "evaluate --shift mine2 --model model --data mine.jsonl --choices-only --keep",
    "evaluate judged": f"evaluate {MINE} --limit 3 --judge judge.py:odd --answers answers --json",
    "evaluate pairs": "evaluate --model model --data pairs.jsonl --shift mine --judge judge.py:score --json",
    "evaluate text": "evaluate --model model --data mine.jsonl --limit 3 --choices-only",
    "heads against": "heads shift --against probe --json",
    "heads against measured": "heads mine --against mine2 --json",
    "heads against measured text": "heads mine --against mine2 --top 3",
    "heads against residual": "heads residual --against residual2 --json",
    "generate": ["generate", "What is coal?", "Is milk white?", "--shift", "shift", "--compare", "--json"],
    "generate file": "generate --file asked.txt --max-new-tokens 8 --json",
    "generate sampled": ["generate", "What is coal?", "--temperature", "0.7", "--top-k", "20", "--seed", "4", "--json"],
    "generate alpha": ["generate", "What is coal?", "--shift", "residual", "--alpha", "-2", "--json"],
    "generate text": ["generate", "What is coal?", "Is milk white?", "--shift", "shift", "--compare"],
    "bake": "bake --shift shift --out baked --json",
    "convert to-lm-eval": "convert to-lm-eval shift --out steered.pt --json",
    "convert from-iti": "convert from-iti iti --heads 2 --out activations --json",
    "tune": "tune --model model --data mine.jsonl --rank 2 --set max_steps=3 --out tuned --test 0.25 --json",
    "tune heads": "tune --model model --data mine.jsonl --method heads --set max_steps=2 --out offsets --test 0 --json",
    "tune prefix": f"tune {MINE} --method prefix --set max_steps=2 --out prefix --test 0 --json",
    "merge": "merge --edit tuned --model model --out merged --json",
    "generate merged": ["generate", "What is coal?", "--model", "merged", "--max-new-tokens", "6", "--json"],
    "methods": "methods --json",
    "methods no count": "methods --no-count --json",
    "methods text": "methods --model model",
    "compare dry": "compare --config c.yaml --out run --dry-run --json",
    "compare quick dry": "compare --quick --out quick --dry-run --json",
    "compare": "compare --config c.yaml --out run --json",
    "compare again": "compare --config c.yaml --out run",
    "report": "report run --json",
    "version": "--version",
    "no verb": "",
    "unknown verb": "fitt",
    "unknown option": "fit --nothing",
    "refused": "fit --data nothing.jsonl --json",
}  # fmt: skip
CHATS = {
    "chat": ("chat --shift shift --max-new-tokens 16 --json", "What is coal?\nWhy?\n/compare\n/alpha 2\n/off\n"
             "Is milk white?\n/new\n/save talk.jsonl\n/alpha x\n/nothing\n/help\n/save there\n/quit\n"),
    "chat text": ("chat --max-new-tokens 12", "What is coal?\n/compare\n/alpha 1\n/save talk.jsonl\n"),
    "chat streamed": ("chat --shift residual --max-new-tokens 12 --plain", "What is coal?\n/compare Is milk white?\n"),
    "generate piped": ("generate --max-new-tokens 8 --json", "What is coal?\n\nIs milk white?\n"),
    "generate empty": ("generate", ""),
}  # fmt: skip


def record(rec, app, made):
    """Record every verb."""
    import numpy as np

    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder_of_files(folder, made)
        (folder / "iti").mkdir()
        drawn = np.random.default_rng(0)
        np.save(folder / "iti" / "x_head_wise.npy", drawn.normal(size=(6, 2, 8)).astype(np.float16))
        np.save(folder / "iti" / "x_labels.npy", np.array([0, 1, 0, 1, 1, 0]))
        shell = Shell(app, folder, rec.places)
        for key, line in STEPS.items():
            _put(rec, key, shell(line), shell.places)
        for key, (line, stdin) in CHATS.items():
            _put(rec, key, shell(line, stdin), shell.places)
        files = [p for p in folder.rglob("*") if p.is_file() and "answers" not in p.parts]
        rec.put("files", sorted({str(p.relative_to(folder)) for p in files}))
        for path in ("shift/record.json", "tuned/record.json", "run/record.json", "baked/record.json"):
            if (folder / path).is_file():
                rec.put(f"record {path}", plain(json.loads((folder / path).read_text()), shell.places))
        page = folder / "run" / "report.md"
        if page.is_file():
            rec.put("report.md", _without_times(said(page.read_text(), shell.places)))
    _put_parameters(rec, app)


def _default(parameter):
    value = parameter.default
    return "<made when asked>" if callable(value) else str(value)


def _without_times(text):
    """Mask the decimals behind the heading of a table of costs."""
    before, heading, after = text.partition("ms per token")
    return before + heading + re.sub(r"\d+\.\d+(e-\d+)?", "<x>", after)


def _put(rec, key, done, places):
    code, out, error = done
    rec.put(f"{key}/exit", code)
    rec.put(f"{key}/stderr", error)
    try:
        found = json.loads(out)
    except ValueError:
        try:
            found = [json.loads(line) for line in out.splitlines()]
        except ValueError:
            found = _without_times(said(out, places))
    rec[f"{key}/stdout"] = plain(found, places)


def _put_parameters(rec, app):
    """Record the options of every verb, their defaults and help."""
    import typer

    def walk(command, path):
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, f"{path} {name}")
        rec.put(f"parameters{path}", {
            p.name: [list(p.opts), str(p.param_type_name), _default(p), getattr(p, "help", None), p.required]
            for p in command.params
        })  # fmt: skip
        rec.put(f"help{path}", " ".join((command.help or "").split()))

    walk(typer.main.get_command(app), "")
