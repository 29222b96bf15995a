"""What every method may rely on when it is attached, for every family."""

import copy
import inspect

import numpy as np
import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from secateur.integrations.attach import attach, prune_inputs
from secateur.integrations.transformers.internals import CACHES, cache_in, cache_name

GREEDY = {"max_new_tokens": 6, "do_sample": False}
TWO = {"words": ("what is in this picture ?", "how many red dog ?"), "images": (1, 1)}
MANY = {"words": ("compare both", "how many red dog and cat does this show ?"), "images": (2, 1)}


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.first
@pytest.mark.parametrize("prompt", [{}, MANY], ids=["one", "many"])
def test_full_keep_is_bit_equal(case, model, by_norm, prompt):
    inputs = case.inputs(**prompt)
    logits = model(**inputs).logits
    stock = model.generate(**inputs, **GREEDY, output_scores=True, return_dict_in_generate=True)
    for positions in ("original", "compact"):
        with attach(model, by_norm(keep=100_000), positions=positions) as att:
            assert torch.equal(model(**inputs).logits, logits)
            ours = model.generate(
                **inputs, **GREEDY, output_scores=True, return_dict_in_generate=True
            )
        assert torch.equal(ours.sequences, stock.sequences)
        assert all(torch.equal(a, b) for a, b in zip(ours.scores, stock.scores, strict=True))
        assert att.last.prompt_length[0] == att.last.prompt_length[1]


@pytest.mark.first
@pytest.mark.parametrize("keep", [1, 0.5])
def test_pruned_equals_the_language_model_fed_by_hand(case, model, by_norm, by_hand, keep):
    inputs = case.inputs()
    with attach(model, by_norm(keep=keep)) as att:
        logits = model(**inputs).logits
    report = att.last
    assert logits.shape[1] == report.prompt_length[1] < report.prompt_length[0]
    assert len(report.kept[0]) < sum(h * w for h, w in report.grids[0])
    equal(logits, by_hand(model, inputs, report.positions))


def test_text_is_never_dropped(case, model, by_norm):
    inputs = case.inputs(**MANY)
    with attach(model, by_norm(keep=1)) as att:
        model(**inputs)
    placeholder = case.standing(model, inputs["input_ids"])
    real = inputs["attention_mask"].bool() & ~placeholder
    for row, positions in enumerate(att.last.positions):
        text = set(np.flatnonzero(real[row].numpy()))
        assert text <= set(positions.tolist())
    assert att.last.rows == [0, 0, 1]


def test_prompts_without_images_pass_untouched(case, model, by_norm):
    inputs = case.inputs(words=("what color is a dog ?",), images=(0,))
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with attach(model, by_norm(keep=1)) as att:
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
        assert att.last is None


def test_batch_with_a_prompt_without_images(case, model, by_norm):
    words = ("what is in this picture ?", "what color is a dog and a cat and a car ?")
    inputs = case.inputs(words=words, images=(1, 0))
    alone = case.inputs(words=words[:1], images=(1,))
    with attach(model, by_norm(keep=3)) as att:
        both = model.generate(**inputs, **GREEDY)
        assert att.last.rows == [0]
        one = model.generate(**alone, **GREEDY)
    assert torch.equal(both[0, -6:], one[0, -6:])
    text = case.inputs(words=words[1:], images=(0,))
    assert torch.equal(both[1, -6:], model.generate(**text, **GREEDY)[0, -6:])


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_batch_equals_each_prompt_alone(case, model, by_norm, positions):
    with attach(model, by_norm(keep=0.4), positions=positions) as att:
        together = model.generate(
            **case.inputs(**MANY), **GREEDY, return_dict_in_generate=True, output_logits=True
        )
        kept = att.last.kept
        first = 0
        for row, (words, count) in enumerate(zip(MANY["words"], MANY["images"], strict=True)):
            inputs = case.inputs(words=(words,), images=(count,), seed=first)
            alone = model.generate(
                **inputs, **GREEDY, return_dict_in_generate=True, output_logits=True
            )
            for ours, theirs in zip(att.last.kept, kept[first : first + count], strict=True):
                assert np.array_equal(ours, theirs)
            for ours, theirs in zip(alone.logits, together.logits, strict=True):
                equal(ours[0], theirs[row])
            assert torch.equal(together.sequences[row, -6:], alone.sequences[0, -6:])
            first += count


