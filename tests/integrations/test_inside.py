"""Pruning inside the language model, against one pass over the whole prompt with masks.

The reference drops nothing. Tokens that were dropped after a layer are hidden by masks: from the
prompt in the layers above, from new tokens in all layers.
"""

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.integrations.attach import attach, prune_inputs
from secateur.integrations.transformers.internals import cache_in, window_of
from secateur.integrations.transformers.models import UnsupportedModelError, family_of

MANY = {"words": ("compare both", "how many red dog and cat does this show ?"), "images": (2, 1)}
STEPS = {"fastv": 32, "pyramiddrop": 8, "sparsevlm": 8}
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(autouse=True)
def _cuttable(request):
    if "case" in request.fixturenames and not request.getfixturevalue("case").cuttable:
        pytest.skip("attach() refuses to cut there, see test_linear.py")


def methods():
    return {
        "fastv": sc.FastV(keep=0.5, after=3),
        "pyramiddrop": sc.PyramidDrop(keep=0.6, stages=(0.75, 0.85)),
        "sparsevlm": sc.SparseVLM(keep=5, after=(24, 28)),
    }


def both_ways(model, inputs):
    """What tells tokens of images that see each other both ways; None where none do."""
    config = model.config.get_text_config()
    if getattr(config, "use_bidirectional_attention", None) is None:  # the smaller Gemma 4
        return None
    return inputs.get("token_type_ids", inputs.get("mm_token_type_ids"))


def masked_pass(model, call, real, types, row, cuts, new, steps):
    """Logits of the prompt's last token and of each new token, without dropping anything.

    Where `types` tell the tokens of images, those of one see each other both ways.
    """
    decoder = model.model.language_model
    embeds = call["inputs_embeds"][row]
    positions = call["position_ids"]
    positions = positions.expand(*positions.shape[:-2], len(new), -1)
    positions = positions[..., row, :]
    planes = []
    if call.get("deepstack_visual_embeds") is not None:
        where = call["visual_pos_masks"]
        for plane in call["deepstack_visual_embeds"]:
            laid = torch.zeros_like(call["inputs_embeds"])
            laid[where] = plane.to(laid)
            planes.append(laid[row][real])
    embeds, positions = embeds[real], positions[..., real]
    prompt = len(embeds)
    following = positions[..., -1:] + 1 + torch.arange(steps - 1)
    positions = torch.cat([positions, following], dim=-1)
    new = new[row, : steps - 1]
    if model.config.model_type == "gemma4":  # which reads a mark that it wrote as padding
        marks = [getattr(model.config, f"{name}_token_id") for name in ("image", "video", "audio")]
        new = new.masked_fill(torch.isin(new, torch.tensor(marks)), 0)
    hidden = torch.cat([embeds, model.get_input_embeddings()(new)])[None]
    total = hidden.shape[1]
    angles = positions[..., None, :]
    if angles.ndim == 3 and len(angles) == 4:
        angles = angles[1:]
    kinds = getattr(decoder.config, "layer_types", None) or [""] * len(decoder.layers)
    gemma = model.config.model_type.startswith("gemma")
    own = [(kind,) if gemma else () for kind in kinds]
    cos_sin = [decoder.rotary_emb(hidden, angles, *kind) for kind in own]
    final = np.ones(prompt, dtype=bool)
    for alive in cuts.values():
        final &= alive
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    both = torch.zeros(prompt, prompt, dtype=torch.bool)
    if types is not None:
        image = types[real] == 1
        number = (image & ~image.roll(1)).cumsum(0)
        both = (number[:, None] == number) & image[:, None] & image
    told = torch.zeros(len(kinds), 1, total, 0)
    if call.get("per_layer_inputs") is not None:
        more = decoder.get_per_layer_inputs(new[None], None)
        told = torch.cat([call["per_layer_inputs"][row][real][None], more], dim=1)
        told = decoder.project_per_layer_inputs(hidden, told).permute(2, 0, 1, 3)
    shared = {}
    # Windows, which no prompt fills, count the tokens that are left.
    left = torch.cat([torch.from_numpy(final), torch.ones(total - prompt, dtype=torch.bool)])
    place = left.cumsum(0)
    far = place[None] <= place[:, None] - (getattr(decoder.config, "sliding_window", None) or total)
    far[:prompt] = False
    now = np.ones(prompt, dtype=bool)
    for number, layer in enumerate(decoder.layers):
        now = now & cuts.get(number, now)
        mask = causal.clone()
        if model.config.model_type == "gemma3" or "sliding" in kinds[number]:
            mask[:prompt, :prompt] |= both
        mask[:prompt, :prompt] &= torch.from_numpy(now)[None]
        mask[prompt:, :prompt] &= torch.from_numpy(final)[None]
        if "sliding" in kinds[number]:
            mask &= ~far
        mask |= torch.eye(total, dtype=torch.bool)
        more = {"shared_kv_states": shared} if model.config.model_type == "gemma4" else {}
        more |= {"per_layer_input": told[number]} if told.shape[-1] else {}
        hidden = layer(
            hidden,
            **more,
            attention_mask=mask[None, None],
            position_embeddings=cos_sin[number],
            position_ids=None,
        )
        if number < len(planes):
            hidden[0, :prompt] += planes[number]
    return model.lm_head(decoder.norm(hidden))[0, prompt - 1 :]


