"""PixelPrune before the tower of vLLM's Qwen models: what it drops is never encoded."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from small import QWEN_IDS, engine
from test_equal import GREEDY, Request, limits, written
from torch.nn.modules.module import register_module_forward_pre_hook

import secateur as sc
from secateur.integrations.vllm import method_of, overrides

CELL = 16
"""Pixels a side of what becomes one token."""
MARKS = (QWEN_IDS["image_token_id"], QWEN_IDS["video_token_id"])
SIZES = [(96, 64), (64, 112), (80, 80)]


def page(seed, height, width):
    """White, with a few cells of noise."""
    dice = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    for _ in range(5):
        y, x = (CELL * dice.integers(0, side // CELL) for side in (height, width))
        pixels[y : y + CELL, x : x + CELL] = dice.integers(0, 256, (CELL, CELL, 3))
    return pixels


def requests_of(checkpoint):
    """Pages, several to a prompt, and a video of pages."""
    made = [Request(checkpoint, [size], seed=n) for n, size in enumerate(SIZES)]
    made += [Request(checkpoint, SIZES[:2], seed=7), Request(checkpoint, videos=1)]
    for number, request in enumerate(made):
        request.images = [
            Image.fromarray(page(10 * number + n, image.height, image.width))
            for n, image in enumerate(request.images)
        ]
        request.videos = [
            (np.stack([page(n // 2, 48, 64) for n in range(4)]), told) for _, told in request.videos
        ]
    return made


@pytest.fixture
def read():
    """How many patches towers were given, call by call."""
    found = []

    def look(module, given):
        if type(module).__name__.endswith("VisionTransformer"):
            found.append(len(given[0]))

    handle = register_module_forward_pre_hook(look)
    yield found
    handle.remove()


def served(checkpoint, method, requests, read):
    """Answers, and how many patches were kept."""
    limit = limits(checkpoint)
    with engine(checkpoint.folder, method, checkpoint.kind, limit_mm_per_prompt=limit) as llm:
        # As on devices whose memory vLLM measures.
        llm.collective_rpc(lambda worker: worker.model_runner.profile_run())
        measured = max(read)
        sizes = llm.llm_engine.renderer.get_mm_processor().info.stock
        assert measured >= 4 * sizes.get_max_image_tokens()
        read.clear()
        out = llm.generate([each.served() for each in requests], GREEDY, use_tqdm=False)
        del llm, sizes
    kept = sum(each.prompt_token_ids.count(token) for each in out for token in MARKS)
    return [list(each.outputs[0].token_ids) for each in out], 4 * kept


def patches_of(request):
    """How many patches its pictures have."""
    images = [np.shape(each) for each in request.images]
    frames = [(len(each) // 2 * each.shape[1], each.shape[2]) for each, _ in request.videos]
    return sum(4 * (h // CELL) * (w // CELL) for h, w, *_ in [*images, *frames])


@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "qwen3_vl", pytest.param("qwen2_vl", marks=pytest.mark.families)]
)
def test_the_tower_reads_what_is_kept(checkpoints, read, name):
    checkpoint = checkpoints(name)
    requests = requests_of(checkpoint)
    method = sc.PixelPrune()
    got, kept = served(checkpoint, method, requests, read)
    assert 0 < sum(read) == kept < sum(map(patches_of, requests)) / 2
    assert got == [each.expected(method) for each in requests]


def test_before_the_model_the_tower_reads_all(checkpoints, read):
    checkpoint = checkpoints("qwen2_5_vl")
    requests = requests_of(checkpoint)
    method = sc.PixelPrune(before="model")
    got, kept = served(checkpoint, method, requests, read)
    assert kept < sum(read) == sum(map(patches_of, requests))
    assert got == [each.expected(method) for each in requests]


def test_where_all_differ_the_tower_is_the_stock_one(checkpoints):
    checkpoint = checkpoints("qwen2_5_vl")
    request = Request(checkpoint, [(96, 64), (64, 112)])
    for image in range(2):
        dice = np.random.default_rng(image)
        shape = np.shape(request.images[image])
        request.images[image] = Image.fromarray(dice.integers(0, 256, shape, dtype=np.uint8))
    found = []
    for method in (None, sc.PixelPrune()):
        with engine(checkpoint.folder, method, "qwen2_5_vl") as llm:
            found.append(written(llm, [request]))
            del llm
    assert found[0] == found[1]


def test_other_towers_refuse_in_one_sentence():
    with pytest.raises(ValueError, match=r"^secateur: pixelprune with before=\"encoder\"; the "):
        overrides(sc.PixelPrune(before="encoder"), "llava")
    assert not method_of({"method": "pixelprune", "keep": 0.5}, "llava").skips
    assert method_of(sc.PixelPrune(before="encoder").to_dict(), "qwen2_5_vl").skips
