"""Arithmetic that trains fast on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

PLAIN = "secateur_plain"
"""Name for `set_attn_implementation`."""


def plain_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Any, None]:
    r"""Attention written out, :math:`softmax(Q K^T s + M) V`, in the type of the values.

    For sequences of a few hundred tokens in bfloat16 on a CPU it takes half the time of the fused
    kernel, forward and backward together, and memory for the square of the length.

    Parameters
    ----------
    module
        Not used; transformers passes the layer.
    query, key, value
        Shape ``(B, heads, T, d)``.
    attention_mask
        What is added to the scores, shape ``(B, 1, T, T)``, or None.
    scaling
        :math:`s`; None for :math:`d^{-1/2}`.
    **options
        Not used: dropout and the like.

    Returns
    -------
    output : torch.Tensor
        Shape ``(B, T, heads, d)``.
    weights : None
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.to(value.dtype), key.to(value.dtype)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = torch.matmul(query * scale, key.transpose(-1, -2))
        if attention_mask is not None:
            scores = scores + attention_mask.to(scores.dtype)
        out = torch.matmul(scores.softmax(dim=-1), value)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(PLAIN, plain_attention)


def has_bfloat16(device: Any) -> bool:
    """Whether products in bfloat16 are fast there; a CPU without instructions for them is slow."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed(device: Any) -> Any:
    """Return the context to train in: bfloat16 where it is fast, else single precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16(device))


def attend_fast(model: Any, device: Any) -> None:
    """Choose the attention that trains fastest on a device."""
    if device.type == "cpu" and has_bfloat16(device):
        model.set_attn_implementation(PLAIN)


@contextmanager
def in_order() -> Iterator[None]:
    """Let the CPU add gradients in one order, so that a run can be repeated to the last bit.

    In single precision its threads would add what indexing gives back as they come. Memory is not
    filled before it is written to, as PyTorch else does, which takes a fifth of a step.
    """
    from torch.utils import deterministic

    if torch.cuda.is_available():
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        deterministic.fill_uninitialized_memory = filled
