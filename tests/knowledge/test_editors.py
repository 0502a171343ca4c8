"""Values and editors: what is written is what was sought, what is sought is the answer; what cannot be is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import normalizers, processors

from tests.cases import FACTS
from tests.observing import random_state, state_of
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab import NoEdit
from trimtab.datasets import Fact, FactSet
from trimtab.edits.disk import load_edit
from trimtab.errors import BadDataset, BadValue, Incompatible, UnsupportedModel
from trimtab.knowledge import EMMET, MEMIT, ROME, AlphaEdit, FineTuneL, InBatches, KeyStatistics, ValueSearch
from trimtab.knowledge.keys import Lookup, contexts, fact_texts, seen_at, subject_last
from trimtab.knowledge.solve import least_squares
from trimtab.knowledge.value import SoughtValue, answer_ids, sought_values
from trimtab.models.anatomy import decoder_layers
from trimtab.models.identity import fingerprint
from trimtab.models.mlp import find_mlp_outputs
from trimtab.models.weights import changed_weights

CONTEXTS = ("", "Some text. ", "Now. ")
ONE = Fact("snow", "The colour of {} is", "blue", "white")
FIRST = Fact("Coal", "{} is", "red")
SHORT = Fact("Q", "{} is", "red")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*stayed unlikely")
        yield


def sought_value(
    model: Any, tokenizer: Any, fact: Fact, site: Any, before: tuple[str, ...], search: ValueSearch
) -> SoughtValue:
    (found,) = sought_values(model, tokenizer, fact_texts(model, tokenizer, [fact], before), site, search)
    return found


def plain(fact: Fact) -> Lookup:
    return subject_last(tiny_tokenizer(), fact.asked, fact.span)


def plain_loss(model: Any, fact: Fact, contexts: tuple[str, ...], tokenizer: Any = None) -> float:
    """Return the mean negative log-likelihood of a token of the answer, from whole plain forwards."""
    tokenizer = tokenizer or tiny_tokenizer()
    losses = []
    for before in contexts:
        prompt = tokenizer(before + fact.asked)["input_ids"]
        whole = tokenizer(f"{before}{fact.asked} {fact.new}")["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([whole]), use_cache=False).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(whole) - 1)
        losses.append(-sum(float(logprobs[i, whole[i + 1]]) for i in places) / len(places))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox", "gemma2"])
@pytest.mark.parametrize("fact", [ONE, FIRST, SHORT], ids=["in the middle", "first", "one token"])
def test_the_first_loss_is_that_of_plain_forwards_and_the_last_that_of_the_changed_output(family, fact):
    model = tiny_model(family)
    before, draws = state_of(model), random_state()
    site = find_mlp_outputs(model)[1]
    found = sought_value(model, tiny_tokenizer(), fact, site, CONTEXTS, ValueSearch(steps=3))
    assert (state_of(model), random_state()) == (before, draws)
    assert found.losses[0] == pytest.approx(plain_loss(model, fact, CONTEXTS), rel=1e-4)
    assert found.losses[-1] < found.losses[0]
    # added by a bare hook, at the subject's last token alone
    (texts,) = fact_texts(model, tiny_tokenizer(), [fact], CONTEXTS)
    places = [text.place for text in texts.asked]
    losses = []
    for context, place in zip(CONTEXTS, places, strict=True):

        def add(module: Any, args: Any, out: torch.Tensor, place: int = place) -> torch.Tensor:
            out = out.clone()
            out[:, place] += found.added.to(out.dtype)
            return out

        handle = site.module.register_forward_hook(add)
        losses.append(plain_loss(model, fact, (context,)))
        handle.remove()
    assert sum(losses) / 3 == pytest.approx(found.losses[-1], rel=1e-3)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_a_value_is_what_adam_makes_of_the_stated_loss_in_whole_plain_forwards(family):
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    site, search = find_mlp_outputs(model)[1], ValueSearch(steps=4, radius=2.0, kl=3.0, decay=5.0)
    found = sought_value(model, tokenizer, ONE, site, CONTEXTS, search)
    (texts,) = fact_texts(model, tokenizer, [ONE], CONTEXTS)
    there = seen_at(model, tokenizer, [plain(ONE)], [], [site.module]).outputs[site.module].norm()
    delta = torch.zeros(site.d_out, requires_grad=True)

    def said(ids: list[int], place: int) -> torch.Tensor:
        def add(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            return torch.cat([out[:, :place], out[:, place : place + 1] + delta, out[:, place + 1 :]], 1)

        handle = site.module.register_forward_hook(add)
        logprobs = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        handle.remove()
        return logprobs

    def likelihoods() -> Iterator[torch.Tensor]:
        for text in texts.asked:
            whole = tokenizer(f"{text.text} {ONE.new}")["input_ids"]
            places = torch.arange(len(text.ids) - 1, len(whole) - 1)
            yield said(whole, text.place)[places, torch.tensor(whole)[places + 1]].mean()

    essence = texts.essence
    stays = said(essence.ids, essence.place)[essence.place].detach()
    optimizer = torch.optim.Adam([delta], lr=0.3 * 2.0 * float(there) / site.d_out**0.5)
    for _ in range(3):
        moved = said(essence.ids, essence.place)[essence.place]
        kl = (stays.exp() * (stays - moved)).sum()
        loss = -torch.stack([*likelihoods()]).mean() + 3.0 * kl + 5.0 * delta.norm() / float(there) ** 2
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        optimizer.step()
    torch.testing.assert_close(found.added.float(), delta.detach(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma2"])
def test_facts_that_share_forwards_get_the_values_that_they_get_alone(family):
    model = tiny_model(family)
    site, search = find_mlp_outputs(model)[1], ValueSearch(steps=6, rate=1.0, radius=20, kl=0, decay=0)
    likely = model_answer(model)  # done after a step, and the others go on
    facts = [ONE, likely, FIRST, SHORT]
    texts = fact_texts(model, tiny_tokenizer(), facts, ("", "Now. "))
    together = sought_values(model, tiny_tokenizer(), texts, site, search)
    for fact, of_batch in zip(facts, together, strict=True):
        alone = sought_value(model, tiny_tokenizer(), fact, site, ("", "Now. "), search)
        assert alone.losses == pytest.approx(of_batch.losses, rel=1e-3, abs=1e-4)
        torch.testing.assert_close(alone.added, of_batch.added, rtol=1e-3, atol=1e-3)


def model_answer(model: Any) -> Fact:
    """Return a fact whose answer the model gives already, behind a subject of many tokens."""
    subject = "The wide and cold northern sea"
    for answer in ("a", "b", "the", "sky", "is"):
        fact = Fact(subject, "{} is", answer)
        if plain_loss(model, fact, ("",)) < 2:
            return fact
    return Fact(subject, "{} is", "a")


def test_no_more_is_added_than_the_radius_allows():
    model = tiny_model()
    site = find_mlp_outputs(model)[1]
    for radius in (0.5, 2.0):
        found = sought_value(model, tiny_tokenizer(), ONE, site, CONTEXTS, ValueSearch(steps=8, radius=radius))
        there = seen_at(model, tiny_tokenizer(), [plain(ONE)], [], [site.module]).outputs[site.module].norm()
        assert float(found.added.norm()) <= radius * float(there) * (1 + 1e-5)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma2"])
def test_rome_changes_the_mean_key_s_value_by_what_was_sought(family):
    model = tiny_model(family)
    site = find_mlp_outputs(model)[1]
    edit = ROME(moment="identity", before=0, search=ValueSearch(steps=4)).fit(model, tiny_tokenizer(), FactSet((ONE,)))
    sought = sought_value(model, tiny_tokenizer(), ONE, site, ("",), ValueSearch(steps=4))
    key = seen_at(model, tiny_tokenizer(), [plain(ONE)], [site.module]).inputs[site.module][0]
    before = site.module(key.float())
    with edit.applied(model):
        moved = site.module(key.float()) - before
    torch.testing.assert_close(moved.double(), sought.added, rtol=1e-4, atol=1e-4)
    assert edit.unchanged_layers == 1
    assert list(edit.changes) == [site.weight]


def dense(edit: Any) -> torch.Tensor:
    (change,) = edit.changes.values()
    return (change.left @ change.right).double()


def test_rome_s_key_is_the_mean_of_those_behind_all_contexts():
    model, tokenizer, search = tiny_model(), tiny_tokenizer(), ValueSearch(steps=4)
    site, before = find_mlp_outputs(model)[1], contexts(model, tokenizer, 3, 0)
    edit = ROME(moment="identity", before=3, search=search).fit(model, tokenizer, FactSet((ONE,)))
    (texts,) = fact_texts(model, tokenizer, [ONE], before)
    keys = seen_at(model, tokenizer, texts.asked, [site.module]).inputs[site.module]
    sought = sought_value(model, tokenizer, ONE, site, before, search).added
    torch.testing.assert_close(dense(edit) @ keys.mean(0), sought, rtol=1e-3, atol=1e-4)
    assert float((dense(edit) @ keys[0] - sought).norm()) > 0.01 * float(sought.norm())  # the control


def test_rome_writes_a_later_fact_into_the_model_that_the_earlier_ones_left():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    method = ROME(moment="identity", before=0, search=ValueSearch(steps=4))
    both, first, alone = (method.fit(model, tokenizer, FactSet(facts)) for facts in ((ONE, FIRST), (ONE,), (FIRST,)))
    with first.applied(model):
        then = method.fit(model, tokenizer, FactSet((FIRST,)))
    torch.testing.assert_close(dense(both), dense(first) + dense(then), rtol=1e-3, atol=1e-4)
    assert float((dense(then) - dense(alone)).norm()) > 0.01 * float(dense(alone).norm())  # the control


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_one_fact_in_one_layer_is_the_same_by_rome_and_by_emmet(family):
    search = ValueSearch(steps=4)
    model, facts = tiny_model(family), FactSet((ONE,))
    rome = ROME(moment="identity", before=0, search=search).fit(model, tiny_tokenizer(), facts)
    emmet = EMMET(moment="identity", before=0, search=search).fit(model, tiny_tokenizer(), facts)
    for name, change in rome.changes.items():
        other = emmet.changes[name]
        torch.testing.assert_close(change.left @ change.right, other.left @ other.right, rtol=1e-3, atol=1e-5)


def test_memit_brings_every_fact_s_layer_to_its_goal_by_the_share_that_was_asked_for():
    model = tiny_model()
    search = ValueSearch(steps=4, measured_by="layer")

    def left(share: float) -> float:
        method = MEMIT(moment="identity", before=0, layers=(0, 1), search=search, share=share)
        edit = method.fit(model, tiny_tokenizer(), FACTS)
        sites = find_mlp_outputs(model)
        layer = model.model.layers[1]
        texts = [plain(fact) for fact in FACTS]
        now = seen_at(model, tiny_tokenizer(), texts, [], [layer]).outputs[layer]
        wanted = torch.stack(
            [sought_value(model, tiny_tokenizer(), fact, sites[1], ("",), search).added for fact in FACTS]
        )
        with edit.applied(model):
            after = seen_at(model, tiny_tokenizer(), texts, [], [layer]).outputs[layer]
        return float((now + wanted - after).norm() / wanted.norm())

    assert left(1.0) < 1e-3  # the last layer writes exactly what the ones below left over
    assert left(1e-4) > 0.5


def test_memit_s_key_is_half_the_plain_prompt_s_and_half_the_mean_of_those_behind_contexts():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    search, site = ValueSearch(steps=2, measured_by="layer"), find_mlp_outputs(model)[1]
    edit = MEMIT(moment="identity", before=3, layers=(1,), search=search).fit(model, tokenizer, FactSet((ONE,)))
    (texts,) = fact_texts(model, tokenizer, [ONE], contexts(model, tokenizer, 3, 0))
    first, *others = seen_at(model, tokenizer, texts.asked, [site.module]).inputs[site.module]
    (key,) = edit.keys[site.weight]
    torch.testing.assert_close(key.double(), first / 2 + torch.stack(others).sum(0) / 6, rtol=1e-4, atol=1e-5)


def test_alpha_edit_moves_nothing_outside_the_free_directions():
    model = tiny_model()
    keys = torch.randn(200, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys[:, :40] *= 10
    moment = KeyStatistics({1: keys.T @ keys / 200}, 200)
    method = AlphaEdit(moment=moment, ridge=0.0, before=0, free=0.005, layers=(1,), search=ValueSearch(steps=4))
    edit = method.fit(model, tiny_tokenizer(), FACTS)
    (change,) = edit.changes.values()
    dense = change.left @ change.right
    assert float(dense[:, :40].norm()) < 0.1 * float(dense[:, 40:].norm())
    assert 1 <= edit.record["written"]["layer 1"]["directions"] <= 24


def test_an_edit_makes_the_answer_likelier_and_random_values_of_equal_norm_do_not(tmp_path):
    model, facts = tiny_model(), FactSet((replace(ONE, new="red"),))
    # a random model attends so evenly that no one position decides what it says
    search = ValueSearch(steps=60, radius=8, rate=0.1, kl=0, decay=0)
    method = ROME(moment="identity", before=0, layers=(0,), search=search)
    edit = method.fit(model, tiny_tokenizer(), facts)
    assert edit.record["not_taken"] == [ONE.asked]
    unedited, likely, chance, nothing = (
        plain_loss_of(model, e, facts[0]) for e in (NoEdit(), edit, edit.randomised(0), edit.scaled(0))
    )
    assert likely < unedited - 0.5 and likely < chance - 0.5
    assert nothing == unedited
    edit.save(tmp_path / "edit")
    loaded = load_edit(tmp_path / "edit")
    assert loaded.record["method"]["method"] == "ROME"
    assert plain_loss_of(model, loaded, facts[0]) == likely


def plain_loss_of(model: Any, edit: Any, fact: Fact) -> float:
    with edit.applied(model, "all") as edited:
        return plain_loss(edited, fact, ("",))


def test_fine_tuning_stays_within_its_bound_and_lowers_the_loss():
    model = tiny_model()
    before = state_of(model)
    edit = FineTuneL(steps=8, rate=0.02, bound=0.03).fit(model, tiny_tokenizer(), FACTS)
    assert state_of(model) == before
    (change,) = edit.changes.values()
    assert float(change.abs().max()) == pytest.approx(0.03)
    assert (
        edit.losses[-1]
        < edit.losses[0]
        == pytest.approx(sum(plain_loss(model, fact, ("",)) for fact in FACTS) / 2, rel=1e-4)
    )
    with edit.applied(model, "all") as edited:
        assert plain_loss(edited, FACTS[0], ("",)) < plain_loss(tiny_model(), FACTS[0], ("",))


@pytest.mark.parametrize(
    "method, facts, family, error, words",
    [
        (ROME(moment="identity"), tiny_questions(3), "llama", BadDataset, "takes facts, got QuestionSet"),
        (ROME(moment="identity", layers=(7,)), FACTS, "llama", BadValue, "no layer 7"),
        (ROME(moment="identity", layers=(0, 1)), FACTS, "llama", BadValue, "into one layer"),
        (ROME(n_tokens=30, cache=None, before=0), FACTS, "gpt2", BadValue, "too few for keys of 192"),
        (ROME(moment=KeyStatistics({0: torch.eye(64)}, 99)), FACTS, "llama", Incompatible, "lack layer 1"),
        (MEMIT(moment="identity", before=0), FACTS, "gemma2", UnsupportedModel, "a norm"),
        (AlphaEdit(before=0), FACTS, "gemma2", UnsupportedModel, "a norm"),
        (FineTuneL(layer=9), FACTS, "llama", BadValue, "no layer 9"),
        (FineTuneL(), tiny_questions(3), "llama", BadDataset, "takes facts"),
    ],
)
def test_what_cannot_be_edited_is_refused_in_one_sentence(method, facts, family, error, words):
    model = tiny_model(family)
    before = state_of(model)
    with pytest.raises(error, match=words) as refused:
        method.fit(model, tiny_tokenizer(), facts)
    assert "\n" not in str(refused.value)
    assert state_of(model) == before


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(BadValue, match="share"):
        MEMIT(share=0)
    with pytest.raises(BadValue, match="free is the share"):
        AlphaEdit(free=1.0)
    with pytest.raises(BadValue, match="steps"):
        ValueSearch(steps=0)


def test_a_prompt_whose_tokens_change_when_the_answer_follows_is_refused():
    model = tiny_model()
    joined = Fact("snow", "The colour of {} is the", "sky.")
    whole = tiny_tokenizer()(f"{joined.asked} {joined.new}")["input_ids"]
    prompt = tiny_tokenizer()(joined.asked)["input_ids"]
    assert whole[: len(prompt)] == prompt  # here they do not; a prompt that ends in a space would
    site = find_mlp_outputs(model)[1]
    with pytest.raises(BadValue, match="change when"):
        answer_ids(tiny_tokenizer(), plain(ONE)._replace(text="The sky is the colou"), "r")
    assert site.additive


def keeping(cls: Any, **options: Any) -> Any:
    """Return an editor of one layer by statistics that were made up."""
    keys = torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = KeyStatistics(dict(enumerate(keys.mT @ keys / 200)), 200)
    search = ValueSearch(steps=4, measured_by="layer")
    return cls(**{"moment": moment, "before": 0, "layers": (1,), "search": search, **options})


MORE = FactSet((Fact("Coal", "{} is now", "red"), Fact("A rose", "{} is", "grey")))


@pytest.mark.parametrize("cls", [MEMIT, EMMET, AlphaEdit])
def test_a_later_edit_leaves_the_values_of_earlier_facts_if_it_is_told_of_them(cls, tmp_path):
    model, editor = tiny_model(), keeping(cls, share=1.0, **({"free": 0.9} if cls is AlphaEdit else {}))
    first = editor.fit(model, tiny_tokenizer(), FACTS)
    (weight,) = first.changes
    assert first.record["keys"] == {weight: [fact.key for fact in FACTS]}
    first.save(tmp_path / "first")
    first = load_edit(tmp_path / "first")  # keys are kept with it
    with first.applied(model):
        told = replace(editor, previous=first).fit(model, tiny_tokenizer(), MORE)
        untold = editor.fit(model, tiny_tokenizer(), MORE)

    def moved(edit: Any) -> float:
        change = edit.changes[weight]
        return float((change.left @ (change.right @ first.keys[weight].T)).norm())

    assert moved(told) < 1e-3 * moved(untold)
    assert told.record["previous"] == [fact.key for fact in FACTS]
    assert told.record["written"]["layer 1"]["earlier_keys"] == 2
    both = first + told
    assert both.record["keys"][weight] == [fact.key for fact in (*FACTS, *MORE)]
    assert both.keys[weight].shape == (4, 64)


def test_what_memit_makes_beside_earlier_keys_is_the_published_sum():
    generator = torch.Generator().manual_seed(0)
    new, old = (torch.randn(12, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    residual = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    moment = torch.randn(12, 40, generator=generator, dtype=torch.float64)
    moment = moment @ moment.T / 40
    ours = residual @ least_squares(torch.cat([new, old], 1), moment, 5.0)[:3]
    published = residual @ new.T @ torch.linalg.inv(5.0 * moment + new @ new.T + old @ old.T)
    torch.testing.assert_close(ours, published, rtol=1e-9, atol=1e-12)


def plain_state(model: Any, module: Any, facts: FactSet, *, given: bool) -> torch.Tensor:
    """Return what a module gets or gives at each fact's subject (d n), one text at a time, by a bare hook."""
    found = []
    for text in map(plain, facts):

        def keep(module: Any, args: Any, out: Any, place: int = text.place) -> None:
            found.append((args[0] if given else out)[0, place].double())

        handle = module.register_forward_hook(keep)
        with torch.no_grad():
            model(torch.tensor([text.ids]), use_cache=False)
        handle.remove()
    return torch.stack(found, 1)


