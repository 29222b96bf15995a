"""Gemma 3 where prompts are longer than its windows or nobody tells types; Gemma 4's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.integrations.attach import attach
from secateur.integrations.transformers.models import UnsupportedModelError


class Making(sc.FastV):
    """Puts the mean of all tokens behind those that stay."""

    looks = sc.FastV.looks | {"hidden"}

    def decide(self, cut, sight):
        return replace(super().decide(cut, sight), made=sight.hidden.mean(0, keepdim=True))


pytestmark = pytest.mark.families
TWO = {"words": ("what is in this picture ?", "how many red dog and cat does this show ?")}
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def short(cases):
    """A case whose windows see 12 tokens; an image has 16."""
    case = cases["gemma3"]()
    case.window = 12
    return case, case.model()


def without_types(inputs):
    return {name: x for name, x in inputs.items() if "token_type_ids" not in name}


@pytest.mark.parametrize("told", [True, False])
def test_full_keep_is_bit_equal(short, by_norm, told):
    case, model = short
    inputs = case.inputs(**TWO, images=(2, 1))
    inputs = inputs if told else without_types(inputs)
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with attach(model, by_norm(keep=1.0)):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)


@pytest.mark.parametrize("told", [True, False])
def test_pruned_equals_the_language_model_fed_by_hand(short, by_norm, by_hand, told):
    case, model = short
    inputs = case.inputs(**TWO, images=(2, 1))
    given = inputs if told else without_types(inputs)
    with attach(model, by_norm(keep=0.5)) as att:
        logits = model(**given).logits
    real = torch.from_numpy(att.last.positions >= 0)
    own = by_hand(model, given, att.last.positions)
    torch.testing.assert_close(logits[real], own[real], rtol=2e-4, atol=2e-4)
    # The two ways, and the short windows, change what is read.
    other = by_hand(model, without_types(inputs) if told else inputs, att.last.positions)
    assert (logits - other)[real].abs().max().item() > 0.1


def test_decoding_equals_recomputing_without_a_cache(short, by_norm, calls, hand_mask):
    case, model = short
    inputs = case.inputs()
    with attach(model, by_norm(keep=5)) as att, calls(model) as seen:
        out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
        static = model.generate(**inputs, **GREEDY, cache_implementation="static")
    assert torch.equal(static, out.sequences)
    assert att.last.prompt_length[1] > case.window
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    start, embed = seen[0], model.get_input_embeddings()
    for step in range(6):
        positions = [start["position_ids"], *(each["position_ids"] for each in seen[1 : step + 1])]
        hidden = model.model.language_model(
            inputs_embeds=torch.cat([start["inputs_embeds"], embed(new[:, :step])], dim=1),
            position_ids=torch.cat(positions, dim=-1),
            attention_mask=hand_mask(model, inputs, att.last.positions, step),
        ).last_hidden_state[:, -1]
        torch.testing.assert_close(model.lm_head(hidden), out.logits[step], rtol=2e-4, atol=2e-4)


def test_crops_of_pan_and_scan_are_images_by_themselves(cases, by_norm):
    case = cases["gemma3"]()
    model, processor = case.model(), case.processor()
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16}
    wide = [case.images(1)[0].resize((96, 32))]
    inputs = processor(text=[case.text("what ?")], images=wide, return_tensors="pt", **crops)
    pictures = len(inputs["pixel_values"])
    assert pictures > 2
    logits = model(**inputs).logits
    with attach(model, by_norm(keep=1.0)):
        assert torch.equal(model(**inputs).logits, logits)
    with attach(model, by_norm(keep=3)) as att:
        model(**inputs)
    assert [len(kept) for kept in att.last.kept] == [3] * pictures
    text = np.flatnonzero(inputs["input_ids"][0].numpy() != model.config.image_token_id)
    assert set(text) <= set(att.last.positions[0])


@pytest.fixture(scope="module")
def small(cases):
    """Gemma 4 as its small models are: layers read each token, the last share keys and values."""
    case = cases["gemma4"]()
    return case, case.model(per_layer=8)


def test_what_each_layer_reads_of_a_token_is_shortened(small, by_norm, by_hand):
    case, model = small
    inputs = case.inputs(**TWO, images=(2, 1))
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with attach(model, by_norm(keep=1.0)):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    with attach(model, by_norm(keep=0.5)) as att:
        logits = model(**inputs).logits
    real = torch.from_numpy(att.last.positions >= 0)
    own = by_hand(model, inputs, att.last.positions)
    torch.testing.assert_close(logits[real], own[real], rtol=2e-4, atol=2e-4)


def test_what_each_layer_reads_goes_on_while_decoding(small, by_norm, calls, hand_mask):
    case, model = small
    inputs = case.inputs()
    with attach(model, by_norm(keep=5)) as att, calls(model) as seen:
        out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    start, embed = seen[0], model.get_input_embeddings()
    decoder = model.model.language_model
    for step in range(6):
        positions = [start["position_ids"], *(each["position_ids"] for each in seen[1 : step + 1])]
        more = decoder.get_per_layer_inputs(new[:, :step], None)
        hidden = decoder(
            inputs_embeds=torch.cat([start["inputs_embeds"], embed(new[:, :step])], dim=1),
            per_layer_inputs=torch.cat([start["per_layer_inputs"], more], dim=1),
            position_ids=torch.cat(positions, dim=-1),
            attention_mask=hand_mask(model, inputs, att.last.positions, step),
        ).last_hidden_state[:, -1]
        torch.testing.assert_close(model.lm_head(hidden), out.logits[step], rtol=2e-4, atol=2e-4)


def test_what_gemma_4_cannot_do_is_refused(small, by_norm, monkeypatch):
    case, model = small
    refused = pytest.raises(UnsupportedModelError, match="in caches of sliding windows")
    with refused:
        attach(model, sc.published("fastv"))
    with monkeypatch.context() as changed:
        kinds = ["full_attention"] * case.layers
        changed.setattr(model.config.text_config, "layer_types", kinds)
        refused = pytest.raises(UnsupportedModelError, match="keys that later layers read of earl")
        with refused:
            attach(model, sc.published("fastv"))
    making = Making(keep=3, after=2)
    with attach(model, making), pytest.raises(ValueError, match="Making makes tokens, of which"):
        model(**case.inputs())
    inputs = case.inputs()
    with attach(model, by_norm(keep=5)):
        for name in ("pixel_values_videos", "input_features"):
            with pytest.raises(ValueError, match=f"{name}: Gemma 4's prompts are pruned with"):
                model(**inputs, **{name: torch.zeros(1, 4, 4)})
