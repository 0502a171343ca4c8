"""Any verb of trimtab with clocks around its parts: where the seconds go, told after every unit of a comparison.

    python benchmarks/clocked.py compare --config comparison.yaml --out runs/one

A part's own seconds are those outside of the parts inside it. On a GPU they hold what the CPU waits for, so that a
forward's stand where its results are fetched. The clocks themselves cost a second in some ten minutes.
"""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from trimtab.cells import table_lines

PARTS = {
    "models.load.checkpoints": ["load_model"],
    "evaluate.table": ["measurements_of", "summed_up"],
    "evaluate.multiple_choice": ["AnswerChoices.scores", "_answer_tokens", "_summary"],
    "evaluate.drift": ["drifts"],
    "evaluate.divergence": ["_unedited", "_behind", "_rows"],
    "evaluate.generation": ["JudgedAnswers.answers", "JudgedAnswers._judged", "JudgedAnswers._summed"],
    "evaluate.cost": ["milliseconds_per_token"],
    "evaluate.style": ["AnswerStyle.__init__"],
    "engine.score": ["_score", "token_logprobs"],
    "engine.token_tree": ["TokenTree.of"],
    "engine.forwards": ["run_tree", "_Run._step", "_Run._nodes"],
    "engine.batching": ["Batching.groups"],
    "engine.sharing": ["chosen_mode"],
    "engine.tree_forward": ["TreeForward.__call__"],
    "engine.generate": ["continuations", "new_tokens"],
    "engine.prompt_cache": ["prompt_cache"],
    "engine.completion": ["AnswerEnd.__call__"],
    "engine.shared_layers": ["SharedLayers.__init__"],
    "engine.capture": ["capture_heads"],
    "models.identity": ["traits", "fingerprint"],
    "peft.tuned_edit": ["TunedEdit._attached"],
    "peft.train.fit": ["fit_method"],
    "compare.running": ["able_to_choose"],
    "compare.bench": ["Bench.scores", "Bench.last_measurements", "Bench.of_the_unedited"],
    "compare.worker": ["Worker._fitted", "Worker.do"],
    "compare.records": ["RunFolder.write"],
    "compare.comparison": ["Comparison.load"],
    "cli.compare": ["_show"],
}


class Clocks:
    """Calls, seconds and own seconds of every part."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.calls: dict[str, int] = defaultdict(int)
        self.total: dict[str, float] = defaultdict(float)
        self.own: dict[str, float] = defaultdict(float)
        self.inside: list[float] = [0.0]

    def around(self, name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        """Return the part with a clock around it."""

        @functools.wraps(part)
        def run(*given: Any, **options: Any) -> Any:
            self.inside.append(0.0)
            began = time.perf_counter()
            try:
                return part(*given, **options)
            finally:
                took = time.perf_counter() - began
                self.calls[name] += 1
                self.total[name] += took
                self.own[name] += took - self.inside.pop()
                self.inside[-1] += took

        return run

    def put(self, module: str, path: str) -> None:
        """Put a clock around what a module of trimtab calls so, wherever the package has it."""
        home: Any = importlib.import_module(f"trimtab.{module}")
        *outer, last = path.split(".")
        for name in outer:
            home = getattr(home, name)
        part = vars(home)[last]
        plain = part.__func__ if isinstance(part, classmethod) else part
        clocked: Any = self.around(path, plain)
        setattr(home, last, classmethod(clocked) if isinstance(part, classmethod) else clocked)
        for one in [m for name, m in sys.modules.items() if name.startswith("trimtab") and not outer]:
            for name in [n for n, value in vars(one).items() if value is part]:
                setattr(one, name, clocked)

    def lines(self, most: int) -> list[str]:
        """Return the parts with the most seconds of their own."""
        first = sorted(self.own, key=lambda name: -self.own[name])[:most]
        rows = [[n, str(self.calls[n]), f"{self.total[n]:.1f}", f"{self.own[n]:.1f}"] for n in first]
        return table_lines(["part", "calls", "s", "own s"], rows)


def told(clocks: Clocks, do: Callable[..., Any]) -> Callable[..., Any]:
    """Return a unit's work, which tells its own seconds and all parts' so far."""

    def run(worker: Any, unit: Any) -> None:
        before, began = dict(clocks.own), time.perf_counter()
        do(worker, unit)
        took = {name: clocks.own[name] - before.get(name, 0.0) for name in clocks.own}
        most = ", ".join(f"{n} {took[n]:.1f}" for n in sorted(took, key=lambda n: -took[n])[:8])
        since = f"{time.perf_counter() - clocks.started:.0f} s"
        print(f"\n[{since}] {unit.method}, fold {unit.fold}: {time.perf_counter() - began:.1f} s; {most}", flush=True)

    return run


def main() -> None:
    clocks = Clocks()
    from trimtab import cli
    from trimtab.compare.worker import Worker

    print(f"imports {time.perf_counter() - clocks.started:.1f} s", flush=True)
    for module, paths in PARTS.items():
        for path in paths:
            clocks.put(module, path)
    Worker.do = told(clocks, Worker.do)
    try:
        cli.main()
    finally:
        print("\n".join(["", f"{time.perf_counter() - clocks.started:.1f} s", *clocks.lines(40)]), flush=True)


if __name__ == "__main__":
    main()
