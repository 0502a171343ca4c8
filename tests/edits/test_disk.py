"""load_edit: whatever was saved comes back as it was; a folder never names code; mistakes are one sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import trimtab as tt
from tests.tiny import tiny_model
from trimtab.edits import HeadShift, NoEdit, Prompted, ResidualShift, Retrieved, Stacked, load_edit
from trimtab.edits.disk import HOLDING, KINDS
from trimtab.errors import Incompatible
from trimtab.protocols import Cost, Edit
from trimtab.storage import RECORD, load_record, save_result

SNOW = Prompted((("What is snow?", "White."),), "Be brief.", name="Snow", cost=Cost(1.5, 0, 12))
HEADS = HeadShift((tt.Head(1, 3), tt.Head(0, 1)), torch.eye(12)[:2], torch.ones(2), 3.0, name="Mine")
LAYERS = ResidualShift((1, 0), torch.ones(2, 48), -0.5)
EDITS = [
    NoEdit("Nothing"),
    SNOW,
    Retrieved(("what is snow", "what is coal"), ("White.", "Black."), 1, name="Found"),
    HEADS,
    LAYERS,
    Stacked((SNOW, HEADS, LAYERS), "All"),
    Stacked((Stacked((HEADS, LAYERS)), SNOW)),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: e.name)
def test_what_was_saved_comes_back_as_it_was(edit, tmp_path):
    edit.save(tmp_path / "edit")
    back = tt.load_edit(tmp_path / "edit")
    assert type(back) is type(edit) and (back.name, back.strength) == (edit.name, edit.strength)
    assert back.describe() == edit.describe()
    assert back.prompt("What is rust?") == edit.prompt("What is rust?")
    assert (back.unchanged_layers, back.changes_prompt_only) == (edit.unchanged_layers, edit.changes_prompt_only)
    model, ids = tiny_model(), torch.arange(5, 14)[None]

    def logits(one: Edit) -> torch.Tensor:
        with torch.no_grad(), one.applied(model, "all") as edited:
            return edited(ids, use_cache=False).logits

    assert torch.equal(logits(back), logits(edit))
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("kind", HOLDING)
def test_the_shift_in_a_run_is_found(kind, tmp_path):
    LAYERS.save(tmp_path / "run" / "shift")
    (tmp_path / "run" / RECORD).write_text(json.dumps({"kind": kind}))
    assert load_edit(tmp_path / "run").layers == (1, 0)


@dataclass(frozen=True)
class Doubled(Edit):
    """An edit of the user's own, with the declared members alone."""

    kind: ClassVar[str] = "doubled output"
    strength: float = 2.0
    name: str = "Doubled"

    def applied(self, model: Any, positions: Any = "generated") -> Any:
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        save_result(path, self.kind, {"strength": self.strength}, {})

    @classmethod
    def load(cls, path: str | Path) -> Doubled:
        return cls(load_record(path, cls.kind)["strength"])


def test_a_class_of_the_users_own_is_loaded_where_it_is_given_alone_or_in_a_stack(tmp_path):
    Doubled(3.0).save(tmp_path / "own")
    Stacked((Doubled(4.0), HEADS)).save(tmp_path / "stack")
    assert load_edit(tmp_path / "own", kinds=[Doubled]) == Doubled(3.0)
    assert load_edit(tmp_path / "stack", kinds=[Doubled]).edits[0] == Doubled(4.0)
    for folder in ("own", "stack"):
        with pytest.raises(Incompatible, match="found doubled output; give the class that loads it"):
            load_edit(tmp_path / folder)


def test_a_record_leads_to_no_folder_but_its_own_parts(tmp_path):
    HEADS.save(tmp_path / "elsewhere")
    Stacked((SNOW, HEADS)).save(tmp_path / "stack")
    record = json.loads((tmp_path / "stack" / RECORD).read_text())
    (tmp_path / "stack" / RECORD).write_text(json.dumps({**record, "edits": ["00", "../elsewhere"]}))
    with pytest.raises(Incompatible, match=r"expected an edit at .*stack/elsewhere, there is none"):
        load_edit(tmp_path / "stack")


def test_an_edit_without_a_form_on_disk_leaves_no_half_of_a_stack(tmp_path):
    class Formless(Doubled):
        save = Edit.save

    with pytest.raises(Incompatible, match=r"Doubled cannot be written to .* has no form on disk"):
        Stacked((HEADS, Formless())).save(tmp_path / "stack")
    assert not list(tmp_path.iterdir())
    with pytest.raises(Incompatible, match="cannot be read from"):
        Edit.load(tmp_path)


def test_what_is_no_edit_is_refused_and_the_nearest_results_are_offered(tmp_path):
    save_result(tmp_path / "probes", "probes", {}, {})
    HEADS.save(tmp_path / "truthful")
    with pytest.raises(Incompatible, match=r"nowhere, there is none; there is truthful$"):
        load_edit(tmp_path / "nowhere")
    with pytest.raises(Incompatible, match=r"truthfull, there is none; did you mean truthful\?$"):
        load_edit(tmp_path / "truthfull")
    with pytest.raises(Incompatible, match="probes, found probes; give the class"):
        load_edit(tmp_path / "probes")
    with pytest.raises(Incompatible, match="there is none; name a folder that an edit was saved to"):
        load_edit(tmp_path / "no" / "such")


def test_the_table_names_classes_that_say_the_same_of_themselves():
    from importlib import import_module

    for kind, dotted in KINDS.items():
        home, _, name = dotted.rpartition(".")
        if kind != "tuned edit":
            assert getattr(import_module(home), name).kind == kind


def test_prompts_have_no_strength_and_nothing_to_draw():
    for edit in (SNOW, NoEdit()):
        with pytest.raises(tt.BadValue, match="has no random counterpart"):
            edit.randomised(0)
    assert HEADS.with_record(sweep={"a": 1}).record == {"sweep": {"a": 1}} and HEADS.record == {}
    assert SNOW.renamed("Other").name == "Other" and SNOW.first(1) is SNOW
    with pytest.raises(tt.BadValue, match="the first 2 places of Snow asked for; it has 1"):
        SNOW.first(2)


@pytest.mark.parametrize("shift", [HEADS, LAYERS])
def test_a_random_counterpart_keeps_places_and_norms(shift):
    one, again, other = (shift.randomised(seed) for seed in (1, 1, 2))
    assert one.sites == shift.sites and torch.equal(one.rows, again.rows)
    assert torch.allclose(one.rows.norm(dim=1), shift.rows.norm(dim=1), rtol=1e-6)
    assert not torch.allclose(one.rows, other.rows, atol=0.1)


def test_residual_shifts_add_up_and_their_accuracy_follows_their_layers():
    one = ResidualShift((1, 0), torch.ones(2, 4), 2.0, record={"accuracy": [0.9, 0.8], "questions": ["b"]})
    both = one + ResidualShift((0, 2), torch.ones(2, 4), record={"questions": ["a"]})
    assert both.layers == (1, 0, 2) and both.vectors[:, 0].tolist() == [2.0, 3.0, 1.0]
    assert both.fitted_on == ["a", "b"]
    assert one.first(1).record["accuracy"] == [0.9]
    assert repr(one) == "ResidualShift('CAA', 2 layer(s), strength 2)"
    with pytest.raises(TypeError, match="unsupported operand"):
        one + HEADS