def test_a_later_batch_is_the_normal_equations_on_the_model_that_the_earlier_one_left():
    model = tiny_model()
    editor = keeping(MEMIT, layers=(0, 1), moment="identity", share=0.7)
    first = editor.fit(model, tiny_tokenizer(), FACTS)
    goals, below = [], {}
    with first.applied(model):
        second = replace(editor, previous=first).fit(model, tiny_tokenizer(), MORE)
        for i, site in enumerate(editor.sites(model)):
            change, old = second.changes[site.weight], first.keys[site.weight].double().T
            with changed_weights(model, below):
                keys = plain_state(model, site.module, MORE, given=True)
                now = plain_state(model, decoder_layers(model)[1], MORE, given=False)
            both, residual = torch.cat([keys, old], 1), change.left.double()
            ridge = both.square().sum(0).mean() * (1 / 0.7 - 1) * torch.eye(len(both), dtype=torch.float64)
            made = residual @ keys.T @ torch.linalg.inv(ridge + keys @ keys.T + old @ old.T)
            torch.testing.assert_close(residual @ change.right.double(), made, rtol=1e-4, atol=1e-6)
            goals.append(now + residual * (2 - i))
            below[site.weight] = change
    torch.testing.assert_close(goals[0], goals[1], rtol=1e-4, atol=1e-5)


