"""A picture that is encoded again, beside others than before, keeps the same tokens."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image
from small import engine

import secateur as sc
from secateur.integrations.vllm.pruning import Pruned

TIMES = int(os.environ.get("SECATEUR_REENCODINGS", "400"))
PICTURES = 24


def tied(seed: int) -> Image.Image:
    """A few flat areas, so that most patches are alike to the last bit."""
    dice = np.random.default_rng(seed)
    coarse = dice.integers(0, 3, (3, 3, 1)) * np.array([60, 90, 110])
    return Image.fromarray(coarse.astype(np.uint8)).resize((96, 96), Image.Resampling.NEAREST)


@pytest.mark.parametrize(
    "method",
    [sc.DivPrune(keep=7), sc.TopK(keep=9), sc.HiPrune(keep=10)],
    ids=lambda method: method.name,
)
def test_the_same_places_whatever_is_encoded_beside(checkpoints, monkeypatch, method):
    checkpoint = checkpoints("llava")
    found: list[bytes] = []
    stock = Pruned._counted

    def counted(self, visuals, texts):
        kept = stock(self, visuals, texts)
        found.extend(np.asarray(index).tobytes() for index, _ in kept)
        return kept

    monkeypatch.setattr(Pruned, "_counted", counted)
    shown = [tied(seed) for seed in range(PICTURES)]
    pixels = checkpoint.processor.image_processor(shown, return_tensors="pt")["pixel_values"]
    dice = np.random.default_rng(0)
    seen: dict[int, set[bytes]] = {}

    def again(worker):
        model, times = worker.model_runner.model, 0
        while times < TIMES:
            together = dice.integers(0, PICTURES, int(dice.integers(1, 9)))
            found.clear()
            with torch.inference_mode():
                model.embed_multimodal(pixel_values=pixels[together].bfloat16())
            for number, places in zip(together.tolist(), found, strict=True):
                seen.setdefault(number, set()).add(places)
            times += len(together)

    with engine(checkpoint.folder, method, checkpoint.kind, dtype="bfloat16") as llm:
        llm.collective_rpc(again)
        del llm
    assert len(seen) == PICTURES
    assert [number for number, places in seen.items() if len(places) > 1] == []
