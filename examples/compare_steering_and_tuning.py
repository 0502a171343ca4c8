"""Steering beside tuning on the same questions, through the Python API; a minute and a half on the model that ships.

    python examples/compare_steering_and_tuning.py [--out runs/example]

One fold, one seed, two settings a method and few questions: enough to see the shape of the table, too little to decide
anything by. `trimtab compare` does the same with more of everything, and `trimtab report` draws it.
"""

import argparse

import trimtab as tt

PASSES = tt.peft.Recipe(epochs=6)


def main() -> None:
    """Compare and print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="model folder, hub id or 'embedded'")
    parser.add_argument("--out", help="run folder that `trimtab report` reads; none is kept if not given")
    arguments = parser.parse_args()
    model, tokenizer = tt.load_model(arguments.model)
    sft = tt.peft.FullFineTuning(recipe=PASSES)
    result = tt.compare.run(
        model,
        tokenizer,
        tt.datasets.folklore("development")[:40],
        {"ITI": tt.steer.ITI(top_ks=(8,), alphas=(1, 2)), "SFT": sft, "LoRA": tt.peft.LoRA(r=8, recipe=PASSES)},
        test=tt.datasets.folklore("final")[:20],
        folds=1,
        seeds=(0,),
        trials=2,
        meters=tt.evaluate.answer_meters(texts=tt.datasets.neutral_texts()[:20], max_new_tokens=24, divide_texts=True),
        out=arguments.out,
    )
    for row in result.rows():
        if row.variant == "best":
            true_info = row.metrics["true_info"]
            shown = "not measured" if true_info is None else f"{100 * true_info.estimate:.0f} %"
            moved = row.metrics["kl"]
            drift = "" if moved is None else f", KL {moved.estimate:.3f} nats"
            print(f"{row.name}: True*Info {shown}{drift}, {row.costs['seconds']:.1f} s to make")


if __name__ == "__main__":
    main()
