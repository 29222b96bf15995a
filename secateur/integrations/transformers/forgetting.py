"""Steps of decoding at which the newest token sees only some of the visual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from secateur.core.acts import Forgets, forgets
from secateur.core.attention import attention_rows
from secateur.integrations.encoded import Tensor
from secateur.integrations.observing import watching
from secateur.integrations.text import Flags
from secateur.integrations.transformers.asking import turned
from secateur.integrations.transformers.internals import cache_in, causal_mask, check_cache
from secateur.integrations.transformers.layers import Stretch, continuing
from secateur.integrations.transformers.shorten import Prompt


@dataclass(eq=False)
class Memory:
    """What goes with a cache whose visual tokens are hidden at times.

    Attributes
    ----------
    mask
        True (B, T) at the entries of the prompts that are real tokens.
    visual
        True (B, T) at those of them that may be hidden.
    neighbours
        How queries are turned, `ModelFamily.neighbours`.
    before
        What the newest token of each prompt paid them (V,) at the step before.
    """

    mask: Flags
    visual: Flags
    neighbours: bool = False
    before: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, cache: Any, prompt: Prompt, times: int, neighbours: bool) -> Memory:
        """What goes with the cache of a prompt, each row of it `times` times."""
        check_cache(cache, static=False)
        mask, visual = (np.repeat(x, times, axis=0) for x in (prompt.mask, prompt.choosable))
        return cls(mask, visual, neighbours)

    def seen(self, method: Forgets, queries: Tensor, keys: Tensor) -> Tensor:
        """True (B, K) at what a step may see, of queries (B, H, 1, d) and all keys (B, G, K, d)."""
        grown = np.ones((len(self.mask), keys.shape[2] - self.mask.shape[1]), dtype=bool)
        mask = torch.from_numpy(np.concatenate([self.mask, grown], axis=1)).to(queries.device)
        attention = attention_rows(queries, keys.to(queries.device), key_mask=mask)[:, 0]
        for row, visual in enumerate(self.visual):
            if visual.any():
                places = torch.from_numpy(np.flatnonzero(visual)).to(mask.device)
                own = attention[row, places]
                mask[row, places] = method.in_sight(own, self.before.get(row))
                self.before[row] = own
        return mask


@contextmanager
def stepping(
    model: Any,
    method: Any,
    stretches: Sequence[Stretch],
    memory: Memory | None,
    given: Mapping[str, Any],
) -> Iterator[None]:
    """A step with the arguments `given` on a cache that an attachment filled."""
    with ExitStack() as stack:
        if stretches:
            stack.enter_context(continuing(model, stretches, cache_in(given)))
        if memory is not None and forgets(method):
            shown = given.get("input_ids")
            shown = given["inputs_embeds"] if shown is None else shown
            stack.enter_context(forgetting(model, method, memory, int(shown.shape[1])))
        yield


@contextmanager
def forgetting(model: Any, method: Forgets, memory: Memory, new: int) -> Iterator[None]:
    """A step of `new` tokens on the cache that `memory` goes with; of several, all see all."""
    after, layers = method.forgets_after, model.layers
    if new != 1:
        memory.before.clear()
        yield
        return
    scorer = layers[after - 1].self_attn
    own: dict[str, Any] = {}
    with watching() as watch:
        queries = watch.output(scorer.q_proj)
        called = watch.arguments(scorer)

        @torch.no_grad()
        def hide(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not own:
                cache, angles = cache_in(kwargs), called[0][1]["position_embeddings"]
                asked = turned(scorer, "q", queries[0].detach(), angles, memory.neighbours)
                seen = memory.seen(method, asked, cache.layers[after - 1].keys.detach())
                mask = seen.to(args[0].device).long()
                own["attention_mask"] = causal_mask(model.config, args[0], mask, cache, after)
            return args, {**kwargs, **own}

        for number in range(after, len(layers)):
            watch.before(layers[number], hide)
        yield
