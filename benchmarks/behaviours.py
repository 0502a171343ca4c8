"""Whether `fit` with its defaults finds what an exhaustive sweep finds: behaviours of a model, many draws of 30 pairs.

    python benchmarks/behaviours.py --model FOLDER --out runs/behaviours --first 10 --draws 10
    python benchmarks/behaviours.py --out runs/embedded --behaviours truthful reserved

One unit is one draw of pairs of one behaviour. It is fitted with defaults; then the behaviour's property is counted in
greedy answers to neutral prompts, unedited and shifted; as controls, random directions of the same norm at the same
place, and random layers along their own directions, both brought to the drift of the fit; and for comparison every
layer at every strength, and at the strength that has the drift of the fit, by hooks of this script's own. Drift is
KL(unedited || edited) on neutral texts that `fit` does not choose on. The best of the sweep is chosen on every other
prompt and counted on the rest, since the best of hundreds on the very prompts that it is measured on is luck. The same
pairs with their texts dealt to the sides at random are fitted too: nothing is in them that could be steered.

The embedded model's behaviours are made of its own questions: what is so in place of what people say, and no comment in
place of an answer; what is counted of its answers is what the exact judge says.

A unit is one JSON file in OUT, written when it is done: the same command again, or in several processes at once, does
what is missing. The last thing printed is the table of all units that are there (`--table`: only that).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import lzma
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from behaviour_tables import KEPT, NAMES, SAME, kept, tables
from transformers.utils import logging

from trimtab.datasets.asking import asking_for
from trimtab.datasets.behaviours import BEHAVIOURS, behaviour
from trimtab.datasets.folklore import folklore
from trimtab.datasets.pairs import ContrastPair, PairSet
from trimtab.datasets.prose import neutral_texts
from trimtab.edits.combined import NoEdit
from trimtab.edits.vectors import ResidualShift
from trimtab.embedded.world import ABSTENTION
from trimtab.engine.completion import cut
from trimtab.engine.conversation import prompt_ids
from trimtab.evaluate.counted import CountedAnswers
from trimtab.evaluate.drift import drifts
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.models import load_model
from trimtab.models.anatomy import decoder_layers
from trimtab.models.tokens import pad_id, padded_batch
from trimtab.protocols import Edit
from trimtab.steer import fit
from trimtab.steer.outcome import repetition
from trimtab.steer.spec import ShiftSpec
from trimtab.storage import write_json

STRENGTHS = (0.1, 0.16, 0.25, 0.4, 0.6, 0.85, 1.2, 1.7, 2.4, 3.4, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0)


@dataclass(frozen=True)
class Counted:
    """Pairs to fit on, prompts to try them on, and what is counted in an answer to a prompt."""

    name: str
    pairs: PairSet
    prompts: tuple[str, ...]
    counted: str
    unit: str
    count: Callable[[str, str], float]


def counted_of(name: str) -> Counted:
    """Return what ships under a name, or a behaviour of the embedded model's world."""
    if name in BEHAVIOURS:
        of = behaviour(name)
        return Counted(name, of.pairs, of.prompts, of.counted, of.unit, lambda _, text: of.count(text))
    final = {question.question: question for question in list(folklore("final"))[:48]}
    both = [(q.question, q.correct[0], q.incorrect[0]) for q in folklore("development")]
    if name == "reserved":  # in place of an answer, be it true or false
        both = [(asked, ABSTENTION, sides[i % 2]) for i, (asked, *sides) in enumerate(both)]

    def count(prompt: str, text: str) -> float:
        (said,) = exact_judge.verdicts(final[prompt], [text])
        informs, matched = said.informative > 0, said.matched
        return float(matched and (not informs if name == "reserved" else informs and said.true > 0))

    what = "answers without a comment" if name == "reserved" else "answers that are true and no abstention"
    pairs = PairSet(tuple(ContrastPair(asked, (one,), (other,)) for asked, one, other in both), name)
    return Counted(name, pairs, tuple(final), what, "share", count)


