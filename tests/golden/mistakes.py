"""What users are told of their mistakes, on the command line and in Python."""

import json
import tempfile
from pathlib import Path

import torch

from tests.golden.verbs import Shell, folder_of_files, said

LINES = {
    "model missing": "fit --model nowhere/at/all --out o",
    "model folder empty": "evaluate --model empty --limit 2",
    "model encoder": "evaluate --model encoder --limit 2",
    "model damaged": "generate --model damaged x",
    "dtype": "generate x --dtype float33",
    "device": "generate x --device cuda:9",
    "device word": "generate x --device gpu",
    "quantization": "generate x --quantization nf5",
    "data missing": "fit --data mein.jsonl --out o",
    "data name": "fit --data folklor --out o",
    "data bad json": "fit --data bad.jsonl --out o",
    "data field": "fit --data field.jsonl --out o",
    "data both sides": "fit --data both.jsonl --out o",
    "data twice": "fit --data twice.jsonl --out o",
    "data empty": "fit --data nothing.jsonl --out o",
    "data kind": "fit --data asked.txt --out o",
    "data csv": "fit --data bad.csv --out o",
    "too many heads": "fit --limit 8 --top-k 4000 --strength 1 --out o",
    "k 0": "fit --limit 8 --top-k 0 --out o",
    "site": "fit --site head --out o",
    "direction": "fit --direction mean --out o",
    "direction residual": "fit --site residual --direction probe --limit 8 --out o",
    "metric": "fit --metric mc --out o",
    "budget": "fit --limit 8 --kl-budget -1 --out o",
    "budget nothing within": "fit --data mine.jsonl --model model --kl-budget 1e-9 --out o",
    "strength and judge": "fit --strength 1 --judge judge.py:odd --limit 8 --out o",
    "held out folklore": "fit --held-out 0.5 --out o",
    "held out": "fit --data mine.jsonl --held-out 1 --out o",
    "one question": "fit --limit 1 --out o",
    "out taken": "fit --limit 8 --strength 1 --out model",
    "out a file": "fit --limit 8 --strength 1 --out asked.txt",
    "pairs metric": "fit --data pairs.jsonl --metric mc1 --out o",
    "judge": "evaluate --limit 2 --judge exakt",
    "judge file": "evaluate --limit 2 --judge none.py:f",
    "judge name": "evaluate --limit 2 --judge judge.py:od",
    "judge broken": "evaluate --limit 2 --judge judge.py:broken",
    "judge address": "evaluate --limit 2 --judge http://localhost:1/v1",
    "judge tfidf": "evaluate --limit 2 --judge tfidf:nowhere",
    "convention": "evaluate --convention lm",
    "alpha without shift": "evaluate --alpha 2",
    "alpha nan": "evaluate --shift shift --alpha nan",
    "shift missing": "evaluate --shift shft",
    "shift of another model": "evaluate --shift shift --model model --data mine.jsonl --limit 2",
    "shift a model": "evaluate --shift model",
    "shift damaged": "evaluate --shift broken",
    "shift a tuned edit": "evaluate --shift tuned",
    "fitted on all": "evaluate --shift all --data mine.jsonl --model model",
    "keep without shift": "evaluate --keep --limit 2",
    "pairs convention": "evaluate --data pairs.jsonl --convention iti",
    "compare without shift": "generate x --compare",
    "temperature": "generate x --temperature 0",
    "file and prompt": "generate x --file asked.txt",
    "file missing": "generate --file none.txt",
    "empty question": ["generate", " "],
    "too long": ["generate", "why " * 3000],
    "too many new": "generate x --model model --max-new-tokens 100000",
    "heads of nothing": "heads nowhere",
    "heads of a model": "heads model",
    "heads against": "heads all --against model",
    "heads against site": "heads all --against everything",
    "heads plot": "heads all --plot heads.xyz",
    "bake nothing": "bake --shift shift --alpha 0 --out b",
    "bake another": "bake --shift shift --model model --out b",
    "lm-eval name": "convert to-lm-eval shift --out steered.bin",
    "iti missing": "convert from-iti nowhere --heads 2",
    "iti heads": "convert from-iti model --heads 3",
    "tune method": "tune --method lorra",
    "tune setting": "tune --set nothing=1",
    "tune setting form": "tune --set r",
    "tune setting value": "tune --set r=eight",
    "tune rank": "tune --rank 0",
    "tune rank large": "tune --model model --data mine.jsonl --rank 400 --set max_steps=1",
    "tune optimizer": "tune --set optimizer=sgd",
    "tune micro": "tune --batch-size 8 --set micro_batch=3",
    "tune warmup": "tune --set warmup=2",
    "tune length": "tune --model model --data mine.jsonl --set max_length=5",
    "tune targets": "tune --model model --data mine.jsonl --set targets=[nothing]",
    "tune epochs": "tune --epochs -1",
    "tune tracker": "tune --set report_to=paper",
    "merge missing": "merge --edit nowhere",
    "merge a shift": "merge --edit shift",
    "merge another": "merge --edit tuned --out m",
    "merge tolerance": "merge --edit tuned --model model --tolerance -1 --out m",
    "methods model": "methods --model nowhere/at/all",
    "compare file": "compare --config none.yaml",
    "compare quick and file": "compare --quick --config c.yaml",
    "report nothing": "report nowhere",
    "report a model": "report model",
    "reproduce protocol": "reproduce iti --data mine.jsonl",
    "demo budget": "demo --kl-budget 0 --out d",
}
FILES = {
    "key": "modle: embedded",
    "methods kind": "methods: 5",
    "methods empty": "methods: []",
    "method": "methods: [itti]",
    "method option": "methods: [{iti: {heads: 3}}]",
    "method value": "methods: [{lora: {r: eight}}]",
    "method knob": "methods: [{lora: {grid: {epochz: [1]}}}]",
    "method twice": "methods: [iti, iti]",
    "stack": "methods: ['few-shot + nothing']",
    "control alone": "methods: ['random direction']",
    "folds": "folds: 0",
    "many folds": "{questions: mine.jsonl, folds: 90}",
    "budget": "kl_budget: 0",
    "seeds": "seeds: [-1]",
    "sizes": "train_sizes: [2]",
    "low data": "low_data_methods: [nothing]",
    "yaml": "a: [",
    "list": "[1, 2]",
    "load": "load: {dtyp: float32}",
    "texts": "texts: none.txt",
}