def test_a_fact_that_is_written_anew_is_not_kept_as_it_was():
    model, editor = tiny_model(), keeping(EMMET)
    first = editor.fit(model, tiny_tokenizer(), FACTS)
    again = FactSet((replace(FACTS[0], new="red"),))
    with first.applied(model):
        second = replace(editor, previous=first).fit(model, tiny_tokenizer(), again)
    assert second.record["written"]["layer 1"]["earlier_keys"] == 1


@pytest.mark.parametrize("cls", [ROME, MEMIT])
def test_batches_are_the_sum_of_edits_one_after_another(cls, tmp_path):
    model, facts = tiny_model(), FactSet((*FACTS, *MORE))
    own = keeping(MEMIT, moment="own", n_tokens=80, cache=tmp_path)
    editor = ROME(moment="identity", before=0, search=ValueSearch(steps=4)) if cls is ROME else own
    before = state_of(model)
    found = InBatches(editor=editor, size=3).fit(model, tiny_tokenizer(), facts)
    assert state_of(model) == before
    first = editor.fit(model, tiny_tokenizer(), facts[:3])
    with first.applied(model):
        second = replace(editor, previous=first).fit(model, tiny_tokenizer(), facts[3:])
    for name, change in (first + second).changes.items():
        torch.testing.assert_close(
            found.changes[name].left @ found.changes[name].right, change.left @ change.right, rtol=1e-3, atol=1e-4
        )
    assert [step["facts"] for step in found.record["batches"]] == [3, 4]
    assert found.record["batches"][0]["norms"] == pytest.approx(first.norms, rel=1e-4)
    assert found.record["facts"] == [fact.key for fact in facts]
    assert len(found.losses) == 4


