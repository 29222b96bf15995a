"""Where the tokens of an image stand in a prompt, and what vLLM derives from that."""

from __future__ import annotations

import pytest
from test_configuration import configuration
from vllm.model_executor.models.gemma3_mm import Gemma3ForConditionalGeneration
from vllm.model_executor.models.gemma4_mm import Gemma4ForConditionalGeneration
from vllm.model_executor.models.idefics3 import Idefics3ForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY

import secateur as sc
from secateur.integrations.vllm import overrides
from secateur.integrations.vllm.gemma3 import SecateurGemma3ForConditionalGeneration
from secateur.integrations.vllm.gemma4 import SecateurGemma4ForConditionalGeneration
from secateur.integrations.vllm.layout import shortened
from secateur.integrations.vllm.smolvlm import SecateurSmolVLMForConditionalGeneration

CROPS = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16}


def dummies(checkpoint, images=1, **how):
    """What memory is measured on: the largest images."""
    asked = overrides(sc.TopK(keep=9), checkpoint.kind)
    model = configuration(checkpoint.folder, asked, **how).model_config
    return MULTIMODAL_REGISTRY.create_processor(model).get_dummy_mm_inputs({"image": images})


def test_kept_tokens_of_a_picture_see_each_other(checkpoints):
    """What Gemma 3 reads both ways is what vLLM takes for the embeddings of an item."""
    checkpoint = checkpoints("gemma3")
    made = dummies(checkpoint, images=2)
    token = checkpoint.model.config.image_token_index
    found = []
    for place in made["mm_placeholders"]["image"]:
        ((first, last),) = place.extract_embeds_range()
        found.append(list(range(first, last + 1)))
    standing = [at for at, own in enumerate(made["prompt_token_ids"]) if own == token]
    assert found == [standing[:9], standing[9:]]
    assert len(standing) == 2 * 9


def test_crops_of_a_picture_keep_as_many_as_it(checkpoints):
    made = dummies(checkpoints("gemma3"), mm_processor_kwargs=CROPS)
    (place,) = made["mm_placeholders"]["image"]
    ranges = place.extract_embeds_range()
    assert [last - first + 1 for first, last in ranges] == [9] * 5


def test_an_image_of_tiles_has_room_for_the_text_between(checkpoints):
    made = dummies(checkpoints("smolvlm"))
    (place,) = made["mm_placeholders"]["image"]
    # Four tiles and the whole: a mark and a place before each, three breaks, a mark behind.
    assert place.get_num_embeds() == place.length == 5 * 9 + 2 * 5 + 3 + 1


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SecateurGemma3ForConditionalGeneration, Gemma3ForConditionalGeneration),
        (SecateurGemma4ForConditionalGeneration, Gemma4ForConditionalGeneration),
        (SecateurSmolVLMForConditionalGeneration, Idefics3ForConditionalGeneration),
    ],
    ids=["gemma3", "gemma4", "smolvlm"],
)
def test_no_graph_runs_the_tower_around_us(monkeypatch, ours, theirs):
    from vllm.v1.worker.encoder_cudagraph_defs import EncoderCudaGraphConfig

    told = EncoderCudaGraphConfig(modalities=["image"], buffer_keys=[], out_hidden_size=8)
    monkeypatch.setattr(theirs, "get_encoder_cudagraph_config", lambda self: told)
    assert ours.__new__(ours).get_encoder_cudagraph_config().modalities == []


def test_runs_of_a_token_are_shortened_each():
    prompt = [7, 1, 1, 1, 8, 5, 7, 1, 1, 1, 8, 6, 7, 1, 1, 1, 8]
    assert shortened(prompt, 1, [2, 0, 3]) == [7, 1, 1, 8, 5, 7, 8, 6, 7, 1, 1, 1, 8]
    assert shortened(prompt, 1, [3, 3, 3]) == prompt
