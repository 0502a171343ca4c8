"""A comparison's run folder in one small file, and back, so that its records can be published beside their table.

    python benchmarks/packed.py pack runs/real-casual casual.json.xz [--decimals 4] [--coarse mc2] [--without answer]
                                                                     [--unnamed multiple_choice]
    python benchmarks/packed.py unpack casual.json.xz runs/real-casual    # then: trimtab report runs/real-casual

Rows are held by column, items once; columns of few different values become one letter a row. Rows are rounded to so
many decimals (coarse columns to two), other numbers to five digits. Left out: losses of training, what probes read,
examples of prompts, which facts an edit holds, the end of an error's message, and the columns named. Unnamed items,
those that an instrument measures, stand by a hash of their text wherever they stand: data that is not ours to hand on.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

LETTERS = [chr(n) for n in (*range(48, 92), *range(93, 127), *range(0x100, 0x800))]
FEW = 8
"""Columns with at most so many different values are written together, as letters."""
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 0}]
LEFT_OUT = {"losses", "accuracy", "probe_accuracy", "examples", "facts", "not_taken"}

Rows = dict[str, dict[str, Any]]


def pack(
    run: Path, *, decimals: int = 4, coarse: Sequence[str] = (), without: Sequence[str] = (), unnamed: str | None = None
) -> bytes:
    """Return the records of a run folder in one compressed file."""
    items: dict[str, int] = {}
    hidden: set[str] = set()
    records, times = {}, defaultdict(lambda: 10**decimals, dict.fromkeys(coarse, 100)) | dict.fromkeys(without, 0)
    for path in sorted(run.glob("*.json")) + sorted(run.glob("records/*/*.json"), key=lambda p: (p.name, p)):
        record = json.loads(path.read_text(encoding="utf-8"))
        packed = {
            key: {name: packed_rows(rows, items, times) for name, rows in at.items()} for key, at in places(record)
        }
        for _, at in places(record):
            hidden |= set(at.get(unnamed, ()))
            at.clear()
        record = shortened(record)
        for key, at in places(record):
            at.update(packed[key])
        records[str(path.relative_to(run))] = record
    text = json.dumps({"items": list(items), "records": records}, separators=(",", ":"), ensure_ascii=False)
    for item in sorted(hidden, key=len, reverse=True):  # one may begin another
        text = text.replace(json.dumps(item, ensure_ascii=False)[1:-1], sha256(item.encode()).hexdigest()[:12])
    return lzma.compress(text.encode(), filters=FILTERS)


def unpack(file: Path, run: Path) -> None:
    """Write a run folder from its packed file."""
    held = json.loads(lzma.decompress(file.read_bytes()))
    for name, record in held["records"].items():
        if not (run / name).resolve().is_relative_to(run.resolve()):
            raise SystemExit(f"{file} holds a record that would lie outside the folder: {name}")
        for _, at in places(record):
            at.update({instrument: unpacked_rows(rows, held["items"]) for instrument, rows in at.items()})
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(json.dumps(record), encoding="utf-8")


def places(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return where a record holds rows: instrument -> item -> column -> value."""
    measured = record.get("measured", {})
    measured = {"drawn": measured} if "rows" in measured else measured  # a control's draw is one measurement
    found = [(key, at["rows"]) for key, at in measured.items()]
    return [*found, ("without_model", record["without_model"])] if record.get("without_model") is not None else found


def shortened(value: Any, message: bool = False) -> Any:
    """Return a value of JSON with its numbers rounded and errors' first sentence, without what no table is made of."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: shortened(v, k in ("why", "failed_trials")) for k, v in value.items() if k not in LEFT_OUT}
    if isinstance(value, str):
        value = re.sub(r"(?<![\w:/])/(?:[\w.-]+/)+", "", value)  # of a file its name alone
        return re.split(r"\. |\n", value)[0] if message else value
    return [shortened(inner, message) for inner in value] if isinstance(value, list) else value


def packed_rows(rows: Rows, items: dict[str, int], times: Mapping[str, int]) -> dict[str, Any]:
    """Return rows by columns: letters for those of few values, whole numbers of 1/times for the other numbers."""
    names = [name for name in next(iter(rows.values()), {}) if times[name]]
    columns = {name: [rounded(row[name], times[name]) for row in rows.values()] for name in names}
    few = [name for name in names if len({json.dumps(v) for v in columns[name]}) <= FEW]
    each = [json.dumps([columns[name][i] for name in few]) for i in range(len(rows))]
    kinds = list(dict.fromkeys(each))
    return {
        "items": [items.setdefault(item, len(items)) for item in rows],
        "few": few,
        "kinds": [json.loads(kind) for kind in kinds],
        "letters": "".join(LETTERS[kinds.index(kind)] for kind in each),
        "columns": {name: in_parts(column, times[name]) for name, column in columns.items() if name not in few},
    }


def rounded(value: Any, times: int) -> Any:
    """Return a row's value, a number in whole parts of 1/times."""
    return round(value * times) / times if isinstance(value, float) else value


def in_parts(column: list[Any], times: int) -> list[Any]:
    """Return [times, then whole numbers], [1, ...] of whole ones, or [0, then what is no number] as it is."""
    if not all(isinstance(value, int | float) for value in column):
        return [0, *column]
    times = 1 if all(value == int(value) for value in column) else times
    return [times, *(round(value * times) for value in column)]


def unpacked_rows(packed: dict[str, Any], items: list[str]) -> Rows:
    """Return what `packed_rows` was given, rounded and without the columns that were left out."""
    columns = {
        name: [value / times for value in values] if times else values
        for name, (times, *values) in packed["columns"].items()
    }
    rows = {}
    for i, (item, letter) in enumerate(zip(packed["items"], packed["letters"], strict=True)):
        few = zip(packed["few"], packed["kinds"][LETTERS.index(letter)], strict=True)
        rows[items[item]] = dict(few) | {name: column[i] for name, column in columns.items()}
    return rows


def main() -> None:
    """Pack or unpack, as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--decimals", type=int, default=4)
    parser.add_argument("--coarse", nargs="+", default=[], help="columns that are rounded to two decimals")
    parser.add_argument("--without", nargs="+", default=[], help="columns of rows that are left out")
    parser.add_argument("--unnamed", help="an instrument whose items' texts are not to be handed on")
    asked = parser.parse_args()
    if asked.what == "pack" and not (asked.source / "record.json").is_file():
        parser.error(f"no run to pack at {asked.source}: expected a folder written by `trimtab compare`")
    if asked.what == "unpack":
        if not asked.source.is_file() or asked.target.exists():
            parser.error(f"unpack takes a packed file and a new folder; got {asked.source} and {asked.target}")
        try:
            unpack(asked.source, asked.target)
        except (lzma.LZMAError, ValueError, KeyError):
            parser.error(f"{asked.source} is no file that this program packed")
    elif not (asked.source / "record.json").is_file():
        parser.error(f"{asked.source} is no run folder of a comparison: it has no record.json")
    else:
        how = {"decimals": asked.decimals, "coarse": asked.coarse, "without": asked.without, "unnamed": asked.unnamed}
        asked.target.write_bytes(pack(asked.source, **how))


if __name__ == "__main__":
    main()
