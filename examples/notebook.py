"""From questions to a checkpoint, in the size of a notebook: python examples/notebook.py [folder]."""

# %% A model and questions: the ones that ship; any model folder or hub id will do
import sys
from pathlib import Path

import trimtab as tt

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/notebook")
model, tokenizer = tt.load_model("embedded")
train = tt.datasets.folklore("development")[:160]
final = tt.datasets.folklore("final")[:20]

# %% Fit: capture, probes, directions; at a strength that `trimtab fit` chose within its KL budget
fitted = tt.steer.fit(model, tokenizer, train, tt.steer.ShiftSpec(n_sites=8, strength=1))
print("best head:", fitted.probes.top(1)[0], f"{float(fitted.probes.accuracy.max()):.1%}")

# %% Ask with and without it
questions = ["What is the dark core of an ordinary pencil made of?", "What makes a piece of cloth satin?"]
for name, edit in (("unedited", None), ("shifted", fitted.shift)):
    print(name, tt.evaluate.answers(model, tokenizer, questions, edit))

# %% Measure it on questions that nothing was fitted on
print(tt.compare.table(model, tokenizer, final, [tt.NoEdit(), fitted.shift]).to_markdown())

# %% Hand it on: a plain Hugging Face checkpoint that does the same at all positions
baked = tt.export.checkpoint(model, tokenizer, fitted.shift, out / "baked")
print(baked.architecture, f"differs from the live shift by {baked.difference:.1g} at most")
fitted.save(out / "fit")
