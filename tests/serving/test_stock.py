"""EVS and VidCom2 beside vLLM's own pruning of videos, which nobody here wrote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import engine
from test_equal import Request, limits, picture, written
from vllm.model_executor.models import qwen2_5_vl, qwen3_vl
from vllm.multimodal.video_prune import evs, vidcom2

import secateur as sc
from secateur.integrations.vllm.qwen import Positioned

THEIRS = {"evs": evs, "vidcom2": vidcom2}
STOCK = {
    "qwen2_5_vl": qwen2_5_vl.Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": qwen3_vl.Qwen3VLForConditionalGeneration,
}


def ours(name, keep):
    return sc.published(name, keep=keep, **({"exact": True} if name == "vidcom2" else {}))


def video(dice, frames, grid, width):
    """Scenes in which half of the places hardly move."""
    n = grid[0] * grid[1]
    x = dice.normal(size=(frames, n, width))
    still = dice.random(n) < 0.5
    for t in range(1, frames):
        if dice.random() < 0.8:
            x[t, still] = x[t - 1, still] + 0.1 * x[t, still]
    return x.reshape(-1, width)


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_the_same_kept_tokens_of_random_videos(name):
    dice = np.random.default_rng(0)
    counts = set()
    for _ in range(100):
        frames, width = int(dice.integers(1, 13)), int(dice.integers(8, 40))
        grid = (int(dice.integers(1, 6)), int(dice.integers(1, 6)))
        rate = float(np.round(dice.uniform(0.0, 0.99), 2))
        x = video(dice, frames, grid, width)
        size = (frames, 2 * grid[0], 2 * grid[1])
        kept = THEIRS[name].compute_retention_mask(torch.from_numpy(x), size, 2, rate)
        method = ours(name, 1.0 - rate)
        tokens = sc.Tokens(features=x, frames=frames)
        # A compiled driver, once imported, is in the way of engines that other tests start.
        chosen = method.select(tokens, backend="reference")
        assert chosen.indices.tolist() == torch.nonzero(kept)[:, 0].tolist()
        said = THEIRS[name].compute_retained_tokens_count(grid[0] * grid[1], frames, rate)
        assert method.budget(len(x), frames) == said
        counts.add(said)
    assert len(counts) > 20


def moving(frames=8, height=32, width=64):
    """A video in which half of the picture stands still for a while."""
    pictures = np.stack([np.asarray(picture(70 + n, height, width)) for n in range(frames)])
    for t in range(1, frames):
        if t != frames // 2:
            pictures[t, :, : width // 2] = pictures[t - 1, :, : width // 2]
    told = {
        "fps": 2.0,
        "duration": frames / 2.0,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return pictures, told


def watched(monkeypatch, kind):
    """Kept embeddings and positions of every prompt, as a model tells its runner."""
    stock, found = kind.recompute_mrope_positions, []

    def recompute(self, *given, **more):
        embeds, positions, delta = stock(self, *given, **more)
        if len(embeds):
            found.append((torch.cat([*embeds]).clone(), positions.clone(), delta))
        return embeds, positions, delta

    monkeypatch.setattr(kind, "recompute_mrope_positions", recompute)
    return found


SERVED = [("qwen2_5_vl", "evs"), ("qwen3_vl", "evs"), ("qwen3_vl", "vidcom2")]


@pytest.mark.parametrize(("model", "name"), SERVED)
def test_the_same_answers_as_stock_vllm(checkpoints, monkeypatch, model, name):
    checkpoint = checkpoints(model)
    rate = 0.625
    requests = []
    # VidCom2 prunes an image, a video of one frame, and vLLM's only videos.
    for images in ((), [(48, 48)] if name == "evs" else ()):
        request = Request(checkpoint, images, seed=5)
        request.videos, words = [moving()], "what is this ?" if requests else "how many red dog ?"
        request.text = checkpoint.prompt(words, len(images), 1)
        if model == "qwen3_vl":
            # vLLM counts from a video's first mark, and takes one before its timestamps for that.
            pad = "<|video_pad|>"
            request.text = request.text.replace(f"<|vision_start|> {pad} <|vision_end|>", pad)
        requests.append(request)
    usual = {"limit_mm_per_prompt": limits(checkpoint)}
    stock = {"video_pruning_rate": rate, "video_pruning_method": name}
    seen, told = [], []
    for kind, method, how in (
        (STOCK[model], None, stock),
        (Positioned, ours(name, 1.0 - rate), {}),
    ):
        with monkeypatch.context() as patched:
            seen.append(watched(patched, kind))
            with engine(checkpoint.folder, method, checkpoint.kind, **usual, **how) as llm:
                told.append(written(llm, requests))
                del llm
    assert len(seen[0]) == len(seen[1]) == len(requests)
    for (embeds, positions, delta), (own, places, shift) in zip(*seen, strict=True):
        torch.testing.assert_close(own, embeds, rtol=0, atol=0)
        # vLLM has as many as the prompt before pruning; what is past its end means nothing.
        assert places.tolist() == positions[:, : places.shape[1]].tolist()
        assert shift == delta
    assert told[0] == told[1]