def test_statistics_are_the_unedited_model_s_whatever_is_in_place(tmp_path):
    model, editor = tiny_model(), keeping(MEMIT)
    first = editor.fit(model, tiny_tokenizer(), FACTS)
    replace(editor, moment="own", cache=tmp_path / "a").fit(model, tiny_tokenizer(), MORE)
    with first.applied(model):
        replace(editor, moment="own", cache=tmp_path / "b").fit(model, tiny_tokenizer(), MORE)
    (one,), (other,) = ([*(tmp_path / name).iterdir()] for name in "ab")
    assert one.name == other.name
    one, other = KeyStatistics.load(one), KeyStatistics.load(other)
    assert one.n_tokens >= 10 * 64  # ten for each dimension of a key
    torch.testing.assert_close(one.moments[1], other.moments[1])


def test_a_previous_edit_that_is_not_in_place_and_statistics_of_nothing_are_refused():
    model = tiny_model()
    first = keeping(MEMIT).fit(model, tiny_tokenizer(), FACTS)
    with pytest.raises(Incompatible, match="not in place"):
        keeping(MEMIT, previous=first).fit(model, tiny_tokenizer(), MORE)
    with pytest.raises(Incompatible), first.applied(model):
        keeping(MEMIT, previous=first).fit(tiny_model(seed=1), tiny_tokenizer(), MORE)
    with pytest.raises(BadValue, match="as free as any"):
        AlphaEdit(moment="identity")
    with pytest.raises(BadValue, match="one fact or more"):
        InBatches(editor=keeping(MEMIT), size=0)