def test_left_and_right_padding_agree(case, model, by_norm):
    prompts = {"words": MANY["words"], "images": (1, 1)}
    found = {}
    with attach(model, by_norm(keep=4), positions="compact") as att:
        for side in ("left", "right"):
            logits = model(**case.inputs(**prompts, side=side)).logits
            mask = att.last.positions >= 0
            assert not mask.all()
            assert mask[:, 0 if side == "right" else -1].all()
            found[side] = [logits[row, torch.from_numpy(own)] for row, own in enumerate(mask)]
    for left, right in zip(*found.values(), strict=True):
        equal(left, right)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_decoding_goes_on_after_the_prompt(case, model, by_norm, calls, positions):
    inputs = case.inputs()
    with calls(model) as stock:
        model.generate(**inputs, **GREEDY)
    with attach(model, by_norm(keep=3), positions=positions) as att, calls(model) as ours:
        model.generate(**inputs, **GREEDY)
    before, after = att.last.prompt_length
    assert [call["inputs_embeds"].shape[1] for call in ours] == [after] + [1] * 5
    for step, (own, theirs) in enumerate(zip(ours, stock, strict=True)):
        own, theirs = own["position_ids"], theirs["position_ids"]
        if positions == "compact":
            assert own[..., -1].flatten().tolist() == [after - 1 + step] * own[..., -1].numel()
        elif step == 0:
            columns = torch.from_numpy(att.last.positions[0])
            assert torch.equal(own, theirs[..., columns])
        else:
            assert torch.equal(own, theirs)
    placeholders = int(case.standing(model, inputs["input_ids"]).sum())
    assert before - after == placeholders - len(att.last.kept[0])


@pytest.mark.first
def test_decoding_equals_recomputing_without_a_cache(case, model, by_norm, calls, hand_mask):
    inputs = case.inputs()
    with attach(model, by_norm(keep=3)) as att, calls(model) as seen:
        out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    start = dict(seen[0])
    decoder, embed = model.model.language_model, model.get_input_embeddings()
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    for step in range(6):
        position_ids = torch.cat(
            [start["position_ids"], *(call["position_ids"] for call in seen[1 : step + 1])], dim=-1
        )
        embeds = torch.cat([start["inputs_embeds"], embed(new[:, :step])], dim=1)
        call = {**start, "inputs_embeds": embeds, "position_ids": position_ids}
        call.pop(cache_name(), None)
        if call.get("visual_pos_masks") is not None:
            masks = call["visual_pos_masks"]
            call["visual_pos_masks"] = torch.cat([masks, masks.new_zeros(1, step)], dim=1)
        if call.get("per_layer_inputs") is not None:
            told = [each["per_layer_inputs"] for each in (start, *seen[1 : step + 1])]
            call["per_layer_inputs"] = torch.cat(told, dim=1)
        call["attention_mask"] = hand_mask(model, inputs, att.last.positions, step)
        hidden = decoder(**call).last_hidden_state[:, -1]
        equal(model.lm_head(hidden), out.logits[step])


def test_generate_returns_the_full_prompt(case, model, by_norm):
    inputs = case.inputs(**TWO)
    with attach(model, by_norm(keep=2)):
        out = model.generate(**inputs, **GREEDY)
    length = inputs["input_ids"].shape[1]
    assert out.shape == (2, length + 6)
    assert torch.equal(out[:, :length], inputs["input_ids"])


def test_sampling_with_a_seed(case, model, by_norm):
    inputs = case.inputs()
    settings = {"max_new_tokens": 8, "do_sample": True, "temperature": 2.0}

    def sample(seed):
        torch.manual_seed(seed)
        return model.generate(**inputs, **settings)

    stock = sample(3)
    with attach(model, by_norm(keep=100_000)):
        assert torch.equal(sample(3), stock)
    with attach(model, by_norm(keep=4)):
        first = sample(3)
        assert torch.equal(sample(3), first)
        assert not torch.equal(sample(4), first)


def test_beams(case, model, by_norm):
    """Against the stock generate() on inputs that were shortened beforehand."""
    settings = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    # One image a prompt: transformers 5.17 mixes up several when it repeats them for beams.
    inputs = case.inputs(**TWO)
    stock = model.generate(**inputs, **settings)
    with attach(model, by_norm(keep=100_000)):
        assert torch.equal(model.generate(**inputs, **settings), stock)
    inputs = case.inputs(**MANY)
    with attach(model, by_norm(keep=0.4)) as att:
        ours = model.generate(**inputs, **settings)
        assert len(att.last.kept) == 3
    small = shortened(case, model, inputs, by_norm(keep=0.4))
    theirs = model.generate(**small, **settings)
    assert torch.equal(ours[:, -6:], theirs[:, -6:])


def shortened(case, model, inputs, method):
    """Inputs for generate(), where this transformers can take them."""
    takes = inspect.signature(type(model).forward).parameters
    handed = case.name.startswith(("qwen3_vl", "gemma"))
    if handed and "mm_encoder_outputs" not in takes:
        with pytest.raises(ValueError, match="takes no mm_encoder_outputs"):
            prune_inputs(model, inputs, method)
        pytest.skip("what was kept cannot be handed over in this transformers")
    return prune_inputs(model, inputs, method)


