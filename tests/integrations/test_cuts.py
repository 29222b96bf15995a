"""Methods that fold between layers, or look at more than queries and keys there, in models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from secateur.core.arrays import to_numpy
from secateur.core.inputs import Tokens
from secateur.core.methods.apet import ApET
from secateur.core.methods.duet import DUET
from secateur.core.methods.ivcprune import IVCPrune, value_and_place
from secateur.core.methods.mustdrop import MustDrop
from secateur.core.methods.vitcop import ViTCoP, fold_clusters, key_norms
from secateur.core.methods.vscan import VScan
from secateur.integrations.attach import attach, prune_inputs

MANY = {"words": ("compare both", "how many red dog and cat does this show ?"), "images": (2, 1)}
GREEDY = {"max_new_tokens": 4, "do_sample": False}
METHODS = {
    "duet": DUET(keep=0.5, shares=(0.5, 0.25)),
    "duet_without_image": DUET(keep=0.5),
    "ivcprune": IVCPrune(keep=0.5),
    "ivcprune_llava": IVCPrune(keep=1.0, coordinates=0.05, foreground=0.2),
    "mustdrop": MustDrop(keep=0.25),
    "vitcop": ViTCoP(keep=0.25),
    "vscan": VScan(keep=0.5, inner=0.5),
    "apet": ApET(keep=0.5, basis=2, inner=0.5),
}


@pytest.fixture(autouse=True)
def _cuttable(case):
    if not case.cuttable:
        pytest.skip("attach() refuses to cut there, see test_linear.py")


def watched(monkeypatch, method):
    """Everything `decide` of a method's class sees and answers, in order."""
    seen = []
    kind = type(method)
    decide = kind.decide

    def noted(self, cut, sight):
        stay = decide(self, cut, sight)
        seen.append((cut, sight, stay))
        return stay

    monkeypatch.setattr(kind, "decide", noted)
    return seen


def noting(first, number):
    """A hook that notes what a module is first called with, and changes nothing."""

    def hook(_module, args):
        first.setdefault(number, args[0].detach().clone())

    return hook


@pytest.mark.parametrize("name", METHODS)
def test_as_many_stay_as_planned_and_generation_goes_on(case, model, monkeypatch, name):
    method = METHODS[name]
    seen = watched(monkeypatch, method)
    inputs = case.inputs(**MANY)
    with attach(model, method, case.processor()) as att:
        out = model.generate(**inputs, **GREEDY)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 4
    assert seen
    exact = not name.startswith("mustdrop") and name != "ivcprune_llava"
    for cut, sight, stay in seen:
        kept = to_numpy(stay.kept)
        assert (np.diff(kept) > 0).all()
        assert len(kept) == cut.keep if exact else len(kept) <= cut.keep
        assert sight.layout.images
    last = {len(kept) for row in range(2) for _, kept in att.last.inside[row][-1:]}
    assert last <= {len(to_numpy(stay.kept)) for _, _, stay in seen}


@pytest.mark.parametrize("name", METHODS)
def test_full_keep_is_bit_equal(case, model, name):
    changes = {"keep": 1.0, "foreground": None} if "ivcprune" in name else {"keep": 1.0}
    inputs = case.inputs(**MANY)
    logits = model(**inputs).logits
    with attach(model, replace(METHODS[name], **changes), case.processor()) as att:
        assert torch.equal(model(**inputs).logits, logits)
    assert att.last.inside == [[], []]


@pytest.mark.parametrize("name", ["duet", "ivcprune", "mustdrop", "vitcop", "vscan", "apet"])
def test_a_batch_equals_each_prompt_alone(case, model, name):
    with attach(model, METHODS[name], case.processor()) as att:
        both = model.generate(**case.inputs(**MANY), **GREEDY)
        inside, first = att.last.inside, 0
        for row, (words, count) in enumerate(zip(MANY["words"], MANY["images"], strict=True)):
            alone = model.generate(
                **case.inputs(words=(words,), images=(count,), seed=first), **GREEDY
            )
            assert [(after, len(kept)) for after, kept in att.last.inside[0]] == [
                (after, len(kept)) for after, kept in inside[row]
            ]
            assert torch.equal(both[row, -4:], alone[0, -4:])
            first += count


