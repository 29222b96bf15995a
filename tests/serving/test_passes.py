"""A pass of the tower takes no more unpruned tokens than vLLM's own would."""

from __future__ import annotations

import pytest
import torch
from small import TOKENS, engine
from test_equal import Request, written

import secateur as sc
from secateur.integrations.vllm.passes import bounds, cut, moved
from secateur.integrations.vllm.pruning import Pruned

BUDGET = 4 * TOKENS
"""Tokens a step: four whole pictures, or eighteen of eight tokens."""


def test_bounds_take_neighbours_up_to_the_budget():
    assert list(bounds([3, 3, 3, 9, 1], 7)) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert list(bounds([5], 1)) == [(0, 1)]
    assert list(bounds([], 1)) == []


def test_arguments_of_a_pass():
    given = {
        "pixel_values": torch.arange(10).reshape(10, 1),
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 1, 2], [1, 2, 2]]),
        "secateur_instruction_image": ["a", "b", "c"],
        "other": 5,
    }
    found = cut(given, 1, 3, 3, {"pixel_values": [0, 4, 6, 10]})
    assert found["pixel_values"].flatten().tolist() == list(range(4, 10))
    assert found["image_grid_thw"].tolist() == [[1, 1, 2], [1, 2, 2]]
    assert found["secateur_instruction_image"] == ["b", "c"]
    assert found["other"] == 5
    assert moved([torch.zeros(1), None], "meta")[0].device.type == "meta"


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_many_pictures_at_once(checkpoints, monkeypatch, name):
    checkpoint = checkpoints(name)
    method = sc.VisionZip(keep=8)
    requests = [Request(checkpoint, [(48, 48)], seed=n) for n in range(24)]
    loads = []
    stock = Pruned._counted

    def counted(self, visuals, texts):
        loads.append(sum(each.size for each in visuals))
        return stock(self, visuals, texts)

    monkeypatch.setattr(Pruned, "_counted", counted)
    how = {"max_num_batched_tokens": BUDGET, "max_num_seqs": 24, "enable_chunked_prefill": True}
    with engine(checkpoint.folder, method, checkpoint.kind, **how) as llm:
        # As on devices whose memory vLLM measures.
        llm.collective_rpc(lambda worker: worker.model_runner.profile_run())
        measured, loads[:] = max(loads), []
        got = written(llm, requests)
        del llm
    assert got[::8] == [each.expected(method) for each in requests[::8]]
    # Under load, and when memory was measured, which saw the largest pass there is.
    assert max(loads) <= min(measured, BUDGET)
    assert len(loads) > 1


def test_pixels_stay_on_the_host_until_their_pass(checkpoints):
    checkpoint = checkpoints("llava_onevision")
    seen = []
    with engine(
        checkpoint.folder, sc.TopK(keep=9), checkpoint.kind, limit_mm_per_prompt={"image": 1}
    ) as llm:
        processor = llm.llm_engine.renderer.get_mm_processor()
        made = processor.get_dummy_mm_inputs({"image": 1})
        seen += [
            (name, element.field.keep_on_cpu)
            for name, element in made["mm_kwargs"]["image"][0].items()
        ]
        del llm, processor
    assert dict(seen)["pixel_values"]


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision", "qwen2_5_vl"])
def test_memory_is_measured_by_what_the_tower_takes(checkpoints, name):
    from test_configuration import configuration
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from secateur.integrations.vllm import overrides

    checkpoint = checkpoints(name)
    found = []
    for asked in ({}, overrides(sc.TopK(keep=4), checkpoint.kind)):
        model = configuration(checkpoint.folder, asked).model_config
        processor = MULTIMODAL_REGISTRY.create_processor(model)
        counts = dict.fromkeys(processor.info.supported_mm_limits, 1)
        most = processor.info.get_mm_max_tokens_per_item(512, counts)
        if most is None:
            most = {"image": processor.info.get_max_image_tokens()}
            if "video" in counts:
                most["video"] = processor.info.get_max_video_tokens(512, counts)
        found.append(dict(most))
    assert found[0] == found[1]
