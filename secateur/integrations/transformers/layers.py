"""Dropping visual tokens between the layers of the language model, while it reads the prompt.

At a cut the layer that has just run is asked which visual tokens stay, from its own queries and
keys. The others leave the hidden states, and the caches of all layers already run, so that every
layer caches the same length. Hooks do this for the time of one forward; they change what the
layers are called with, never how they run, so any attention implementation stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import torch

from secateur.core.acts import Cut, Cuts, Layout, Sight
from secateur.core.arrays import to_numpy
from secateur.integrations.encoded import Indices, Tensor
from secateur.integrations.observing import Watch, heads, rotate, watching
from secateur.integrations.text import Flags
from secateur.integrations.transformers.internals import (
    cache_in,
    causal_mask,
    check_cache,
    shorten_cache,
)
from secateur.integrations.transformers.shorten import Prompt


class Cutter:
    """One prompt's way through the layers; rows are prompts, repeated for beams.

    Attributes
    ----------
    index
        (B, T) places of the compacted prompt that are left, -1 at padding.
    mask
        True (B, T) at real tokens.
    """

    def __init__(self, method: Cuts, model: Any, prompt: Prompt, rows: int, earliest: int) -> None:
        self.method, self.prompt = method, prompt
        self.model = model
        self.times = rows // len(prompt.mask)
        depth = len(model.layers)
        self.cuts: dict[int, dict[int, Cut]] = {}
        for row, images in enumerate(prompt.images):
            if sum(images) == 0:
                continue
            layout = Layout(depth, tuple(images), earliest, tuple(prompt.chosen[row]))
            for cut in method.plan(layout):
                if not 1 <= cut.after < depth:
                    raise ValueError(
                        f"{type(method).__name__}: a cut after {cut.after} layers does not fit a "
                        f"language model of {depth}"
                    )
                for beam in range(row * self.times, (row + 1) * self.times):
                    self.cuts.setdefault(cut.after, {})[beam] = cut
        repeat = np.repeat(np.arange(len(prompt.mask)), self.times)
        self.mask: Flags = prompt.mask[repeat]
        self.index: Indices = np.broadcast_to(np.arange(prompt.length), self.mask.shape).copy()
        self.choosable: Flags = prompt.choosable[repeat]
        self.text: Flags = prompt.text[repeat]
        self.columns = prompt.columns[repeat]
        self.found: list[list[tuple[int, Indices]]] = [[] for _ in prompt.mask]
        self.milliseconds = 0.0
        self.shorter: dict[str, Any] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Prune within the block, which runs the language model over the prompt once."""
        if not self.cuts:
            yield
            return
        first = min(self.cuts)
        with watching() as watch:
            for after in sorted(self.cuts):
                self._prepare(watch, after)
            for number in range(first, len(self.model.layers)):
                self._follow(watch, number)
            yield

    def _prepare(self, watch: Watch, after: int) -> None:
        scorer = self.model.layers[after - 1].self_attn
        queries = watch.output(getattr(scorer, "q_norm", scorer.q_proj))
        keys = watch.output(getattr(scorer, "k_norm", scorer.k_proj))
        called, entered = watch.arguments(scorer), watch.arguments(self.model.layers[after - 1])
        size = int(scorer.head_dim)

        def cut(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            start = perf_counter()
            kwargs = {**kwargs, **self.shorter}
            projected = []
            cos, sin = (x[:, None] for x in called[0][1]["position_embeddings"])
            for seen in (queries[0], keys[0]):
                x = seen.detach()
                x = x.transpose(1, 2) if x.ndim == 4 else heads(x, size)
                projected.append(rotate(x, cos, sin))
            hidden = entered[0][0][0].detach() if "entered" in self.method.looks else None
            place = self._choose(after, *projected, hidden)
            for seen in (queries, keys, called, entered):
                seen.clear()
            if place is not None:
                args = (self._shorten(after, place, args[0], kwargs), *args[1:])
            self.milliseconds += 1000.0 * (perf_counter() - start)
            return args, kwargs

        watch.handles.append(
            self.model.layers[after].register_forward_pre_hook(cut, with_kwargs=True)
        )

    def _follow(self, watch: Watch, number: int) -> None:
        def hand_over(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, **self.shorter}

        watch.handles.append(
            self.model.layers[number].register_forward_pre_hook(hand_over, with_kwargs=True)
        )

    @torch.no_grad()
    def _choose(self, after: int, queries: Tensor, keys: Tensor, hidden: Tensor) -> Indices | None:
        """Places (B, T') of the current prompt that stay, None when all do."""
        stays = self.mask.copy()
        for row, cut in self.cuts[after].items():
            visual = np.flatnonzero(self.choosable[row] & self.mask[row])
            if len(visual) == 0:
                continue
            device = queries.device
            sight = Sight(
                visual=torch.from_numpy(visual).to(device),
                text=torch.from_numpy(np.flatnonzero(self.text[row])).to(device),
                mask=None if self.mask[row].all() else torch.from_numpy(self.mask[row]).to(device),
                queries=queries[row],
                keys=keys[row],
                entered=None if hidden is None else hidden[row],
            )
            kept = to_numpy(self.method.decide(cut, sight).kept)
            stays[row, np.delete(visual, kept)] = False
            if row % self.times == 0:
                self.found[row // self.times].append((after, self.columns[row, visual[kept]]))
        if (stays == self.mask).all():
            return None
        counts = stays.sum(axis=1)
        place = np.full((len(stays), int(counts.max())), -1, dtype=np.int64)
        for row, own in enumerate(stays):
            columns = np.flatnonzero(own)
            start = 0 if self.prompt.right else place.shape[1] - len(columns)
            place[row, start : start + len(columns)] = columns
        return place

    def _shorten(self, after: int, place: Indices, hidden: Tensor, kwargs: dict[str, Any]) -> Any:
        at, there = np.maximum(place, 0), place >= 0
        rows = np.arange(len(place))[:, None]
        for name in ("index", "columns"):
            setattr(self, name, np.where(there, getattr(self, name)[rows, at], -1))
        for name in ("mask", "choosable", "text"):
            setattr(self, name, getattr(self, name)[rows, at] & there)
        gather = torch.from_numpy(at).to(hidden.device)
        hidden = hidden.gather(1, gather[..., None].expand(-1, -1, hidden.shape[-1]))
        cache = cache_in(kwargs)
        if cache is not None:
            check_cache(cache)
            shorten_cache(cache, after, torch.from_numpy(place))
        mask = torch.from_numpy(self.mask).to(hidden.device).long()
        self.shorter = {
            "attention_mask": causal_mask(self.model.config, hidden, mask, cache, after),
            "position_embeddings": tuple(_taken(x, gather) for x in kwargs["position_embeddings"]),
        }
        if kwargs.get("position_ids") is not None:
            self.shorter["position_ids"] = _taken(kwargs["position_ids"][..., None], gather)[..., 0]
        kwargs.update(self.shorter)
        return hidden


def _taken(x: Tensor, gather: Tensor) -> Tensor:
    """Rows `gather` (B, T') of x (B or 1, T, d)."""
    gather = gather.to(x.device)
    x = x.expand(len(gather), -1, -1)
    return x.gather(1, gather[..., None].expand(-1, -1, x.shape[-1]))
