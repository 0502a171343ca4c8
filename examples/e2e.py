"""E2E NLG in miniature: tune a LoRA on `valid`, continue meanings of `test` by beam search, and score the texts.

    python examples/e2e.py path/to/e2e [--model embedded] [--train 200] [--test 10]

The folder holds `valid.txt` and `test.txt` in the format of the LoRA repository. Decoding is the LoRA paper's for
GPT-2: 10 beams, length penalty 0.8, no repeated 4-grams, 64 new tokens. NOT COMPARABLE with published rows: those are
models of GPT-2's size, tuned on the training part and scored on all of `test`.
"""

import argparse
from pathlib import Path

import trimtab as tt
from trimtab.datasets.e2e import e2e, e2e_examples
from trimtab.engine.beam_search import BeamSettings


def main() -> None:
    """Tune, write, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with valid.txt and test.txt")
    parser.add_argument("--model", default="embedded", help="model folder, hub id or 'embedded'")
    parser.add_argument("--train", type=int, default=200, help="texts of valid.txt to tune on")
    parser.add_argument("--test", type=int, default=10, help="meanings of test.txt to score on")
    parser.add_argument("--epochs", type=float, default=3)
    arguments = parser.parse_args()
    model, tokenizer = tt.load_model(arguments.model)
    examples = e2e_examples(e2e(arguments.data / "valid.txt"))[: arguments.train]
    asked = e2e(arguments.data / "test.txt")[: arguments.test]
    lora = tt.peft.LoRA(r=8).fit(model, tokenizer, examples, knobs={"epochs": arguments.epochs})
    print(f"Decoded with {BeamSettings()}.")
    print(f"Not comparable with published rows: {len(examples)} texts of valid, {len(asked)} meanings of test.")
    rows = tt.compare.table(model, tokenizer, asked, [tt.NoEdit(), lora])
    print(rows.to_markdown())
    for row in rows.rows:
        print(f"{row.name}: {asked[0].meaning}\n  -> {row.details['references'][0]['text']}")


if __name__ == "__main__":
    main()