@pytest.mark.parametrize(
    ("name", "attention"),
    [("fastv", "sdpa"), ("pyramiddrop", "eager"), ("sparsevlm", "sdpa")],
)
def test_decoding_equals_one_masked_pass(case, model, calls, name, attention):
    steps = STEPS[name]
    inputs = case.inputs(**MANY)
    model.set_attn_implementation(attention)
    try:
        with attach(model, methods()[name], case.processor()) as att, calls(model) as seen:
            out = model.generate(
                **inputs,
                max_new_tokens=steps,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
    finally:
        model.set_attn_implementation("sdpa")
    report = att.last
    assert report.prompt_length[0] == report.prompt_length[1] > report.final_length
    lengths = {int(layer.keys.shape[2]) for layer in cache_in(out).layers if layer.keys is not None}
    held = report.final_length + steps - 1
    window = window_of(model.model.language_model.config)
    assert lengths == {held, held if window is None else min(held, window - 1)}
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    visual = case.standing(model, inputs["input_ids"]).numpy()
    types = both_ways(model, inputs)
    for row in range(2):
        columns = report.positions[row][report.positions[row] >= 0]
        assert report.inside[row], "every prompt is cut"
        cuts = {
            after: ~visual[row, columns] | np.isin(columns, kept)
            for after, kept in report.inside[row]
        }
        # Newlines are no part of any choice.
        for _after, alive in cuts.items():
            alive |= np.isin(columns, separators(report, visual, row))
        real = inputs["attention_mask"][row].bool()
        own = None if types is None else types[row]
        expected = masked_pass(model, seen[0], real, own, row, cuts, new, steps)
        for step, logits in enumerate(out.logits):
            torch.testing.assert_close(logits[row], expected[step], rtol=1e-3, atol=1e-3)


@pytest.mark.families
@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_cuts_anywhere_among_layers_that_share_keys(cases, calls, after):
    """Layers 1 and 2 make what 3, 4 and 5 read."""
    case = cases["gemma4_small"]()
    model, words = case.model(), ("compare both", "how many red dog ?")
    inputs = case.inputs(words=words, images=(2, 1))
    image = case.standing(model, inputs["input_ids"]).numpy()
    how = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    with attach(model, sc.FastV(keep=0.4, after=after)) as att, calls(model) as seen:
        out = model.generate(**inputs, **how, output_logits=True)
        static = model.generate(**inputs, **how, cache_implementation="static")
        whole = model(**inputs, use_cache=False).logits
    assert torch.equal(static.sequences, out.sequences)
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    for row in range(len(words)):
        columns = att.last.positions[row][att.last.positions[row] >= 0]
        ((place, kept),) = att.last.inside[row]
        cuts = {place: ~image[row, columns] | np.isin(columns, kept)}
        real = inputs["attention_mask"][row].bool()
        expected = masked_pass(model, seen[0], real, None, row, cuts, new, 4)
        for step, logits in enumerate(out.logits):
            torch.testing.assert_close(logits[row], expected[step], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(whole[row, -1], expected[0], rtol=1e-3, atol=1e-3)


@pytest.mark.families
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("words", [("compare both", "how many red dog ?"), ("",)])
def test_the_last_token_alone_is_the_last_of_all(cases, side, words):
    """Layers that read others' keys may run on it alone; prompts may end with an image."""
    case = cases["gemma4_small"]()
    model, inputs = case.model(), case.inputs(words=words, images=(2, 1)[: len(words)], side=side)
    if words == ("",):
        image = case.standing(model, inputs["input_ids"])[0]
        names = ("input_ids", "attention_mask", "mm_token_type_ids")
        inputs |= {name: inputs[name][:, : int(image.nonzero()[-1]) + 1] for name in names}
    for after in (1, 3):
        with attach(model, sc.FastV(keep=0.4, after=after)):
            whole = model(**inputs).logits
            alone = model(**inputs, logits_to_keep=1).logits
        torch.testing.assert_close(alone, whole[:, -1:], rtol=1e-4, atol=1e-4)


def separators(report, visual, row):
    """Columns of the placeholders that belong to no grid."""
    columns = np.flatnonzero(visual[row])
    start, found = 0, []
    for kept, parts, own in zip(report.kept, report.pictures, report.rows, strict=True):
        if own != row:
            continue
        inside = np.concatenate([part.index for part in parts])
        size = int(kept.max()) + 1
        found += [columns[start + n] for n in range(size) if n not in set(inside.tolist())]
        start += size
    return found


def test_fastv_keeps_what_the_last_token_attends_to(case, calls):
    """Scores by eager attention's own weights."""
    model = case.model("eager")
    inputs = case.inputs()
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[2]
    filled = case.standing(model, inputs["input_ids"]).numpy()
    visual = np.flatnonzero(filled[0])
    with attach(model, sc.FastV(keep=6, after=3)) as att:
        model(**inputs)
    dropped = separators(att.last, filled, 0)
    choosable = np.setdiff1d(visual, dropped)
    scores = weights[0].mean(dim=0)[-1, torch.from_numpy(choosable)]
    best = np.sort(choosable[scores.topk(6).indices.numpy()])
    ((after, kept),) = att.last.inside[0]
    assert after == 3
    assert np.array_equal(kept, best)


@pytest.mark.parametrize("name", list(methods()))
def test_a_batch_equals_each_prompt_alone(case, model, name):
    method = methods()[name]
    with attach(model, method, case.processor()) as att:
        both = model.generate(**case.inputs(**MANY), **GREEDY)
        inside, first = att.last.inside, 0
        for row, (words, count) in enumerate(zip(MANY["words"], MANY["images"], strict=True)):
            alone = model.generate(
                **case.inputs(words=(words,), images=(count,), seed=first), **GREEDY
            )
            assert [(after, len(kept)) for after, kept in att.last.inside[0]] == [
                (after, len(kept)) for after, kept in inside[row]
            ]
            assert torch.equal(both[row, -6:], alone[0, -6:])
            first += count


def test_full_keep_is_bit_equal(case, model):
    inputs = case.inputs(**MANY)
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with attach(model, sc.FastV(keep=1.0)) as att:
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    assert att.last.inside == [[], []]


def test_static_cache_and_beams(case, model):
    inputs = case.inputs(**MANY)
    with attach(model, methods()["fastv"]) as att:
        dynamic = model.generate(**inputs, **GREEDY)
        static = model.generate(**inputs, **GREEDY, cache_implementation="static")
        assert torch.equal(static, dynamic)
        beams = model.generate(**inputs, **GREEDY, num_beams=3)
        assert len(att.last.inside) == 2
        alone = case.inputs(words=MANY["words"][:1], images=(2,))
        assert torch.equal(model.generate(**alone, **GREEDY, num_beams=3)[0, -6:], beams[0, -6:])


def test_right_padding_and_no_cache(case, model):
    prompts = {"words": MANY["words"], "images": (1, 1)}
    found = {}
    with attach(model, methods()["fastv"]):
        for side in ("left", "right"):
            for use_cache in (True, False):
                inputs = case.inputs(**prompts, side=side)
                counted = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
                more = {}
                if "mm_token_type_ids" not in inputs:
                    more["position_ids"] = counted
                out = model(**inputs, **more, use_cache=use_cache).logits
                last = -1 if side == "left" else None
                found[side, use_cache] = out[:, -1] if last else out
    for side in ("left", "right"):
        torch.testing.assert_close(found[side, True], found[side, False], rtol=1e-4, atol=1e-4)
    for row, logits in enumerate(found["left", True]):
        matches = (found["right", True][row] - logits).abs().amax(-1) < 1e-3
        assert matches.any()


def test_erase_runs_both_stages(case, model):
    method = sc.ERASE(
        keep=0.25, thresholds=(5.0, 1.0), ratios=(0.9, 0.7, 0.5), patch=8, shallow=3, deep=0.8
    )
    inputs = case.inputs(**MANY)
    if "pixels" not in family_of(model).offers:
        with pytest.raises(ValueError, match="ERASE needs pixels, which"):
            attach(model, method)
        return
    with attach(model, method, case.processor()) as att:
        out = model.generate(**inputs, **GREEDY)
    report = att.last
    assert report.prompt_length[1] < report.prompt_length[0]
    assert report.final_length < report.prompt_length[1]
    for row in range(2):
        size = sum(
            h * w
            for grids, own in zip(report.grids, report.rows, strict=True)
            if own == row
            for h, w in grids
        )
        (cut,) = report.inside[row]
        assert len(cut[1]) == size // 4
    assert out.shape[1] == inputs["input_ids"].shape[1] + 6


def test_what_cannot_be_done_is_refused(case, model, monkeypatch):
    with pytest.raises(ValueError, match="FastV prunes inside the language model; use attach"):
        prune_inputs(model, case.inputs(), sc.FastV())
    text = model.config.get_text_config()
    kinds = ["sliding_attention"] * text.num_hidden_layers
    with monkeypatch.context() as changed:
        changed.setattr(text, "layer_types", kinds, raising=False)
        changed.setattr(text, "sliding_window", 8, raising=False)
        with pytest.raises(UnsupportedModelError, match="caches of sliding windows"):
            attach(model, sc.published("fastv"))
        with (
            attach(model, sc.FastV(keep=3)),
            pytest.raises(ValueError, match=r"the prompt has \d+ tokens, and layers .* of 8 have"),
        ):
            model(**case.inputs())
    inputs = case.inputs()
    with attach(model, sc.FastV(keep=3)), pytest.raises(ValueError, match="labels: FastV drops"):
        model(**inputs, labels=inputs["input_ids"])
    if torch.version.cuda and not torch.cuda.is_available():
        return  # such a PyTorch cannot even make an offloaded cache
    refused = pytest.raises(ValueError, match="shortens dynamic and static caches, not")
    with attach(model, sc.FastV(keep=3, after=3)), refused:
        model.generate(**case.inputs(), **GREEDY, cache_implementation="offloaded")
