"""Cuts in a decoder with linear-attention layers, against layers run by hand on what is left.

The reference keeps no cache: every step runs all layers again, each over the tokens that the cuts
before it left and the new ones.
"""

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.integrations.attach import attach
from secateur.integrations.transformers.models import UnsupportedModelError

pytestmark = pytest.mark.families
GREEDY = {"max_new_tokens": 5, "do_sample": False}
MANY = {"words": ("compare both", "how many red dog and cat does this show ?"), "images": (2, 1)}
METHODS = {
    "fastv": sc.FastV(keep=0.5, after=4, published=True),
    "fastv_moved": sc.FastV(keep=4, after=2, published=True),
    "pyramiddrop": sc.PyramidDrop(keep=0.4, stages=(0.375, 0.875), published=True),
}
PLACES = {"fastv": [4], "fastv_moved": [4], "pyramiddrop": [3, 7]}


@pytest.fixture(
    scope="module", params=["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.slow)]
)
def hybrid(request, cases):
    """Full attention in layers 3 and 7."""
    case = cases[request.param]()
    case.layers = 8
    return case, case.model()


def by_layers(model, call, row, cuts, new, renumbers):
    """Logits of a prompt's last token and of each new token, the dropped ones deleted."""
    decoder = model.model.language_model
    real = torch.ones(call["inputs_embeds"].shape[1], dtype=torch.bool)
    if call["attention_mask"] is not None:
        real = call["attention_mask"][row].bool()
    columns = real.nonzero()[:, 0]
    positions = call["position_ids"][-3:, row][:, real]
    hidden = call["inputs_embeds"][row][real]
    count = len(new)
    following = positions[:, -1:] + 1 + torch.arange(count)
    positions = torch.cat([positions, following], dim=1)
    hidden = torch.cat([hidden, model.get_input_embeddings()(new)])[None]
    for number, layer in enumerate(decoder.layers):
        if number in cuts:
            stays = ~cuts[number][columns]
            left = torch.cat([stays, stays.new_ones(count)])
            columns, hidden, positions = columns[stays], hidden[:, left], positions[:, left]
            if renumbers:
                positions = torch.arange(hidden.shape[1]).expand(3, -1)
        length = hidden.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        hidden = layer(
            hidden,
            attention_mask=mask if hasattr(layer, "self_attn") else None,
            position_embeddings=decoder.rotary_emb(hidden, positions[:, None]),
        )
    return model.lm_head(decoder.norm(hidden))[0, len(columns) - 1 :]


@pytest.mark.parametrize("name", METHODS)
def test_decoding_equals_layers_run_by_hand(hybrid, calls, name):
    case, model = hybrid
    inputs, method = case.inputs(**MANY), METHODS[name]
    with attach(model, method, case.processor()) as att, calls(model) as seen:
        out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    visual = (inputs["input_ids"] == model.config.image_token_id).numpy()
    for row in range(2):
        assert [after for after, _ in att.last.inside[row]] == PLACES[name]
        cuts = {}
        for after, kept in att.last.inside[row]:
            gone = visual[row].copy()
            gone[kept] = False
            cuts[after] = torch.from_numpy(gone)
        new = out.sequences[row, inputs["input_ids"].shape[1] :][:-1]
        expected = by_layers(model, seen[0], row, cuts, new, method.renumbers)
        found = torch.stack([logits[row] for logits in out.logits])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["fastv_moved", "pyramiddrop"])
def test_scores_are_those_of_eager_attention(hybrid, name):
    """PyramidDrop asks layer 3 before it runs, FastV after."""
    case, _ = hybrid
    model, inputs = case.model("eager"), case.inputs()
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions
    own = next(x for x in weights if x is not None)
    visual = np.flatnonzero((inputs["input_ids"][0] == model.config.image_token_id).numpy())
    with attach(model, METHODS[name], case.processor()) as att:
        model(**inputs)
    after, kept = att.last.inside[0][0]
    scores = own[0].mean(dim=0)[-1, torch.from_numpy(visual)]
    best = scores.topk(len(kept)).indices.numpy()
    assert (after, kept.tolist()) == (PLACES[name][0], sorted(visual[best].tolist()))


def test_full_keep_beams_and_static_caches(hybrid):
    case, model = hybrid
    inputs = case.inputs(**MANY)
    stock = model.generate(**inputs, **GREEDY)
    with attach(model, sc.FastV(keep=1.0, after=4, published=True)):
        assert torch.equal(model.generate(**inputs, **GREEDY), stock)
    with attach(model, METHODS["fastv"]):
        beams = model.generate(**inputs, **GREEDY, num_beams=2)
        alone = case.inputs(words=MANY["words"][:1], images=(2,))
        again = model.generate(**alone, **GREEDY, num_beams=2)
        assert torch.equal(again[0, -5:], beams[0, -5:])
        with pytest.raises(ValueError, match="shortens dynamic caches here, not"):
            model.generate(**inputs, **GREEDY, cache_implementation="static")


def test_what_linear_layers_cannot_do_is_refused(hybrid):
    case, model = hybrid
    for method in (sc.FastV(), sc.PyramidDrop(), sc.SparseVLM()):
        with pytest.raises(UnsupportedModelError, match="linear attention cannot forget"):
            attach(model, method)
    late = sc.FastV(keep=3, after=6, published=True)
    refused = pytest.raises(ValueError, match=r"after 6 layers asks layer 5, .* after 4, 8")
    with attach(model, late), refused:
        model(**case.inputs())