def record(rec, app, made, tt, loaded, head_shift, residual_shift):
    """Record what each mistake leads to."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        _prepare(folder, made, tt, loaded, head_shift, residual_shift)
        shell = Shell(app, folder, rec.places)
        for key, line in LINES.items():
            code, _, error = shell(line)
            rec.put(f"cli/{key}", [code, error])
        for key, text in FILES.items():
            (folder / "m.yaml").write_text(text)
            code, _, error = shell("compare --config m.yaml --dry-run")
            rec.put(f"file/{key}", [code, error])
        for key, act in _acts(tt, made, loaded, head_shift, residual_shift, folder).items():
            try:
                act()
                rec.put(f"python/{key}", "nothing raised")
            except Exception as cause:
                rec.put(f"python/{key}", [type(cause).__name__, said(str(cause), shell.places)])


def _prepare(folder, made, tt, loaded, head_shift, residual_shift):
    import transformers

    folder_of_files(folder, made)
    good = {"question": "Why?", "correct": ["a"], "incorrect": ["b"]}
    files = {
        "bad.jsonl": '{"question": "Why?",',
        "field.jsonl": json.dumps({"question": "Why?", "correct": ["a"]}),
        "both.jsonl": json.dumps({**good, "incorrect": ["a"]}),
        "twice.jsonl": "\n".join([json.dumps(good)] * 2),
        "nothing.jsonl": "",
        "bad.csv": "question,correct\nWhy?,a\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    for name in ("empty", "broken", "damaged"):
        (folder / name).mkdir()
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config.save_pretrained(folder / "encoder")
    (folder / "damaged" / "config.json").write_text("{")
    head_shift("embedded").save(folder / "shift")
    residual_shift("embedded").save(folder / "res")
    head_shift("llama").save(folder / "broken" / "x")
    (folder / "broken" / "x" / "record.json").replace(folder / "broken" / "record.json")
    model, tokenizer, _ = loaded("llama")
    tt.steer.fit(model, tokenizer, made.questions_of(8), tt.steer.ShiftSpec(strength=1, top_k=2)).save(folder / "all")
    tt.steer.fit(model, tokenizer, made.questions_of(8), tt.steer.ShiftSpec(strength=1, site="residual")).save(
        folder / "everything"
    )
    tt.peft.LoRA(r=2, recipe=tt.peft.Recipe(max_steps=1)).fit(model, tokenizer, made.questions_of(4)).save(
        folder / "tuned"
    )


def _acts(tt, made, loaded, head_shift, residual_shift, folder):
    model, tokenizer, questions = loaded("llama")
    acts = tt.capture_heads(model, tokenizer, questions.statements())
    found = tt.probes.fit_logistic(acts, validation=0.4)
    stream = tt.capture_heads(model, tokenizer, questions.statements(), site="residual")
    shift, other = head_shift("llama"), head_shift("gpt2")
    Question, Set, Head = tt.datasets.Question, tt.datasets.QuestionSet, tt.Head
    peft, compare, evaluate, steer = tt.peft, tt.compare, tt.evaluate, tt.steer
    ids = made.tokens()

    def applied(edit, positions, **given):
        with edit.applied(model, positions) as edited:
            edited(input_ids=ids, **given)

    def added(deltas):
        with tt.add_to_heads(model, deltas, "all"):
            model(input_ids=ids)

    def generated(tokens=ids, **given):
        with shift.applied(model):
            model.generate(tokens, max_new_tokens=3, pad_token_id=0, do_sample=False, **given)

    right = torch.ones(2, 9, dtype=torch.long)
    right[0, -3:] = 0
    return {
        "no statements": lambda: tt.capture_heads(model, tokenizer, []),
        "texts for statements": lambda: tt.capture_heads(model, tokenizer, ["a"]),
        "position": lambda: tt.capture_heads(model, tokenizer, questions.statements(), position="first"),
        "site": lambda: tt.capture_heads(model, tokenizer, questions.statements(), site="mlp"),
        "named heads": lambda: tt.capture_heads(model, tokenizer, questions.statements(), site={0: ("nothing", 4)}),
        "named number": lambda: tt.capture_heads(
            model, tokenizer, questions.statements(), site={0: ("model.layers.0.self_attn.o_proj", 5)}
        ),
        "heads of no model": lambda: tt.find_heads(torch.nn.Linear(2, 2)),
        "long": lambda: tt.capture_heads(model, tokenizer, Set((Question("why " * 400, ("a",), ("b",)),)).statements()),
        "C": lambda: tt.probes.fit_logistic(acts, C=0),
        "validation": lambda: tt.probes.fit_logistic(acts, validation=1.0),
        "validation same": lambda: tt.probes.fit_logistic(acts, validation=acts),
        "top 0": lambda: found.top(0),
        "top many": lambda: found.top(1000),
        "scores of other": lambda: found.scores(stream),
        "direction": lambda: steer.fit_shift(acts, found, direction="mean"),
        "fit heads 0": lambda: steer.fit_shift(acts, found, top_k=0),
        "fit on residual": lambda: steer.fit_shift(stream, found),
        "residual on heads": lambda: steer.fit_residual_shift(acts, found),
        "first": lambda: shift.first(99),
        "scaled": lambda: shift.scaled(float("nan")),
        "sum": lambda: shift + other,
        "other model": lambda: applied(other, "all"),
        "positions": lambda: applied(shift, "some"),
        "no cache": lambda: applied(shift, "generated", use_cache=False),
        "mask shape": lambda: applied(shift, torch.ones(1, 3)),
        "mask empty": lambda: applied(shift, tt.TokenMask()),
        "right padding": lambda: generated(attention_mask=right),
        "speculative": lambda: generated(ids[:1], prompt_lookup_num_tokens=3),
        "head": lambda: added({Head(9, 0): torch.zeros(12)}),
        "delta": lambda: added({Head(0, 0): torch.zeros(5)}),
        "shift empty": lambda: steer.HeadShift((), torch.zeros(0, 3), torch.zeros(0)),
        "shift twice": lambda: steer.HeadShift((Head(0, 0),) * 2, torch.ones(2, 3), torch.ones(2)),
        "stack of one": lambda: tt.Stacked((shift,)),
        "stack of prompts": lambda: tt.Stacked((tt.Prompted((("a", "b"),)),) * 2),
        "prompted": lambda: tt.Prompted(()),
        "no questions": lambda: evaluate.multiple_choice(model, tokenizer, []),
        "convention": lambda: evaluate.multiple_choice(model, tokenizer, questions, convention="x"),
        "primer too long": lambda: evaluate.multiple_choice(model, tokenizer, questions, convention="lm-eval"),
        "judge": lambda: evaluate.generate_answers(
            model, tokenizer, questions[:1], judge=lambda q, a: 7, max_new_tokens=2
        ),
        "judge range": lambda: evaluate.generate_answers(
            model, tokenizer, questions[:1], judge=lambda q, a: (2, 0), max_new_tokens=2
        ),
        "new tokens": lambda: evaluate.generate_answers(model, tokenizer, questions[:1], max_new_tokens=1000),
        "drift text": lambda: evaluate.drift(model, tokenizer, texts="one"),
        "drift short": lambda: evaluate.drift(model, tokenizer, texts=[""]),
        "drift tokens": lambda: evaluate.drift(model, tokenizer, max_tokens=1),
        "no answers": lambda: evaluate.answers(model, tokenizer, []),
        "template": lambda: evaluate.prompt_ids(tokenizer, "a", template=True),
        "strength metric": lambda: steer.choose_strength(model, tokenizer, questions, shift, metric="x"),
        "strength alphas": lambda: steer.choose_strength(
            model, tokenizer, questions, shift, sweep=steer.Sweep(alphas=())
        ),
        "strength heads": lambda: steer.choose_strength(
            model, tokenizer, questions, shift, sweep=steer.Sweep(top_ks=(50,))
        ),
        "knobs": lambda: steer.ITI().fit(model, tokenizer, questions, knobs={"k": 1}),
        "caa rank": lambda: steer.CAA().fit(model, tokenizer, questions, knobs={"rank": 9, "alpha": 1}),
        "iti direction": lambda: steer.ITI(direction="random"),
        "load": lambda: steer.load_shift(folder / "model"),
        "load activations": lambda: tt.HeadActivations.load(folder / "nowhere"),
        "load edit": lambda: peft.TunedEdit.load(folder / "shift"),
        "bake scaled 0": lambda: tt.export.checkpoint(model, tokenizer, shift.scaled(0), folder / "b"),
        "rank": lambda: peft.LoRA(r=0),
        "targets": lambda: peft.LoRA(targets="kv"),
        "dropout": lambda: peft.LoRA(dropout=1),
        "dora scaled": lambda: peft.LoRA(dora=True).scaled_tensors({}, 2),
        "bottleneck": lambda: peft.Bottleneck("other"),
        "prompt length": lambda: peft.PromptTuning(0),
        "adapter": lambda: peft.Adapter("vera"),
        "schedule": lambda: peft.Recipe(schedule="x"),
        "knob": lambda: peft.IA3().fit(model, tokenizer, questions, knobs={"rank": 1}),
        "top": lambda: peft.FullFineTuning(9).attach(model, seed=0),
        "offsets head": lambda: peft.HeadOffsets(heads=(Head(9, 9),)).attach(model, seed=0),
        "nothing to learn": lambda: peft.IA3().fit(model, tokenizer, [tt.datasets.SftExample("a", "")]),
        "folds": lambda: compare.run(model, tokenizer, questions, [steer.ITI()], folds=0),
        "methods": lambda: compare.run(model, tokenizer, questions, []),
        "control": lambda: compare.run(model, tokenizer, questions, [steer.RandomDirection()]),
        "draws": lambda: steer.RandomDirection(draws=1),
        "meters": lambda: evaluate.answer_meters(texts=["a"]),
        "comparison": lambda: compare.Comparison.load(folder / "model"),
        "question": lambda: Question("Why?", (), ("b",)),
        "question best": lambda: Question("Why?", ("a",), ("b",), best_answer="c"),
        "set": lambda: Set(()),
        "split": lambda: questions.split(test=0.0),
        "split seed": lambda: questions.split(seed=-1),
        "question folds": lambda: questions.folds(1),
        "format": lambda: questions.statements("x"),
        "format loses": lambda: questions.statements(lambda q, a: q),
        "part": lambda: tt.datasets.folklore("x"),
        "truthfulqa": lambda: tt.datasets.truthfulqa(folder / "bad.csv"),
        "model": lambda: tt.load_model(folder / "empty"),
    }