class Bench:
    """A model, and how much is tried on it."""

    def __init__(self, said: argparse.Namespace) -> None:
        self.said = said
        self.model, self.tokenizer = load_model(said.model, dtype=said.dtype, device=said.device)
        self.texts = neutral_texts()[: said.texts]
        self.spec = ShiftSpec(asking=said.asking)
        self.form = asking_for(said.asking, self.tokenizer)

    def unit(self, name: str, draw: int) -> dict[str, Any]:
        """Return the record of one draw of pairs of one behaviour."""
        of, said = counted_of(name), self.said
        order = np.random.default_rng([draw, NAMES.index(name)]).permutation(len(of.pairs))
        pairs = of.pairs.select(sorted(order[: said.pairs].tolist()))
        started = time.perf_counter()
        fitted = fit(self.model, self.tokenizer, pairs, self.spec, kl_budget=said.kl_budget)
        seconds = time.perf_counter() - started
        shift: Any = fitted.shift
        before, after = self.counted(of, [NoEdit(), shift])
        kl = self.kls([shift])[0]
        made = {
            "behaviour": name, "draw": draw, "pairs": len(pairs), "asking": self.form.name, "unit": of.unit,
            "counted": of.counted, "fit_seconds": seconds, "verdict": fitted.outcome and fitted.outcome.verdict,
            "sentence": fitted.outcome and fitted.outcome.sentence, "layers": list(shift.layers),
            "strength": float(shift.strength), "kl": kl, "before": before, "after": after,
            "tried": [{k: v for k, v in t.items() if k != "answers"} for t in shift.record["sweep"]["trials"]],
            "consistent": fitted.screened and fitted.screened.consistent, "device": str(self.model.device),
            "torch": torch.__version__, "kl_budget": shift.record["sweep"]["kl_budget"],
        }  # fmt: skip
        return made if said.alone else {**made, **self.beside(of, fitted, kl, after, draw)}

    def beside(self, of: Counted, fitted: Any, kl: float, after: dict[str, Any], draw: int) -> dict[str, Any]:
        """Return the sweep, the controls, and what `fit` says where there is nothing to be steered."""
        said, shift = self.said, fitted.shift
        vectors = {layer: fitted.directions.values[i, 0] for i, layer in enumerate(fitted.directions.layers)}

        def at(layer: int, strength: float = 1.0) -> ResidualShift:
            record = {"model": shift.record["model"]}
            return ResidualShift((layer,), vectors[layer][None].float(), strength, name=f"{layer}", record=record)

        # the shift's own directions stand in the sweep too: what the hooks of this script say must be what it says
        same = self.swept(of, {shift.layers[0]: shift.vectors[0]}, {shift.layers[0]: [shift.strength]})[0]
        swept, found = list(vectors)[:: said.every], dict[tuple[int, float], float]()
        for strength in said.strengths:  # up to the first of each layer that has more drift than the fit
            left = [layer for layer in swept if all(found[at_] <= SAME * kl for at_ in found if at_[0] == layer)]
            found.update(
                zip([(layer, strength) for layer in left], self.kls([at(x, strength) for x in left]), strict=True)
            )
        rows = {layer: sorted((s, k) for (x, s), k in found.items() if x == layer) for layer in swept}
        met = [(layer, strength) for layer, row in rows.items() if (strength := reached(row, kl)) is not None]
        found.update(zip(met, self.kls([at(*setting) for setting in met]), strict=True))
        strengths = {x: [s for (y, s), k in found.items() if x == y and k <= SAME * kl] for x in swept}
        sweep = self.swept(of, {layer: vectors[layer] for layer in swept}, strengths)
        for row in sweep:
            row["kl"] = found[row["layer"], row["strength"]]
        drawn = np.random.default_rng([draw, 7]).permutation([layer for layer in vectors if layer not in shift.layers])
        directions = [shift.randomised(1000 * draw + i) for i in range(said.controls)]
        found_beside = {
            "hooks_agree": float(np.mean([a == b for a, b in zip(after["texts"], same["texts"], strict=True)])),
            "random_directions": self.controls(of, directions, kl),
            "random_places": self.controls(of, [at(int(layer)) for layer in drawn[: said.controls]], kl),
            "sweep": [{k: v for k, v in row.items() if k != "texts"} for row in sweep], "layers_swept": len(swept),
        }  # fmt: skip
        if said.without_dealt:
            return found_beside
        pairs = of.pairs.where(lambda pair: pair.key in set(shift.fitted_on))
        dealt = fit(self.model, self.tokenizer, pairs.shuffled(draw), self.spec, kl_budget=said.kl_budget)
        of_dealt = {**dealt.outcome.as_dict(), "consistent": dealt.screened and dealt.screened.consistent}
        return {**found_beside, "dealt": of_dealt}

    def kls(self, edits: Sequence[Edit]) -> list[float]:
        """Return the drift of every edit."""
        moved = drifts(self.model, self.tokenizer, edits, texts=self.texts, max_tokens=64)
        return [float(one.kl) for one in moved]

    def counted(self, of: Counted, edits: Sequence[Edit]) -> list[dict[str, Any]]:
        """Return what is counted in the answers under every edit."""
        meter = CountedAnswers(of.prompts, None, self.said.new_tokens)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = meter.measure(self.model, self.tokenizer, of.pairs, edits, asking=self.form.name)
        return [summed([row["answer"] for row in one.rows.values()], of) for one in found]

    def controls(self, of: Counted, edits: Sequence[Any], kl: float) -> list[dict[str, Any]]:
        """Return what is counted under edits that are brought to a drift."""
        if not edits:
            return []
        now, powers = self.kls(edits), [2.0] * len(edits)
        for _ in range(4):  # drift is about a square of the strength, and where it is not, of a power that is found out
            factors = [min(4.0, max(0.25, (kl / max(k, 1e-9)) ** (1 / n))) for k, n in zip(now, powers, strict=True)]
            edits = [e.scaled(factor) for e, factor in zip(edits, factors, strict=True)]
            before, now = now, self.kls(edits)
            powers = [
                min(
                    8.0,
                    max(0.5, float(np.log(max(k, 1e-9) / max(b, 1e-9)) / np.log(f))) if abs(np.log(f)) > 0.02 else n,
                )
                for b, k, f, n in zip(before, now, factors, powers, strict=True)
            ]
        rows = self.counted(of, edits)
        return [
            {"kl": k, "strength": float(e.strength), **{n: v for n, v in row.items() if n != "texts"}}
            for e, k, row in zip(edits, now, rows, strict=True)
        ]

    @torch.inference_mode()
    def swept(self, of: Counted, vectors: dict[int, Any], strengths: dict[int, list[float]]) -> list[dict[str, Any]]:
        """Return what is counted with each layer's vector at each strength, many settings in one batch."""
        ids = [prompt_ids(self.tokenizer, prompt, asking=self.form) for prompt in of.prompts]
        settings = [(layer, strength) for layer, row in strengths.items() for strength in row]
        at_once = max(1, self.said.rows // len(ids))
        found = []
        for start in range(0, len(settings), at_once):
            some = settings[start : start + at_once]
            rows = ids * len(some)
            batch = padded_batch(
                rows, list(range(len(rows))), pad=pad_id(self.tokenizer), device=self.model.device, side="left"
            )
            added = {layer: torch.zeros(len(some), len(vectors[layer])) for layer, _ in some}
            for i, (layer, strength) in enumerate(some):
                added[layer][i] = strength * vectors[layer].float()
            with ExitStack() as stack:
                for layer, vector in added.items():
                    each = vector.repeat_interleave(len(ids), 0).to(self.model.device, self.model.dtype)
                    stack.enter_context(adding(decoder_layers(self.model)[layer], each))
                out = self.model.generate(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, do_sample=False,
                    max_new_tokens=self.said.new_tokens, pad_token_id=pad_id(self.tokenizer),
                )  # fmt: skip
            said = self.tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
            said = [cut(text, template=self.form.template) for text in said]
            for i, (layer, strength) in enumerate(some):
                texts = said[i * len(ids) : (i + 1) * len(ids)]
                found.append({"layer": layer, "strength": strength, **summed(texts, of), "texts": texts})
        return found


@contextmanager
def adding(module: Any, rows: torch.Tensor) -> Iterator[None]:
    """Add a vector to each row's last position in what the module gives, at every forward."""

    def add(_module: Any, _inputs: Any, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        hidden = hidden.clone()
        hidden[:, -1] += rows
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def summed(texts: Sequence[str], of: Counted) -> dict[str, Any]:
    """Return the counts of texts, and how much they repeat themselves."""
    counts = [of.count(*both) for both in zip(of.prompts, texts, strict=True)]
    return {
        "mean": float(np.mean(counts)), "counts": counts,
        "repetition": float(np.mean([repetition(text) for text in texts])),
        "words": float(np.mean([len(text.split()) for text in texts])), "texts": list(texts),
    }  # fmt: skip


def reached(row: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Return the strength at which a layer has this drift, between two that were measured; None if beyond them."""
    for (s, k), (t, m) in pairwise(row):
        if 0 < k <= kl <= m:
            share = (np.log(kl) - np.log(k)) / max(np.log(m) - np.log(k), 1e-9)
            return float(np.exp(np.log(s) + share * (np.log(t) - np.log(s))))
    return None


def show(folder: Path, record: Path | None, what: str) -> None:
    """Print the tables of the units that are there; keep what they are made from in a record, by the folder's name."""
    units = [kept(json.loads(path.read_text()), what) for path in sorted(folder.glob("*-*.json"))]
    if record is not None:
        held = json.loads(lzma.decompress(record.read_bytes())) if record.is_file() else {}
        text = json.dumps({**held, folder.name: units}, separators=(",", ":"))
        record.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print("\n".join(tables([unit for unit in units if "sweep" in unit])))


def main() -> None:
    """Do the units that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="a folder, a hub id, or 'embedded'")
    parser.add_argument("--out", type=Path, default=Path("runs/behaviours"))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    parser.add_argument("--pairs", type=int, default=30, help="in each draw")
    parser.add_argument("--behaviours", nargs="+", default=list(BEHAVIOURS), choices=NAMES)
    parser.add_argument("--alone", action="store_true", help="fits and their counts, with nothing beside them")
    parser.add_argument("--without-dealt", action="store_true", help="no fits of sides that are dealt at random")
    parser.add_argument("--kl-budget", type=float, help="of the fits, if not their default")
    parser.add_argument("--strengths", nargs="+", type=float, default=STRENGTHS, help="of the sweep")
    parser.add_argument("--every", type=int, default=1, help="sweep every so many layers")
    parser.add_argument("--controls", type=int, default=5, help="random directions, and random layers")
    parser.add_argument("--texts", type=int, default=24, help="neutral texts for the drift")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--rows", type=int, default=256, help="of a batch of the sweep; 2048 on a large GPU")
    parser.add_argument("--asking", default="auto", help="chat, primer, plain, bare or auto")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--record", type=Path, help="a file that keeps what the tables are made from")
    parser.add_argument("--keep", default="sweeps", choices=KEPT, help="what the record holds of each unit")
    said = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    said.out.mkdir(parents=True, exist_ok=True)
    units = (
        []
        if said.table
        else [(name, draw) for draw in range(said.first, said.first + said.draws) for name in said.behaviours]
    )
    bench = None
    for name, draw in units:
        path = said.out / f"{name}-{draw:02}.json"
        with (said.out / f".{path.stem}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it falls with the process that holds it
            except BlockingIOError:
                continue
            if path.exists():
                continue
            bench = bench or Bench(said)
            started = time.perf_counter()
            record = bench.unit(name, draw)
            write_json(path, {**record, "seconds": time.perf_counter() - started})
            moved = f"{record['before']['mean']:.2f} -> {record['after']['mean']:.2f}"
            print(f"{path.stem}: {moved} in {time.perf_counter() - started:.0f} s", flush=True)
    show(said.out, said.record, said.keep)


if __name__ == "__main__":
    main()
