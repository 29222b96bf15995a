"""Towers of Qwen models that read some cells of a picture only: vLLM tells them where these stand.

A tower of vLLM takes as an argument what it else works out from grids: positions, windows, and
where frames end. It is worked out for whole grids, and what belongs to dropped cells left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention

from secateur.core.selection import Selection
from secateur.integrations.encoded import spread

BY_PATCH = ("rotary_pos_emb_cos", "rotary_pos_emb_sin", "pos_embeds")
"""What a tower is told of each patch, in the order in which it runs them."""


def encoded_some(tower: Any, values: Any, grids: Any, chosen: Sequence[Selection]) -> Sequence[Any]:
    """The features of each image or video, of which the tower reads the chosen cells alone.

    Parameters
    ----------
    values, grids
        Patches of all, and their grids (n, 3).
    chosen
        What was chosen of each image or frame.

    Returns
    -------
    Sequence of Tensor
        As long as without dropping; features of dropped cells are 0.
    """
    cell = tower.spatial_merge_size**2
    kept = torch.cat([each.mask() for each in chosen]).to(values.device)
    patches = values[kept.repeat_interleave(cell)]
    features = tower(patches, None, encoder_metadata=told_of(tower, grids.tolist(), kept))
    sizes = (grids.prod(-1) // cell).tolist()
    found: Sequence[Any] = spread(features, kept, len(kept)).split(sizes)
    return found


def told_of(tower: Any, grids: Sequence[Sequence[int]], kept: Any) -> dict[str, Any]:
    """What a tower has to be told that gets the patches of some cells only.

    Each keeps its position, its window and its frame of the whole grids; `kept` (n,) says which.
    """
    told = dict(tower.prepare_encoder_metadata(grids))
    frames = np.repeat([h * w for _, h, w in grids], [t for t, _, _ in grids]).cumsum()
    ends = {"": frames}
    order = told.get("window_index")
    stay = kept.to(tower.device)
    if order is not None:
        number = stay.long().cumsum(0) - 1
        stay = stay[order]
        told["window_index"] = number[order[stay]]
        told["reverse_indices"] = tower.invert_permutation(told["window_index"])
        starts = np.cumsum([0, *(t * h * w for t, h, w in grids)])
        windows = [tower.get_window_index_thw(*grid)[1].numpy() for grid in grids]
        ends = {
            "_full": frames,
            "_window": np.concatenate(
                [x + start for x, start in zip(windows, starts, strict=False)]
            ),
        }
    patches = stay.repeat_interleave(tower.spatial_merge_size**2)
    for name in BY_PATCH:
        if name in told:
            told[name] = told[name][patches]
    counted = torch.nn.functional.pad(patches.cumsum(0), (1, 0)).cpu().numpy()
    for which, stops in ends.items():
        told |= _stretches(tower, which, np.unique([0, *counted[stops]]).astype(np.int32))
    return told


def _windows(tower: Any, grids: Sequence[Sequence[int]]) -> Any:
    """Where windows end, in patches."""
    found, start = [], 0
    for t, h, w in grids:
        found.append(tower.get_window_index_thw(t, h, w)[1].numpy() + start)
        start += t * h * w
    return np.concatenate(found)


def _stretches(tower: Any, which: str, ends: Any) -> dict[str, Any]:
    """How attention is told which patches see each other: they stand between these ends."""
    backend, device = tower.attn_backend, tower.device
    longest = MMEncoderAttention.compute_max_seqlen(backend, ends)
    if hasattr(tower, "tp_size"):
        laid = MMEncoderAttention.maybe_recompute_cu_seqlens(
            backend,
            ends,
            tower.hidden_size,
            tower.tp_size,
            device,
            fp8_padded_hidden_size=tower.fp8_padded_hidden_size,
        )
    else:
        laid = torch.from_numpy(ends).to(device)
    return {
        "cu_window_seqlens" if which == "_window" else "cu_seqlens": laid,
        f"max_seqlen{which}": torch.tensor(longest, dtype=torch.int32),
        f"sequence_lengths{which}": MMEncoderAttention.maybe_compute_seq_lens(
            backend, ends, device
        ),
    }
