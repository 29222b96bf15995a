"""Positions of kept tokens: what a step of decoding costs, and where tokens stand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from secateur.integrations.vllm.qwen import (
    CHANNELS,
    Positioned,
    SecateurQwen2VLForConditionalGeneration,
)

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


def test_no_graph_runs_the_tower_around_us():
    made = SecateurQwen2VLForConditionalGeneration.__new__(SecateurQwen2VLForConditionalGeneration)
    tower = SimpleNamespace(out_hidden_size=8)
    made.__dict__ |= {"visual": tower, "get_max_frames_per_video": lambda: 1}
    assert made.get_encoder_cudagraph_config().modalities == []


class Staged:
    """Positions of one request, as the second runner stages them."""

    def __init__(self, positions):
        self.positions, self.delta = positions.to(torch.int32), None

    def read_prefill_positions(self, request, length):
        return self.positions[:, :length]

    def update_prefill_positions(self, request, positions, delta):
        self.positions[:, : positions.shape[1]] = positions
        self.delta = delta


def test_what_the_second_runner_calls():
    """Its own code, on a CPU: two chunks of a prompt with an image in each, then decoding."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
    from vllm.v1.worker.gpu.model_states.mm_pruning import MultiModalPruner

    ids = torch.tensor([TEXT, IMAGE, IMAGE, TEXT, TEXT, IMAGE, IMAGE, TEXT])
    staged = Staged(torch.tensor([[0, 1, 1, 5, 6, 7, 7, 9]] * 3))
    features = [
        MultiModalFeatureSpec(None, "image", name, PlaceholderRange(offset=first, length=2))
        for name, first in (("one", 1), ("two", 5))
    ]
    pruner = MultiModalPruner(model(), staged, SimpleNamespace(mm_features={"a": features}), 8)
    rows = torch.tensor([[0, 0, 0, 0, 1, 3], [0, 0, 0, 0, 2, 0]])
    last = torch.tensor([[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1]])
    states = SimpleNamespace(all_token_ids=SimpleNamespace(gpu=ids[None]))

    def step(embeds, computed, scheduled):
        batch = SimpleNamespace(
            req_ids=["a"],
            idx_mapping_np=np.array([0]),
            prefill_len_np=np.array([8]),
            num_computed_prefill_tokens_np=np.array([computed]),
            num_scheduled_tokens=np.array([scheduled]),
        )
        return pruner.recompute(embeds, batch, states)

    for computed, places in ((0, rows), (4, last)):
        (clean,) = step([torch.cat([torch.ones(2, 8), places], dim=1)], computed, 4)
        assert clean.shape == (2, 8)
    assert staged.positions.tolist() == [
        [0, 1, 1, 5, 6, 7, 7, 9],
        [0, 2, 3, 5, 6, 7, 8, 9],
        [0, 4, 1, 5, 6, 8, 8, 9],
    ]
    assert staged.delta == 2
    assert step([], 8, 1) == []