def without_bos() -> Any:
    """Return the tiny tokenizer with nothing put before a text."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    return tokenizer


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
@pytest.mark.parametrize("sink", [0, 1, 4, None])
def test_a_subject_that_attention_sinks_into_is_looked_up_behind_a_new_line(family, sink):
    """A fact written to a sink wrecks the model: on SmolLM2 KL 3.7 at the first token, 0.05 at the second."""
    model, tokenizer = tiny_model(family), without_bos()
    facts = [replace(SHORT, subject=subject) for subject in ("Q", "Qz", "Qzxvj")]
    places = [subject_last(tokenizer, fact.asked, fact.span).place for fact in facts]
    assert places == [0, 1, 4]

    def swell(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        """Make one token's state long, unless the text begins with a new line."""
        out = out.clone()
        if sink is not None and out.shape[1] > sink:
            out[~new_line[: len(out)], sink] *= 9
        return out

    new_line = torch.zeros(0, dtype=torch.bool)

    def note(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal new_line
        new_line = kwargs["input_ids"][:, 0] == tokenizer("\n")["input_ids"][0]

    hooks = [
        decoder_layers(model)[0].register_forward_hook(swell),
        model.register_forward_pre_hook(note, with_kwargs=True),
    ]
    texts = fact_texts(model, tokenizer, [*facts, ONE], ("", "Now. "))
    for hook in hooks:
        hook.remove()
    behind = ["\n" * (place == sink) + fact.asked for place, fact in zip(places, facts, strict=True)]
    assert [of.plain.text for of in texts] == [*behind, ONE.asked]
    assert [of.essence.text[0] == "\n" for of in texts] == [place == sink for place in (*places, 3)]
    assert [of.plain.place - place for of, place in zip(texts, places, strict=False)] == [p == sink for p in places]
    assert [text.text for text in texts[3].asked] == [ONE.asked, "Now. " + ONE.asked]
    site, search = find_mlp_outputs(model)[1], ValueSearch(steps=2, kl=0, decay=0)
    found = sought_values(model, tokenizer, texts, site, search)
    for of, value, before in zip(texts, found, (*("\n" * (p == sink) for p in places), ""), strict=True):
        assert value.losses[0] == pytest.approx(plain_loss(model, of.fact, (before, "Now. "), tokenizer), rel=1e-4)


def test_an_answer_without_a_token_and_weights_and_statistics_that_say_nothing_are_refused():
    model = tiny_model()
    text = plain(ONE)
    stripping = copy.deepcopy(tiny_tokenizer())
    stripping.backend_tokenizer.normalizer = normalizers.Strip()
    with pytest.raises(BadValue, match="no token of its own"):
        answer_ids(stripping, text, "")
    with pytest.raises(BadValue, match="layer 1 are not finite"):
        ROME(moment=KeyStatistics({1: torch.full((64, 64), torch.nan)}, 99)).fit(model, tiny_tokenizer(), FACTS)
    other = KeyStatistics({1: torch.eye(64)}, 99, fingerprint(tiny_model(seed=1)))
    with pytest.raises(Incompatible, match="the statistics of keys"):
        ROME(moment=other).fit(model, tiny_tokenizer(), FACTS)
    model.is_quantized = True
    for method in (ROME(moment="identity"), MEMIT(moment="identity"), FineTuneL()):
        with pytest.raises(BadValue, match="quantised weights"):
            method.fit(model, tiny_tokenizer(), FACTS)


def test_an_answer_that_stays_unlikely_is_a_warning_and_stands_in_the_record():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="2 of 2 new answers stayed unlikely"):
            ROME(moment="identity", before=0, search=ValueSearch(steps=1)).fit(tiny_model(), tiny_tokenizer(), FACTS)


def test_a_gentle_batch_of_one_tends_to_the_exact_one():
    key, moment = torch.randn(12, 1, dtype=torch.float64), torch.eye(12, dtype=torch.float64)
    exact = least_squares(key, moment, 0)
    gaps = [float((least_squares(key, moment, weight) - exact).norm()) for weight in (1.0, 1e-3, 1e-6)]
    assert gaps[0] > 100 * gaps[1] > 1e4 * gaps[2]
