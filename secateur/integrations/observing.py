"""Reading attention, keys and states of an encoder without changing how it runs.

Hooks pick up what the layer's own projections return, for the time of one encoding. Attention is
then worked out from queries and keys in blocks, so the encoder keeps its sdpa or flash attention
and no N x N matrix is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Any

import torch

from secateur.core.attention import attention_received
from secateur.integrations.encoded import Tensor

SHALLOW = 9 / 24
"""Depth of `Tokens.attention_shallow`: the ninth of CLIP's 24 layers, as HiPrune publishes it."""


_REGISTERING = Lock()
"""PyTorch numbers hooks by a counter that threads share."""


@dataclass
class Watch:
    """Hooks that last as long as the block they are used in, on calls of the thread it runs in.

    Modules are shared by all threads, so calls of others come by these hooks as well.
    """

    handles: list[Any] = field(default_factory=list)

    def output(self, module: Any) -> list[Any]:
        """What `module` returns, one entry a call; of a tuple the first."""
        seen: list[Any] = []

        def note(_module: Any, _args: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        self._add(module.register_forward_hook, note)
        return seen

    def arguments(self, module: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What `module` is called with, (args, kwargs), one entry a call."""
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args, kwargs))

        self.before(module, note)
        return seen

    def before(self, module: Any, hook: Callable[[Any, Any, dict[str, Any]], Any]) -> None:
        """Let `hook(module, args, kwargs)` change what `module` is called with."""
        self._add(module.register_forward_pre_hook, hook, with_kwargs=True)

    def _add(self, register: Callable[..., Any], hook: Callable[..., Any], **how: Any) -> None:
        owner = get_ident()

        def own(*call: Any) -> Any:
            # Another thread may come by while PyTorch has yet to note that kwargs are wanted.
            return hook(*call) if get_ident() == owner else None

        with _REGISTERING:
            self.handles.append(register(own, **how))


@contextmanager
def watching() -> Iterator[Watch]:
    """A `Watch` whose hooks are gone afterwards."""
    watch = Watch()
    try:
        yield watch
    finally:
        with _REGISTERING:
            for handle in watch.handles:
                handle.remove()


def heads(projected: Tensor, size: int) -> Tensor:
    """(..., T, H * d) as (..., H, T, d)."""
    return projected.unflatten(-1, (-1, size)).transpose(-2, -3)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (..., T, d) as all families here apply it, by halves."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def class_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention (B, T - 1) of the class token, the first, to all others; mean over heads."""
    return attention_received(queries[..., :1, :], keys)[..., 1:]


def mean_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention (..., T) that each token receives on average, over queries and heads."""
    count = queries.shape[-2]
    return attention_received(queries, keys) / count


def watched_layers(full: Sequence[int], depth: int) -> dict[str, int]:
    """In which of `depth` layers to observe what, given those of `full` attention."""
    target = round(SHALLOW * depth) - 1
    shallow = next((layer for layer in full if layer >= target), full[-1])
    return {"attention": full[-1], "attention_shallow": shallow, "keys": full[-1]}


def by_frame(queries: Tensor, keys: Tensor, grids: Tensor) -> Tensor:
    """Mean attention (n,) that patches receive within their own image or frame."""
    received, start = [], 0
    for frames, height, width in grids.tolist():
        stop = start + frames * height * width
        own = (x[:, start:stop].unflatten(1, (frames, -1)).transpose(0, 1) for x in (queries, keys))
        received.append(mean_attention(*own).flatten())
        start = stop
    return torch.cat(received)
