"""What a layer of the language model makes of what it reads: queries, keys and values.

They are noted while the layer runs, or worked out before it does. A layer that reads keys of an
earlier one (the smaller Gemma 4) makes none: there those are seen, as they are left.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from secateur.integrations.encoded import Tensor
from secateur.integrations.observing import Watch, heads, rotate
from secateur.integrations.transformers.internals import (
    device_of,
    read_of_earlier,
    reuses,
)


class Scorer:
    """The layer that a cut asks, by what its own projections return.

    Parameters
    ----------
    watch
        What lasts as long as the layer may run.
    layer
        The decoder layer.
    looks
        What the method wants of it, `Cuts.looks`.
    ahead
        Whether it is asked before it runs.
    neighbours
        How queries are turned, `Adapter.neighbours`.
    """

    def __init__(
        self, watch: Watch, layer: Any, looks: Collection[str], *, ahead: bool, neighbours: bool
    ) -> None:
        self.layer, self.attention = layer, layer.self_attn
        self.ahead, self.neighbours = ahead, neighbours
        own, made = self.attention, "q" if reuses(layer) else "qk"
        self.projections = {what: getattr(own, f"{what}_proj") for what in made}
        self.with_values = "values" in looks and not ahead
        if self.with_values and not reuses(layer):
            # Where keys are values too, they are so before the norm of keys.
            self.projections["v"] = own.k_proj if own.v_proj is None else own.v_proj
        self.noted: dict[str, list[Any]] = {}
        self.called: list[Any] = []
        if not ahead:
            self.noted = {what: watch.output(x) for what, x in self.projections.items()}
            self.called = watch.arguments(own)

    def seen(self, hidden: Tensor, call: Mapping[str, Any], length: int) -> dict[str, Any]:
        """Tables of positions, queries and keys, and values where they are wanted.

        Parameters
        ----------
        hidden
            States (B, T, C) that the layer is about to read, where it is asked ahead.
        call
            What it would be called with then; else what it was called with is taken.
        length
            T, of which a static cache has room for more.
        """
        call = call if self.ahead else self.called[0][1]
        angles = found = call["position_embeddings"]
        if self.ahead:
            states, angles = _entering(self.layer, hidden, angles)
            made = {what: project(states) for what, project in self.projections.items()}
        else:
            made = {what: noted[0].detach() for what, noted in self.noted.items()}
        seen = {"rotary": found, "queries": self._turned("q", made["q"], angles)}
        if "k" in made:
            seen["keys"] = self._turned("k", made["k"], angles)
        else:
            seen["keys"], seen["values"] = (
                x[:, :, :length].detach() for x in read_of_earlier(self.attention, call)
            )
        if "v" in made:
            seen["values"] = heads(made["v"], int(self.attention.head_dim))
            if hasattr(self.attention, "v_norm"):
                seen["values"] = self.attention.v_norm(seen["values"])
        if self.ahead:
            seen |= {name: seen[name].to(hidden.device) for name in ("queries", "keys")}
        return seen

    def ask(self, states: Tensor, angles: Any) -> Tensor:
        """Queries (B, H, T, d) that it makes of any states (B, T, C), on their device."""
        device = device_of(self.layer.input_layernorm)
        made = self.attention.q_proj(states.to(device))
        return self._turned("q", made, tuple(x.to(device) for x in angles)).to(states.device)

    def clear(self) -> None:
        """Forget what was noted."""
        for noted in (*self.noted.values(), self.called):
            noted.clear()

    def _turned(self, what: str, projected: Tensor, angles: Any) -> Tensor:
        return turned(self.attention, what, projected, angles, self.neighbours)


def _entering(layer: Any, hidden: Tensor, angles: Any) -> tuple[Tensor, Any]:
    """What the attention of a layer will read, and tables of positions beside it.

    It may live on another device, where only its own call would bring them.
    """
    device = device_of(layer.input_layernorm)
    return layer.input_layernorm(hidden.to(device)), tuple(x.to(device) for x in angles)


def turned(
    attention: Any, what: str, projected: Tensor, angles: Any, neighbours: bool = False
) -> Tensor:
    """Queries or keys (B, H, T, d), normed and rotated, from what a projection returned.

    Queries are scaled as the layer scales them, for attention that divides by the root of d;
    behind each there may be a gate.
    """
    size = int(attention.head_dim)
    width = projected.shape[-1] // attention.config.num_attention_heads
    x = projected.unflatten(-1, (-1, width if what == "q" else size))[..., :size]
    norm = getattr(attention, f"{what}_norm", None)
    x = (x if norm is None else norm(x)).transpose(1, 2)
    cos, sin = (each[:, None] for each in angles)
    scale = getattr(attention, "scaling", size**-0.5) * size**0.5
    x = rotate(x, cos, sin, neighbours=neighbours)
    return x if what == "k" or abs(scale - 1) < 1e-9 else x * scale
