"""`trimtab demo`: the whole of Inference-Time Intervention on the model that ships, beside a LoRA."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli.bundles import verb
from trimtab.cli.options import AsJson, Output

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from trimtab.evaluate.table import Table
    from trimtab.intervals import Estimate
    from trimtab.published.iti_run import ItiRun


@verb
def demo(
    output: Output = Output(Path("runs/demo")),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split into training and validation questions.")] = 0,
    draws: Annotated[int, typer.Option(min=0, help="Random directions to draw for the control.")] = 10,
    kl_budget: Annotated[float, typer.Option(help="Largest KL (nats per token) that the chosen shift may cost.")] = 0.1,
    as_json: AsJson = False,
) -> None:
    """Find the heads that carry truthfulness in the embedded model, shift them, and print what changed.

    Questions: trimtab's folklore. Probes and directions are fitted on training questions, K and strength chosen on
    validation questions, and the table is measured on the final part, which nothing was chosen on. Beside it stands a
    LoRA tuned on the same training questions, in three passes at its default learning rate.

    Example: trimtab demo --out runs/demo
    """
    from trimtab.cli.printing import print_json
    from trimtab.cli.setup import quiet
    from trimtab.compare.design import Parts
    from trimtab.datasets.folklore import folklore
    from trimtab.models.load.checkpoints import load_model
    from trimtab.peft.methods.lora import LoRA
    from trimtab.published.iti_run import RUN_KIND, ItiSettings, iti_run
    from trimtab.steer.strength import require_budget

    quiet()
    out = output.checked(RUN_KIND)
    require_budget(kl_budget)
    model, tokenizer = load_model("embedded")
    train, validation = folklore("development").split(test=0.4, seed=seed)
    tuned = LoRA(r=8).fit(model, tokenizer, train, seed=seed)
    parts = Parts(train, validation, folklore("final"))
    settings = ItiSettings(kl_budget=kl_budget, draws=draws, seed=seed)
    run = iti_run(model, tokenizer, parts, settings, others=[tuned])
    run.save(out)
    if as_json:
        print_json({**run.table.as_dict(), "reading": run.reading})
    else:
        _show(run, out)


def _show(run: "ItiRun", out: Path) -> None:
    from rich.console import Console

    from trimtab.probes.plots import text_map

    console = Console()
    console.width = max(console.width, 116)
    chosen = run.shift.record["sweep"]["chosen"]
    console.print("\nWhat each head's probe reads on validation statements (true or false?):", highlight=False)
    console.print(text_map(run.probes), highlight=False, markup=False)
    console.print(
        f"\nThe best head reads {100 * run.reading['best_head']:.1f} % of the final statements rightly (shuffled "
        f"labels: {100 * run.reading['shuffled_mean_head']:.1f} %).\nChosen on validation: the top "
        f"{chosen['top_k']} heads at strength {chosen['strength']:g}.\n",
        highlight=False,
    )
    console.print(rich_table(run.table))
    console.print("\nThree questions before and after:\n", highlight=False)
    before, after = (run.table[name].details["generated"] for name in ("Baseline", run.shift.name))
    for old, new in list(zip(before, after, strict=True))[:3]:
        console.print(f"  {old['question']}", markup=False, highlight=False)
        console.print(f"    before: {old['answer']}", markup=False, highlight=False)
        console.print(f"    after:  {new['answer']}\n", markup=False, highlight=False)
    console.print(f"Written to {out}: record.json, table.md, heads.png, sweep.png, shift/, probes/", highlight=False)


def rich_table(table: "Table") -> "RichTable":
    """Return the table for a terminal: means above, 95 % intervals below."""
    from rich import box
    from rich.table import Table as RichTable

    asked = f"{table.setting['n']} questions of {table.setting['questions']}"
    title = f"{asked}: means and 95 % intervals (%; CE, KL in nats)"
    shown = RichTable(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    for head in table.headings[1:]:
        shown.add_column(head, justify="right", no_wrap=True)
    for row in table.rows:
        shown.add_row(row.name, *(_two_lines(row[meter.name], meter.unit) for meter in table.meters))
    return shown


def _two_lines(value: "Estimate | None", unit: str) -> str:
    from trimtab.cells import MISSING, number

    if value is None:
        return MISSING
    low, high = (number(limit, unit, brief=True) for limit in (value.low, value.high))
    return f"{number(value, unit)}\n{low}-{high}"
