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
from secateur.core.inputs import REQUESTS, Request
from secateur.core.methods.base import Method
from secateur.integrations.encoded import Tensor

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

    def inputs(self, module: Any) -> list[Any]:
        """The first argument of `module`, one entry a call."""
        seen: list[Any] = []

        def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else next(iter(kwargs.values())))

        self.handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
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

    def after(self, module: Any, hook: Callable[[Any, Any, Any], Any]) -> None:
        """Let `hook(module, args, output)` change what `module` returns, before others see it."""
        self._add(module.register_forward_hook, hook, prepend=True)

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


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, neighbours: bool = False) -> Tensor:
    """Rotary embedding of (..., T, d), of as many of its first channels as the tables have.

    The first half of those turns with the second, or, as `neighbours`, each with the next.
    """
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if neighbours:
        across = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        across = torch.cat((-second, first), dim=-1)
    turned = turned * cos + across * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def requests_of(method: Method) -> dict[str, Request]:
    """What to observe for each input that a method may take."""
    return {**REQUESTS, **method.requests}


def layer_of(request: Request, features: int, depth: int, full: Sequence[int] | None = None) -> int:
    """The layer that a request means, of a tower of `depth`.

    Parameters
    ----------
    features
        The layer whose states become features.
    full
        Ascending layers in which every token of a picture sees every other, where not all do.
    """
    layers = range(depth) if full is None else full
    if request.layer == "features":
        return features
    if request.layer == "last":
        return layers[-1]
    if isinstance(request.layer, float):
        target = max(round(request.layer * depth), 1) - 1
        return min(next((layer for layer in layers if layer >= target), layers[-1]), features)
    layer = int(request.layer)
    if not -depth <= layer < depth:
        raise ValueError(f"layer: {layer} asked of a vision tower of {depth} layers")
    layer %= depth
    if request.what == "attention" and layer not in layers:
        raise ValueError(
            f"layer: {layer} attends within windows; attention is that of {list(layers)}"
        )
    return layer


def received(
    queries: Tensor, keys: Tensor, request: Request, *, class_token: bool = False
) -> Tensor:
    """Attention (..., T) that each token receives, from queries and keys (..., H, T, d).

    With a class token, the first, the others' (..., T - 1): paid by it, or on average by all.
    """
    if request.heads == "one":
        queries, keys = beside(queries)[..., None, :, :], beside(keys)[..., None, :, :]
    if class_token and request.by == "class":
        queries = queries[..., :1, :]
    attention = attention_received(queries, keys) / queries.shape[-2]
    return attention[..., 1:] if class_token else attention


def beside(x: Tensor) -> Tensor:
    """(..., H, T, d) as (..., T, H * d), the heads one beside the other."""
    return x.transpose(-2, -3).flatten(-2)


def keys_of(keys: Tensor, request: Request) -> Tensor:
    """Keys (..., T, C) as a request wants them, from those (..., H, T, d) of each head."""
    return keys.mean(dim=-3) if request.heads == "mean" else beside(keys)


def by_frame(queries: Tensor, keys: Tensor, grids: Tensor, request: Request) -> Tensor:
    """Attention (n,) that patches receive within their own image or frame, from (H, n, d)."""
    found, start = [], 0
    for frames, height, width in grids.tolist():
        stop = start + frames * height * width
        asking, asked = (
            x[:, start:stop].unflatten(1, (frames, -1)).transpose(0, 1) for x in (queries, keys)
        )
        found.append(received(asking, asked, request).flatten())
        start = stop
    return torch.cat(found)
