"""Dropping visual tokens between the layers of the language model, while it reads the prompt.

At a cut a layer is asked which visual tokens stay, from its own queries and keys. The others
leave the hidden states, and, unless the method leaves them there, the caches of all layers that
ran already. Hooks do this for the time of one forward; they change what the layers are called
with, never how they run, so any attention implementation stays.

Where caches keep what later layers dropped, layers differ in what they attend to: `continuing`
hands each its own mask and positions at every following step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from secateur.core.acts import Cut, Cuts, Layout, Sight, Stay
from secateur.core.arrays import to_numpy
from secateur.integrations.encoded import Indices, Tensor
from secateur.integrations.observing import Watch, watching
from secateur.integrations.text import Flags
from secateur.integrations.transformers.asking import Scorer
from secateur.integrations.transformers.internals import (
    attends,
    cache_in,
    cached_length,
    causal_mask,
    check_cache,
    kind_of,
    reuses,
    rotary,
    shorten_cache,
    shorten_read,
    window_of,
)
from secateur.integrations.transformers.models import UnsupportedModelError
from secateur.integrations.transformers.shorten import Prompt


def check_layers(model: Any, decoder: Any, method: Cuts) -> None:
    """Refuse a decoder whose layers cannot do what a method asks of them."""
    name = type(method).__name__
    if window_of(decoder.config) is not None and not method.shortens_caches:
        told = f"{name} cannot leave what it drops in caches of sliding windows"
        raise UnsupportedModelError(model, told)
    if not method.shortens_caches and any(map(reuses, decoder.layers)):
        told = f"{name} cannot leave what it drops in keys that later layers read of earlier ones"
        raise UnsupportedModelError(model, told)
    if method.shortens_caches and not all(map(attends, decoder.layers)):
        raise UnsupportedModelError(
            model,
            f"{name} makes layers that ran forget what it drops, and linear attention cannot "
            "forget what it has read; methods that leave those layers as they are, such as "
            "FastV(published=True), can be attached",
        )


@dataclass(frozen=True, eq=False)
class Stretch:
    """Layers, from one on, whose caches hold fewer tokens of the prompt than those before.

    Attributes
    ----------
    first
        The layer it begins with.
    mask
        True (B, T) at the entries that are real tokens.
    following
        Position (B,) of the next token in these layers; None where it is the model's own.
    """

    first: int
    mask: Flags
    following: Indices | None


class Cutter:
    """One prompt's way through the layers; rows are prompts, repeated for beams.

    Attributes
    ----------
    mask
        True (B, T) at the real tokens that are left.
    columns
        (B, T) columns of the unpruned prompt, -1 at padding and at tokens that a cut made.
    found
        For each prompt (after, columns of the visual tokens that stayed), one a cut.
    stretches
        Layers whose caches differ from those of the first, in order.
    """

    def __init__(
        self,
        method: Cuts,
        model: Any,
        prompt: Prompt,
        rows: int,
        earliest: int,
        family: str = "",
        *,
        neighbours: bool = False,
    ) -> None:
        self.method, self.prompt = method, prompt
        self.model, self.neighbours = model, neighbours
        self.times = rows // len(prompt.mask)
        depth = len(model.layers)
        ahead = method.looks_ahead
        askable = [n + (not ahead) for n, layer in enumerate(model.layers) if attends(layer)]
        earliest = max(earliest, askable[0])
        self.layouts = [
            Layout(depth, tuple(images), earliest, tuple(chosen), family)
            for images, chosen in zip(prompt.images, prompt.chosen, strict=True)
        ]
        self.cuts: dict[int, dict[int, Cut]] = {}
        for row, layout in enumerate(self.layouts):
            for cut in method.plan(layout) if layout.size else ():
                if not 1 <= cut.after < depth:
                    raise ValueError(
                        f"{type(method).__name__}: a cut after {cut.after} layers does not fit a "
                        f"language model of {depth}"
                    )
                if cut.after not in askable:
                    raise ValueError(
                        f"{type(method).__name__}: a cut after {cut.after} layers asks layer "
                        f"{cut.after - (not ahead)}, whose linear attention has no keys; cuts "
                        f"are possible after {', '.join(map(str, askable))}"
                    )
                for beam in range(row * self.times, (row + 1) * self.times):
                    self.cuts.setdefault(cut.after, {})[beam] = cut
        repeat = np.repeat(np.arange(len(prompt.mask)), self.times)
        self.mask: Flags = prompt.mask[repeat]
        self.choosable: Flags = prompt.choosable[repeat]
        self.text: Flags = prompt.text[repeat]
        self.image: Indices = prompt.image[repeat]
        self.place: Indices = prompt.place[repeat]
        self.columns = prompt.columns[repeat]
        self.found: list[list[tuple[int, Indices]]] = [[] for _ in prompt.mask]
        self.prepared: list[Any] = [None] * rows
        self.stretches: list[Stretch] = []
        self.milliseconds = 0.0
        self.at: Tensor | None = None
        self.anew = False
        self.shorter: dict[str, dict[str, Any]] = {}

    def check(self, cache: Any) -> None:
        """Refuse a cache, or a sliding window, that the method's way of pruning does not fit."""
        if not self.cuts:
            return
        check_cache(cache, static=self.method.shortens_caches)
        window, length = window_of(self.model.config), self.mask.shape[1]
        if window is not None and length >= window:
            raise ValueError(
                f"{type(self.method).__name__}: the prompt has {length} tokens, and layers with a "
                f"sliding window of {window} have forgotten some before the cut; keep fewer before "
                "the language model, or prune there only"
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Prune within the block, which runs the language model over the prompt once."""
        if not self.cuts:
            yield
            return
        if "embeddings" in self.method.looks:
            self._prepare()
        first = min(self.cuts)
        with watching() as watch:
            for after in sorted(self.cuts):
                self._watch(watch, after)
            for number in range(first, len(self.model.layers)):
                self._follow(watch, number)
            self._last_alone(watch)
            yield

    def _last_alone(self, watch: Watch) -> None:
        """Let a decoder that is asked for the last tokens alone (Gemma 4) read all, if it has to.

        Layers that read keys of earlier ones run on the last token alone where all cuts come
        before and it is the last of what is left; else what was asked for is taken at the end.
        """
        layers, asked = self.model.layers, [0]
        first = next((n for n, layer in enumerate(layers) if reuses(layer)), len(layers))
        last = not self.prompt.right and not self.choosable[:, -1].any()

        def before(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            told = kwargs.get("logits_to_keep", 0)
            asked[0] = told if isinstance(told, int) else 0
            if asked[0] == 0 or (asked[0] == 1 and last and max(self.cuts) < first):
                return None
            return args, {**kwargs, "logits_to_keep": 0}

        def behind(_module: Any, _args: Any, output: Any) -> Any:
            if 0 < asked[0] < output.last_hidden_state.shape[1]:
                output.last_hidden_state = output.last_hidden_state[:, -asked[0] :]
            return output

        watch.before(self.model, before)
        watch.after(self.model, behind)

    @torch.no_grad()
    def _prepare(self) -> None:
        """Let the method see the embeddings of every prompt."""
        for row in self.cuts[min(self.cuts)]:
            if self._visual(row).size:
                embeddings = self.prompt.embeds[row // self.times].detach()
                sight = self._sight(row, embeddings=embeddings)
                self.prepared[row] = self.method.prepare(sight)

    def _watch(self, watch: Watch, after: int) -> None:
        """Note what layer `after` - 1 is called with and projects, and cut before the next."""
        ahead, looks = self.method.looks_ahead, self.method.looks
        layer = self.model.layers[after if ahead else after - 1]
        scorer = Scorer(watch, layer, looks, ahead=ahead, neighbours=self.neighbours)
        entered = watch.arguments(self.model.layers[after - 1])

        @torch.no_grad()
        def cut(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            start, hidden = perf_counter(), args[0].detach()
            call = {**kwargs, **self._handed(after, hidden, kwargs)} if ahead else {}
            seen = scorer.seen(hidden, call, self.mask.shape[1])
            seen |= {"hidden": hidden, "entered": entered[0][0][0].detach()}
            stays = self._decide(after, scorer, seen)
            scorer.clear()
            entered.clear()
            made = any(stay.made is not None for stay in stays.values())
            if made and any(x is not None for x in args[1:]):
                raise ValueError(
                    f"{type(self.method).__name__} makes tokens, of which layers of this model "
                    "have no embedding to read"
                )
            if stays:
                args = (self._shorten(after, stays, args[0], kwargs), *args[1:])
            self.milliseconds += 1000.0 * (perf_counter() - start)
            return args, kwargs

        watch.before(self.model.layers[after], cut)

    def _follow(self, watch: Watch, number: int) -> None:
        def hand_over(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            beside = args[1:]
            if self.at is not None and args[0].shape[1] == self.mask.shape[1]:
                beside = tuple(x if x is None else _taken(x, self.at) for x in beside)
            return (args[0], *beside), {**kwargs, **self._handed(number, args[0], kwargs)}

        watch.before(self.model.layers[number], hand_over)

    def _handed(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a layer gets for the tokens that are left, instead of what the model tells it."""
        if self.at is None:
            return {}
        kind, length = kind_of(self.model.config, number), self.mask.shape[1]
        if kind not in self.shorter:
            self.shorter[kind] = self._as_left(number, kind, hidden, self.at, kwargs)
        handed, new = self.shorter[kind], hidden.shape[1]
        if new == length:
            return handed
        # Layers that read keys of earlier ones, asked for the last token alone, see `_last_alone`.
        mask, angles = (handed[name] for name in ("attention_mask", "position_embeddings"))
        told = None if mask is None else mask[..., -new:, :]
        return {
            "attention_mask": told,
            "position_embeddings": tuple(x[:, -new:] for x in angles),
        }

    def _as_left(
        self, number: int, kind: str, hidden: Tensor, at: Tensor, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What all layers of a kind get, told by the first of them behind a cut."""
        layer, mask = self.model.layers[number], torch.from_numpy(self.mask).to(hidden.device)
        if not attends(layer):
            return {"attention_mask": None if self.mask.all() else mask.long()}
        both_ways = kind in self.prompt.both_ways
        blocks = torch.from_numpy(self.image).to(hidden.device) if both_ways else None
        # What a layer reads of an earlier one is as long as the prompt, in whatever cache it is.
        cache = None if reuses(layer) else cache_in(kwargs)
        states = hidden[:, -1:].expand(-1, mask.shape[1], -1)
        # No window is shorter than the prompt, see `check`.
        whole = causal_mask(self.model.config, states, mask.long(), cache, number, blocks)
        handed: dict[str, Any] = {"attention_mask": whole}
        ids = kwargs.get("position_ids")
        if self.anew:
            counted = np.maximum(np.cumsum(self.mask, axis=1) - 1, 0)
            positions = torch.from_numpy(counted).to(hidden.device)
            handed["position_embeddings"] = rotary(self.model, states, positions, kind)
            if ids is not None:
                handed["position_ids"] = positions.expand(*ids.shape[:-2], -1, -1)
            return handed
        angles = kwargs["position_embeddings"]
        if hidden.shape[1] == mask.shape[1]:  # else those of the last token, who stays
            angles = tuple(_taken(x, at) for x in angles)
        handed["position_embeddings"] = angles
        if ids is not None:
            planes = (*ids.shape[:-2], len(self.mask), -1)
            at = at.to(ids.device).expand(*ids.shape[:-2], -1, -1)
            handed["position_ids"] = ids.expand(planes).gather(-1, at)
        return handed

    def _visual(self, row: int) -> Indices:
        return np.flatnonzero(self.choosable[row] & self.mask[row])

    def _sight(self, row: int, **seen: Any) -> Sight:
        visual = self._visual(row)
        sample = next(x for x in seen.values() if isinstance(x, torch.Tensor))

        def beside(x: Any) -> Tensor:
            return torch.from_numpy(x).to(sample.device)

        return Sight(
            length=self.mask.shape[1],
            visual=beside(visual),
            text=beside(np.flatnonzero(self.text[row])),
            mask=None if self.mask[row].all() else beside(self.mask[row]),
            image=beside(self.image[row, visual]),
            place=beside(self.place[row, visual]),
            layout=self.layouts[row // self.times],
            prepared=self.prepared[row],
            **seen,
        )

    def _decide(self, after: int, scorer: Scorer, seen: dict[str, Any]) -> dict[int, Stay]:
        """What stays of each row; nothing where all of all rows do."""
        stays: dict[int, Stay] = {}
        looks = self.method.looks
        for row, cut in self.cuts[after].items():
            visual = self._visual(row)
            if len(visual) == 0:
                continue
            device = seen["hidden"].device  # what entered the layer may come from another one
            real = torch.from_numpy(self.mask[row]).to(device)
            if not bool(torch.isfinite(seen["hidden"][row][real]).all()):
                raise ValueError(
                    f"what left layer {after} of the language model holds NaN or infinity, so that "
                    "no token can be chosen; half precision may have overflowed: load the model "
                    "in bfloat16 or float32"
                )
            angles = tuple(x[row if len(x) > 1 else 0].to(device) for x in seen["rotary"])
            own: dict[str, Any] = {
                name: x[row].to(device)
                for name, x in seen.items()
                if name != "rotary" and name in looks
            }
            if "rotary" in looks:
                own["rotary"] = angles
            if "ask" in looks:
                own["ask"] = lambda states, angles=angles: scorer.ask(
                    states[None], tuple(x[None] for x in angles)
                )[0]
            stay = self.method.decide(cut, self._sight(row, **own))
            kept = to_numpy(stay.kept)
            if len(kept) == len(visual) and stay.states is None and stay.made is None:
                continue
            stays[row] = stay
            if row % self.times == 0:
                self.found[row // self.times].append((after, self.columns[row, visual[kept]]))
        return stays

    def _shorten(
        self, after: int, stays: dict[int, Stay], hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """The hidden states that go on; everything as long as they are is shortened with them."""
        before = self.mask.shape[1]
        hidden, sources = self._laid(stays, hidden)
        at = np.maximum(sources, 0)
        there = sources >= 0
        made = sources >= before
        old = np.where(made, 0, at)
        rows = np.arange(len(sources))[:, None]
        for name, blank in (("mask", True), ("choosable", True), ("text", False)):
            x = getattr(self, name)[rows, old]
            setattr(self, name, np.where(made, blank, x) & there)
        for name in ("columns", "image", "place"):
            x = getattr(self, name)[rows, old]
            setattr(self, name, np.where(made | ~there, -1, x))
        gather = torch.from_numpy(at).to(hidden.device)
        hidden = hidden.gather(1, gather[..., None].expand(-1, -1, hidden.shape[-1]))
        cache, left = cache_in(kwargs), torch.from_numpy(sources)
        shorten_read(kwargs, left)
        if cache is not None and self.method.shortens_caches:
            shorten_cache(cache, after, left)
        old_at = torch.from_numpy(old).to(hidden.device)
        self.at = old_at if self.at is None else self.at.to(old_at).gather(1, old_at)
        self.shorter = {}
        row, cut = next(iter(self.cuts[after].items()))
        self.anew = self.method.renumbers_after(cut, self.layouts[row // self.times])
        if not self.method.shortens_caches:
            following = self.mask.sum(axis=1) if self.anew else None
            self.stretches.append(Stretch(after, self.mask, following))
        return hidden

    def _laid(self, stays: dict[int, Stay], hidden: Tensor) -> tuple[Tensor, Indices]:
        """States to take from, made ones behind, and the place (B, T') each new token takes."""
        length, places = self.mask.shape[1], []
        made = [each.made for each in stays.values() if each.made is not None]
        most = max((len(x) for x in made), default=0)
        if made or any(each.states is not None for each in stays.values()):
            hidden = torch.cat([hidden, hidden.new_zeros(len(hidden), most, hidden.shape[-1])], 1)
        for row, present in enumerate(self.mask):
            stay, own = stays.get(row), present.copy()
            order = np.flatnonzero(own)
            if stay is not None:
                visual, kept = self._visual(row), to_numpy(stay.kept)
                own[np.delete(visual, kept)] = False
                order = np.flatnonzero(own)
                if stay.states is not None:
                    hidden[row, torch.from_numpy(visual[kept])] = stay.states.to(hidden)
                if stay.made is not None:
                    new = length + np.arange(len(stay.made))
                    hidden[row, length : length + len(stay.made)] = stay.made.to(hidden)
                    last = np.searchsorted(order, visual[kept].max(initial=visual[0]), "right")
                    order = np.concatenate([order[:last], new, order[last:]])
            places.append(order)
        laid = np.full((len(places), max(map(len, places))), -1, dtype=np.int64)
        for row, order in enumerate(places):
            start = 0 if self.prompt.right else laid.shape[1] - len(order)
            laid[row, start : start + len(order)] = order
        return hidden, laid


@contextmanager
def continuing(model: Any, stretches: Sequence[Stretch], cache: Any) -> Iterator[None]:
    """A step on a cache whose layers differ in length: each gets its own mask and positions."""
    with watching() as watch:
        for stretch, stop in zip(
            stretches, [*(x.first for x in stretches[1:]), len(model.layers)], strict=True
        ):
            _hand_over(watch, model, stretch, stop, cache)
        yield


def _hand_over(watch: Watch, model: Any, stretch: Stretch, stop: int, cache: Any) -> None:
    """To its attention layers; the others read new tokens only, as the model tells them."""
    own: dict[str, Any] = {}
    layers = [n for n in range(stretch.first, stop) if attends(model.layers[n])]

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not own:
            hidden = args[0]
            held = cached_length(cache, layers[0])
            grown = held + hidden.shape[1] - stretch.mask.shape[1]
            mask = torch.from_numpy(stretch.mask).to(hidden.device).long()
            mask = torch.cat([mask, mask.new_ones(len(mask), grown)], dim=1)
            own["attention_mask"] = causal_mask(model.config, hidden, mask, cache, layers[0])
            if stretch.following is not None:
                first = torch.from_numpy(stretch.following).to(hidden.device)[:, None]
                steps = torch.arange(grown - hidden.shape[1], grown, device=hidden.device)
                kind = kind_of(model.config, layers[0])
                own["position_embeddings"] = rotary(model, hidden, first + steps, kind)
        return args, {**kwargs, **own}

    for number in layers:
        watch.before(model.layers[number], hook)


def _taken(x: Tensor, gather: Tensor) -> Tensor:
    """Rows `gather` (B, T') of x (B or 1, T, ...)."""
    x = x.expand(len(gather), *x.shape[1:])
    return x[torch.arange(len(x), device=x.device)[:, None], gather.to(x.device)]


@contextmanager
def adding(decoder: Any, prompt: Prompt, rows: int) -> Iterator[None]:
    """Hand the decoder what its first layers add at visual tokens (deepstack)."""
    times = rows // len(prompt.mask)
    masks = torch.from_numpy(np.repeat(prompt.visual, times, axis=0))
    planes = [
        torch.cat([own for own in plane if own is not None for _ in range(times)], dim=0)
        for plane in prompt.planes
    ]

    def add(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        device = kwargs["inputs_embeds"].device
        kwargs = {
            **kwargs,
            "visual_pos_masks": masks.to(device),
            "deepstack_visual_embeds": planes,
        }
        return args, kwargs

    with watching() as watch:
        watch.before(decoder, add)
        yield
