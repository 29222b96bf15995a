"""Positions of kept tokens: what a step of decoding costs, and where tokens stand."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from secateur.integrations.vllm.qwen import CHANNELS, Positioned

IMAGE, VIDEO, TEXT = 10, 11, 1


def model():
    made = Positioned.__new__(Positioned)
    made.__dict__["config"] = SimpleNamespace(image_token_id=IMAGE, video_token_id=VIDEO)
    return made


def asked(ids, embeds, positions, computed=0):
    return model().recompute_mrope_positions(
        input_ids=ids,
        multimodal_embeddings=embeds,
        mrope_positions=positions,
        num_computed_tokens=computed,
    )


def test_nothing_is_touched_where_nothing_is_to_be_placed():
    ids = [TEXT] * 3000
    positions = torch.arange(3000).expand(3, -1) + 7
    embeds, found, delta = asked(ids, [], positions, 3000)
    assert embeds == []
    assert found is positions
    assert delta == 7


def test_kept_tokens_stand_where_they_were():
    # Two of four by four tokens after two words: row 0, column 3, and row 3, column 1.
    ids = [TEXT, TEXT, IMAGE, IMAGE, TEXT]
    positions = torch.tensor([[0, 1, 2, 2, 6]] * 3)
    places = torch.tensor([[0, 0, 0, 0, 0, 3], [0, 0, 0, 0, 3, 1]])
    embeds = torch.cat([torch.ones(2, 8), places], dim=1)
    assert embeds.shape[1] == 8 + CHANNELS
    (clean,), found, delta = asked(ids, [embeds], positions)
    assert clean.tolist() == torch.ones(2, 8).tolist()
    assert found.tolist() == [[0, 1, 2, 2, 6], [0, 1, 2, 5, 6], [0, 1, 5, 3, 6]]
    assert delta == 2