def test_vitcop_folds_the_states_that_go_on(case, model, monkeypatch):
    """The next layer reads the member in the middle plus the mean of its group."""
    seen = watched(monkeypatch, METHODS["vitcop"])
    inputs = case.inputs()
    with attach(model, METHODS["vitcop"], case.processor()):
        read = {}
        handles = [
            layer.input_layernorm.register_forward_pre_hook(noting(read, number))
            for number, layer in enumerate(model.model.language_model.layers)
        ]
        model(**inputs)
        for handle in handles:
            handle.remove()
    cut, sight, stay = seen[0]
    visual, kept = to_numpy(sight.visual), to_numpy(stay.kept)
    hidden = to_numpy(sight.hidden).astype(np.float64)
    clusters, start = sight.told("cluster"), 0
    assert (clusters >= 0).all()
    place = to_numpy(sight.place)
    for number, part in enumerate(sight.layout.chosen):
        inside = (start <= place) & (place < start + part.size)
        clusters[inside] += 1000 * number
        start += part.size
    chosen = fold_clusters(key_norms(sight.keys, sight.visual), torch.tensor(clusters), cut.keep)
    folded = to_numpy(chosen.folded)
    assert kept.tolist() == np.unique(folded).tolist()
    assert len(kept) == cut.keep < len(visual)
    gone = np.delete(visual, kept)
    after = to_numpy(read[cut.after])[0]
    left = np.delete(np.arange(len(hidden)), gone)
    alone = to_numpy(chosen.fold_weights)[kept] == 1.0
    for place, single in zip(kept, alone, strict=True):
        own = hidden[visual[place]]
        expected = own if single else own + hidden[visual[folded == place]].mean(0)
        found = after[np.searchsorted(left, visual[place])]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_ivcprune_sees_the_layers_values_and_rotary_tables(case, model, monkeypatch):
    seen = watched(monkeypatch, METHODS["ivcprune"])
    inputs = case.inputs()
    decoder = model.model.language_model
    # First layers of Qwen3-VL add visual features; the smaller Gemma 4 has six layers.
    last = 2 if case.name.startswith(("qwen3_vl", "gemma4_small")) else 1
    with attach(model, METHODS["ivcprune"], case.processor()):
        values, angles = [], []
        layer = decoder.layers[last].self_attn
        handles = [
            layer.v_proj.register_forward_hook(lambda _m, _a, out: values.append(out.clone())),
            layer.register_forward_pre_hook(
                lambda _m, _a, given: angles.append(given["position_embeddings"]), with_kwargs=True
            ),
        ]
        model(**inputs)
        for handle in handles:
            handle.remove()
    ((cut, sight, stay),) = seen
    assert cut.after == last + 1
    own = values[0][0].unflatten(-1, (-1, layer.head_dim)).transpose(0, 1)
    own = layer.v_norm(own) if hasattr(layer, "v_norm") else own
    assert torch.equal(sight.values, own)
    for table, expected in zip(sight.rotary, angles[0], strict=True):
        assert torch.equal(table, expected[0])
    text = np.arange(int(sight.visual[-1]) + 1, sight.length)
    size = len(sight.visual)
    parts = value_and_place(
        own,
        *(table[0] for table in angles[0]),
        visual=sight.visual,
        text=torch.from_numpy(text),
        keep=cut.keep,
        seeds=max(1, round(0.01 * size)),
        coordinates=min(round(0.1 * size), cut.keep // 4),
    )
    assert to_numpy(stay.kept).tolist() == to_numpy(parts.kept).tolist()


def test_published_duet_scores_ahead_and_numbers_anew(case, model, monkeypatch):
    method = replace(METHODS["duet"], published=True)
    seen = watched(monkeypatch, method)
    inputs = case.inputs()
    decoder = model.model.language_model
    with attach(model, method, case.processor()):
        asked = {}
        handles = [
            layer.input_layernorm.register_forward_pre_hook(noting(asked, number))
            for number, layer in enumerate(decoder.layers)
        ]
        out = model.generate(**inputs, **GREEDY)
        for handle in handles:
            handle.remove()
    assert out.shape[1] == inputs["input_ids"].shape[1] + 4
    cut, sight, _ = seen[0]
    attention = decoder.layers[cut.after].self_attn
    # Rotation keeps lengths, and so does no norm; some layers of Gemma 4 make no keys.
    if hasattr(attention, "k_proj") and not hasattr(attention, "k_norm"):
        states = decoder.layers[cut.after].input_layernorm(asked[cut.after])
        plain = attention.k_proj(states)[0].unflatten(-1, (-1, attention.head_dim))
        lengths = sight.keys.transpose(0, 1).norm(dim=-1)
        torch.testing.assert_close(lengths, plain.norm(dim=-1), rtol=1e-4, atol=1e-5)


def test_mustdrop_keeps_key_tokens_at_every_cut(case, model, monkeypatch):
    method = MustDrop(keep=0.25, overall=1.0, single=1.0, published=True)
    seen = watched(monkeypatch, method)
    with attach(model, method, case.processor()):
        model(**case.inputs(**MANY))
    for _, sight, stay in seen:
        key = np.flatnonzero(sight.told("key"))
        assert to_numpy(stay.kept).tolist() == key.tolist()
        assert len(key) == sum(-(-8 * part.size // 100) for part in sight.layout.chosen)


@pytest.mark.parametrize("published", [False, True])
def test_apet_merges_the_states_that_go_on(cases, monkeypatch, published):
    case = cases["llava"]()
    model, method = case.model(), replace(METHODS["apet"], published=published)
    seen = watched(monkeypatch, method)
    read = {}
    with attach(model, method):
        handles = [
            layer.input_layernorm.register_forward_pre_hook(noting(read, number))
            for number, layer in enumerate(model.model.language_model.layers)
        ]
        model(**case.inputs())
        for handle in handles:
            handle.remove()
    ((cut, sight, stay),) = seen
    assert (cut.after, cut.keep, len(sight.visual)) == (2, 4, 8)
    own = ApET(keep=4, basis=2, model="inner" if published else None)
    states = sight.hidden[sight.visual]
    chosen = own.select(Tokens(features=states))
    assert stay.kept.tolist() == chosen.sorted().tolist()
    first = int(sight.visual[0])
    torch.testing.assert_close(read[2][0, first : first + 4], chosen.merge(states))
    assert not torch.allclose(chosen.merge(states), states[chosen.sorted()])


def test_vscan_keeps_what_the_last_token_attends_to(cases, monkeypatch):
    case = cases["llava"]()
    model, method = case.model("eager"), METHODS["vscan"]
    seen = watched(monkeypatch, method)
    with attach(model, method):
        model(**case.inputs())
        paid = []
        layer = model.model.language_model.layers[1].self_attn
        handle = layer.register_forward_hook(lambda _m, _a, out: paid.append(out[1]))
        model(**case.inputs())
        handle.remove()
    cut, sight, stay = seen[-1]
    asked = paid[0][0].mean(0)[-1, sight.visual]
    assert (cut.after, cut.keep) == (2, 4)
    assert stay.kept.tolist() == sorted(asked.argsort(descending=True)[:4].tolist())


def test_without_an_inner_stage_they_only_choose_before(cases):
    case = cases["llava"]()
    model = case.model()
    for method in (VScan(keep=4), ApET(keep=4, basis=2)):
        short = prune_inputs(model, case.inputs(), method)
        assert short["inputs_embeds"].shape[1] == case.inputs()["input_ids"].shape[1] - 12
        with pytest.raises(ValueError, match="prunes inside the language model"):
            prune_inputs(model, case.inputs(), replace(method, inner=0.5))


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_published_vitcop_numbers_anew_after_its_second_cut(cases, name, published):
    case = cases[name]()
    model, method = case.model(), replace(METHODS["vitcop"], published=published)
    decoder, tables = model.model.language_model, []
    handles = [
        layer.self_attn.register_forward_pre_hook(
            lambda _m, _a, given: tables.append(given["position_embeddings"][0]), with_kwargs=True
        )
        for layer in decoder.layers
    ]
    with attach(model, method) as att:
        model(**case.inputs())
    for handle in handles:
        handle.remove()
    (first, _), (second, _) = att.last.inside[0]
    assert (first, second) == (1, 3)
    counted = []
    for table in tables:
        places = torch.arange(table.shape[-2])[None]
        places = places.expand(3, 1, -1) if name != "llava" else places
        counted.append(torch.equal(table, decoder.rotary_emb(table, places)[0].to(table)))
    assert counted == [published, False, False, published]
