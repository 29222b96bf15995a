"""What methods for videos do inside the language model, against plain loops over its states."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.core.arrays import to_numpy
from secateur.integrations.attach import attach, prune_inputs

GREEDY = {"max_new_tokens": 4, "do_sample": False}
OUTER = {
    "flashvid": sc.FlashVID(keep=0.6, segment=None),
    "holitom": sc.HoliTom(keep=0.6),
}
SHARE = 0.4


QWEN = pytest.param("qwen3_vl", marks=pytest.mark.families)


@pytest.fixture(scope="module", params=["llava_onevision", QWEN])
def watched(request, cases):
    case = cases[request.param]()
    return case.model("eager"), case.video(frames=5)


def folded(states, attention, visual, keep):
    """What HoliTom makes of the visual tokens, one after the other."""
    order = sorted(range(len(visual)), key=lambda i: (-attention[i], i))
    kept = sorted(order[:keep])
    x = states[visual]
    out = {i: x[i].copy() for i in kept}
    for i in range(len(visual)):
        if i not in kept:
            cosine = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for j in kept]
            nearest = kept[int(np.argmax(cosine))]
            out[nearest] = (out[nearest] + x[i]) / 2
    return kept, out


@pytest.mark.parametrize("name", OUTER)
def test_the_second_cut(watched, name):
    model, inputs = watched
    outer = OUTER[name]
    inner = type(outer)(**{**vars(outer), "inside": SHARE})
    layers = model.model.language_model.layers
    after = round(inner.after * len(layers))
    read = []
    norm = layers[after].input_layernorm  # reads what is left once the layer itself was called
    hook = norm.register_forward_pre_hook(lambda _, args: read.append(args[0][0]))
    with attach(model, outer) as att:
        seen = model(**inputs, output_attentions=True)
        columns, before = att.last.positions[0], att.last
    assert before.inside == []
    ids = inputs["input_ids"][0].numpy()[columns]
    visual = np.flatnonzero(
        np.isin(ids, [model.config.image_token_id, model.config.video_token_id])
    )
    newlines = len(visual) - sum(part.budget for part in before.pictures[0])
    visual = visual[: len(visual) - newlines]
    states = to_numpy(read.pop()).astype(np.float64)
    attention = to_numpy(seen.attentions[after - 1][0, :, -1]).mean(axis=0)[visual]
    count = len(visual)
    keep = math.ceil(count * SHARE) if name == "flashvid" else round(count * SHARE)
    kept, out = folded(states, attention, visual, keep)
    if name == "flashvid":
        out = {i: states[visual[i]] for i in kept}
    with attach(model, inner) as att:
        model(**inputs)
        hook.remove()
        text = model.generate(**inputs, **GREEDY)
    ((told, where),) = att.last.inside[0]
    assert told == after
    assert where.tolist() == columns[visual[kept]].tolist()
    expected = states.copy()
    for i, row in out.items():
        expected[visual[i]] = row
    gone = np.delete(visual, kept)
    expected = np.delete(expected, gone, axis=0)
    np.testing.assert_allclose(to_numpy(read[0]), expected, rtol=1e-4, atol=1e-5)
    assert att.last.final_length == len(expected) < len(states)
    assert text.shape[1] == len(inputs["input_ids"][0]) + 4


@pytest.mark.parametrize("name", OUTER)
def test_keeping_all_inside_changes_nothing(watched, name):
    model, inputs = watched
    outer = OUTER[name]
    with attach(model, outer):
        logits = model(**inputs).logits
    with attach(model, type(outer)(**{**vars(outer), "inside": 1.0})) as att:
        assert torch.equal(model(**inputs).logits, logits)
    assert att.last.inside == [[]]


def hiding(columns, length):
    """A hook that lets a layer's newest token see all but some of `length` columns."""
    mask = torch.zeros(1, 1, 1, length)
    mask[..., columns] = torch.finfo(mask.dtype).min

    def hook(_module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    return hook


@torch.no_grad()
def hidden_by_hand(model, inputs, method, steps):
    """Logits of every step, how many tokens each hid, and what was written: each step twice."""
    layers = model.model.language_model.layers
    with attach(model, sc.DyCoke(drop=method.drop)) as att:
        out = model(**inputs)
        ids = inputs["input_ids"][0].numpy()[att.last.positions[0]]
        visual = np.flatnonzero(ids == model.config.video_token_id)
        visual = visual[: sum(part.budget for part in att.last.pictures[0])]
        cache, before, found = out.past_key_values, None, []
        for _ in range(steps):
            new = {"input_ids": out.logits[:, -1:].argmax(-1)}
            peek = model(**new, past_key_values=copy.deepcopy(cache), output_attentions=True)
            whole = to_numpy(peek.attentions[method.after - 1][0, :, 0])
            now = whole.mean(axis=0)[visual].astype(np.float64)
            hidden = np.zeros(0, dtype=int)
            likeness = 0.0
            if before is not None:
                likeness = now @ before / np.linalg.norm(now) / np.linalg.norm(before)
            if likeness < method.moved:
                hidden = visual[np.argsort(-now, kind="stable")[int(len(now) * method.sight) :]]
            before = now
            hook = hiding(hidden, whole.shape[-1])
            handles = [
                layer.register_forward_pre_hook(hook, with_kwargs=True)
                for layer in layers[method.after :]
            ]
            out = model(**new, past_key_values=cache)
            for handle in handles:
                handle.remove()
            found.append((out.logits[0, -1].detach(), len(hidden), int(new["input_ids"])))
    return found


@torch.no_grad()
def test_what_a_moving_cache_hides(watched):
    model, inputs = watched
    for moved in (0.9, 0.999):
        method = sc.DyCoke(drop=0.5, sight=0.25, after=2, moved=moved)
        found = hidden_by_hand(model, inputs, method, 5)
        assert found[0][1] > 0  # at the first step nothing was before
        with attach(model, method):
            out = model(**inputs)
            cache = out.past_key_values
            for logits, _, token in found:
                new = out.logits[:, -1:].argmax(-1)
                assert int(new) == token
                out = model(input_ids=new, past_key_values=cache)
                torch.testing.assert_close(out.logits[0, -1], logits, rtol=1e-4, atol=1e-4)
            written = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert written[0, -5:].tolist() == [token for _, _, token in found]
    # Attention that hardly moves hides nothing from the second step on, for one of the two.
    assert any(count > 0 for _, count, _ in found[1:])


def test_a_batch_hides_what_each_prompt_would(cases):
    case = cases["llava"]()
    model = case.model()
    words, images, first = ("compare both", "how many red dog and cat does this show ?"), (2, 1), 0
    with attach(model, sc.DyCoke(sight=0.25, after=2)):
        both = model.generate(**case.inputs(words=words, images=images), **GREEDY)
        for row, (said, count) in enumerate(zip(words, images, strict=True)):
            inputs = case.inputs(words=(said,), images=(count,), seed=first)
            alone = model.generate(**inputs, **GREEDY)
            assert torch.equal(both[row, -4:], alone[0, -4:])
            first += count
    assert not torch.equal(
        both, model.generate(**case.inputs(words=words, images=images), **GREEDY)
    )


def test_where_tokens_cannot_be_hidden(watched):
    model, inputs = watched
    method = sc.DyCoke(drop=0.5, sight=0.25, after=2)
    with attach(model, method), pytest.raises(ValueError, match="beams change places"):
        model.generate(**inputs, **GREEDY, num_beams=2)
    with pytest.raises(ValueError, match="hides tokens while decoding; use attach"):
        prune_inputs(model, inputs, method)
    with pytest.raises(ValueError, match="layers after 9 do not fit a language model"):
        attach(model, sc.DyCoke(sight=0.25, after=9))


@pytest.mark.parametrize(
    "method", [sc.MustDrop(keep=2), sc.ViTCoP(keep=2), sc.DUET(keep=2, shares=(0.5, 0.25))]
)
def test_what_was_told_of_frames_is_known_between_layers(watched, method):
    model, inputs = watched
    with attach(model, method) as att:
        model.generate(**inputs, **GREEDY)
    before, stages = len(att.last.kept[0]), att.last.inside[0]
    assert stages
    for _, left in stages:
        assert 0 < len(left) <= before
        assert len(set(left.tolist())) == len(left)
        before = len(left)