def test_prune_inputs_equals_attaching(case, model, by_norm, calls):
    inputs = case.inputs(**MANY)
    with attach(model, by_norm(keep=0.4)) as att, calls(model) as attached:
        ours = model.generate(**inputs, **GREEDY)
    small = shortened(case, model, inputs, by_norm(keep=0.4))
    with calls(model) as stock:
        theirs = model.generate(**small, **GREEDY)
    assert torch.equal(ours[:, -6:], theirs[:, -6:])
    real = torch.from_numpy(att.last.positions >= 0)
    if not case.name.startswith("gemma4"):  # which embeds padding otherwise, where nobody reads it
        real = torch.ones_like(real)
    assert torch.equal(attached[0]["inputs_embeds"][real], stock[0]["inputs_embeds"][real])
    assert torch.equal(attached[0]["position_ids"], stock[0]["position_ids"])
    length = small["input_ids"].shape[1]
    assert torch.equal(theirs[:, :length], small["input_ids"])


def test_static_cache(case, model, by_norm):
    inputs = case.inputs(**MANY)
    with attach(model, by_norm(keep=0.4)) as att:
        dynamic = model.generate(**inputs, **GREEDY)
        static = model.generate(
            **inputs, **GREEDY, cache_implementation="static", return_dict_in_generate=True
        )
    assert torch.equal(static.sequences, dynamic)
    held = next(x.keys for x in cache_in(static).layers if hasattr(x, "keys")).shape[2]
    assert held <= att.last.positions.shape[1] + 6


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_and_bfloat16(case, by_norm, attention):
    model = case.model(attention).to(torch.bfloat16)
    inputs = case.inputs(**TWO)
    for name in ("pixel_values", "pixel_values_videos"):
        if name in inputs:
            inputs[name] = inputs[name].to(torch.bfloat16)
    stock = model(**inputs).logits
    with attach(model, by_norm(keep=100_000)):
        assert torch.equal(model(**inputs).logits, stock)
    with attach(model, by_norm(keep=3)):
        logits = model(**inputs).logits
        out = model.generate(**inputs, **GREEDY)
    assert logits.dtype == torch.bfloat16
    assert out.shape[1] == inputs["input_ids"].shape[1] + 6
    assert model.config._attn_implementation == attention


def test_a_second_generate_on_another_image(case, model, by_norm):
    first, second = case.inputs(seed=0), case.inputs(seed=5)
    with attach(model, by_norm(keep=4)) as att:
        model.generate(**first, **GREEDY)
        kept = att.last.kept[0]
        out = model.generate(**second, **GREEDY)
        assert not np.array_equal(att.last.kept[0], kept)
    with attach(model, by_norm(keep=4)):
        assert torch.equal(model.generate(**second, **GREEDY), out)


def hooks(model):
    return {
        name: [len(module._forward_hooks), len(module._forward_pre_hooks)]
        for name, module in model.named_modules()
    }


@pytest.mark.first
def test_detaching_leaves_the_model_as_it_was(case, model, by_norm):
    inputs = case.inputs()
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    attributes, hooked = dict(model.__dict__), hooks(model)
    att = attach(model, by_norm(keep=2))
    assert inspect.signature(model.forward) == inspect.signature(type(model).forward).replace(
        parameters=list(inspect.signature(type(model).forward).parameters.values())[1:]
    )
    model.generate(**inputs, **GREEDY)
    assert hooks(model) == hooked
    assert att.attached
    att.detach()
    assert not att.attached
    att.detach()
    assert model.__dict__.keys() == attributes.keys()
    assert all(model.__dict__[name] is value for name, value in attributes.items())
    assert model.forward.__func__ is type(model).forward
    assert hooks(model) == hooked
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(model.generate(**inputs, **GREEDY), tokens)


def test_a_forward_that_was_replaced_before_comes_back(case, model, by_norm):
    def replaced(*args, **kwargs):
        return type(model).forward(model, *args, **kwargs)

    model.forward = replaced
    try:
        attach(model, by_norm(keep=2)).detach()
        assert model.forward is replaced
    finally:
        del model.forward


def test_attaching_twice_is_refused(case, model, by_norm):
    refused = pytest.raises(ValueError, match=r"Second\(keep=2\) is attached already; call detach")
    with attach(model, by_norm(keep=2)), refused:
        attach(model, by_norm(keep=3))
    attach(model, by_norm(keep=3)).detach()


def test_gradients_reach_the_vision_side(case, model, by_norm):
    inputs = case.inputs()
    labels = inputs["input_ids"].clone()
    labels[labels == model.config.image_token_id] = -100
    with attach(model, by_norm(keep=4)) as att:
        out = model(**inputs, labels=labels)
        out.loss.backward()
    projector = [w for n, w in model.named_parameters() if "proj" in n or "merger" in n]
    assert any(w.grad is not None and bool(w.grad.abs().sum() > 0) for w in projector)
    model.zero_grad()
    columns = torch.from_numpy(att.last.positions)
    stock = torch.nn.functional.cross_entropy(
        out.logits[0, :-1].float(), labels[0, columns[0]][1:], ignore_index=-100
    )
    torch.testing.assert_close(out.loss, stock)


def test_forward_by_position_and_as_a_tuple(case, model, by_norm):
    inputs = case.inputs()
    with attach(model, by_norm(keep=4)):
        expected = model(**inputs).logits
        ids = inputs.pop("input_ids")
        assert torch.equal(model(ids, **inputs).logits, expected)
        assert torch.equal(model(ids, **inputs, return_dict=False)[0], expected)


@pytest.mark.parametrize("name", CACHES)
def test_decoding_by_hand_with_forward(case, model, by_norm, name):
    """model(...) with the cache of a pruned prompt, and a mask over the prompt as it was."""
    inputs = case.inputs(words=("how many red dog ?", "what color is this ?"), images=(1, 1))
    with attach(model, by_norm(keep=3)):
        expected = model.generate(**inputs, **GREEDY)[:, -6:]
        with torch.no_grad():
            out = model(**inputs, use_cache=True)
            mask, found = inputs["attention_mask"], [out.logits[:, -1].argmax(-1)]
            for _ in range(5):
                mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
                out = model(
                    input_ids=found[-1][:, None],
                    attention_mask=mask,
                    **{name: cache_in(out)},
                )
                found.append(out.logits[:, -1].argmax(-1))
    assert torch.equal(torch.stack(found, dim=1), expected)


class Seen(StoppingCriteria):
    def __init__(self):
        self.lengths = []

    def __call__(self, input_ids, scores, **kwargs):
        self.lengths.append(input_ids.shape[1])
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Stream(BaseStreamer):
    def __init__(self):
        self.put_ids = []

    def put(self, value):
        self.put_ids.append(value)

    def end(self):
        self.put_ids.append(None)


def test_criteria_and_streamers_see_the_full_prompt(case, model, by_norm):
    inputs = case.inputs()
    length = inputs["input_ids"].shape[1]
    criteria, stream = Seen(), Stream()
    with attach(model, by_norm(keep=3)):
        model.generate(
            **inputs,
            **GREEDY,
            stopping_criteria=StoppingCriteriaList([criteria]),
            streamer=stream,
            repetition_penalty=1.3,
        )
    assert criteria.lengths == list(range(length + 1, length + 7))
    assert torch.equal(stream.put_ids[0], inputs["input_ids"])


def test_limits_count_the_full_prompt(case, model, by_norm):
    inputs = case.inputs()
    length = inputs["input_ids"].shape[1]
    config = copy.deepcopy(model.generation_config)
    config.max_length = length + 3
    with attach(model, by_norm(keep=3)):
        assert model.generate(**inputs, max_length=length + 4).shape[1] == length + 4
        assert model.generate(**inputs, generation_config=config).shape[1] == length + 3
        with pytest.warns(UserWarning, match="max_length"):
            assert model.generate(**inputs).shape[1] == length + 20
        with pytest.raises(ValueError, match="max_length: the prompt has"):
            model.generate(**inputs, max_length=length)
    assert config.max_length == length + 3


def test_errors_say_what_to_do(case, model, by_norm):
    inputs = case.inputs()
    with attach(model, by_norm(keep=3)):
        cut = {**inputs, "input_ids": inputs["input_ids"].clone()}
        place = (cut["input_ids"][0] == model.config.image_token_id).nonzero()[0, 0]
        cut["input_ids"][0, place] = 13
        with pytest.raises(ValueError, match="image placeholders and features disagree"):
            model(**cut)
        embeds = {name: x for name, x in inputs.items() if name != "input_ids"}
        with pytest.raises(ValueError, match="input_ids: expected beside pixel_values"):
            model(**embeds, inputs_embeds=torch.zeros(1, 4, 8))
        cache = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        cache = {cache_name(): cache_in(cache)}
        with pytest.raises(ValueError, match=f"{cache_name()}: holds"):
            model(**inputs, **cache)
        with pytest.raises(ValueError, match=f"{cache_name()}: holds a pruned prompt"):
            model.generate(input_ids=inputs["input_ids"], **cache)
        with pytest.raises(ValueError, match="prefill_chunk_size: not possible"):
            model.generate(**inputs, prefill_chunk_size=4)
