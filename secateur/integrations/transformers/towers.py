"""CLIP and SigLIP towers, as the LLaVA families use them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from secateur.core.acts import Folds, Layer
from secateur.core.inputs import REQUESTS, Request
from secateur.core.methods.tome import log_sizes
from secateur.integrations.encoded import Seen, Tensor, spread
from secateur.integrations.families.llava import TOWERS
from secateur.integrations.families.tiles import folded
from secateur.integrations.observing import (
    Watch,
    heads,
    keys_of,
    layer_of,
    received,
    watching,
)
from secateur.integrations.transformers.models import UnsupportedModelError

if TYPE_CHECKING:
    from secateur.integrations.text import TextEncoder


class Tower:
    """The vision tower of a LLaVA model.

    Unless a method asks otherwise, attention is observed in the layer whose states become
    features: CLIP's penultimate, SigLIP's last. With a class token it is that token's, else the
    mean over all tokens.
    """

    def __init__(self, model: Any, inputs: Any) -> None:
        config = model.config
        self.module = model.model.vision_tower
        self.layers = self.module.encoder.layers
        self.head_size = (
            config.vision_config.hidden_size // config.vision_config.num_attention_heads
        )
        self.class_token = config.vision_config.model_type == "clip_vision_model"
        strategy = inputs.get("vision_feature_select_strategy")
        self.drops_first = (strategy or config.vision_feature_select_strategy) == "default"
        chosen = inputs.get("vision_feature_layer")
        chosen = config.vision_feature_layer if chosen is None else chosen
        depth = len(self.layers)
        picks = [chosen] if isinstance(chosen, int) else list(chosen)
        self.picks = [max(1, pick % (depth + 1)) - 1 for pick in picks]
        self.layer = max(self.picks)
        self.projector = model.model.multi_modal_projector
        self.patch = config.vision_config.patch_size
        self.side = config.vision_config.image_size // self.patch

    @staticmethod
    def check(model: Any) -> None:
        """Refuse towers we do not know, and a class token among the features."""
        config = model.config
        kind = config.vision_config.model_type
        if kind not in TOWERS:
            raise UnsupportedModelError(
                model, f"its vision tower is a {kind}, we know {' and '.join(TOWERS)}"
            )
        strategy = config.vision_feature_select_strategy
        if (strategy == "default") != (kind == "clip_vision_model"):
            raise UnsupportedModelError(
                model,
                f"vision_feature_select_strategy={strategy!r} does not fit a {kind}: the features "
                "must be the patches, all of them and nothing else",
            )

    @contextmanager
    def watch(
        self,
        wants: frozenset[str],
        encoder: TextEncoder | None,
        requests: Mapping[str, Request] = REQUESTS,
    ) -> Iterator[Seen]:
        """Observe what goes through the tower and its projector within the block."""
        seen = Seen()
        embeds = "embeds" in wants and encoder is not None
        with watching() as watch:
            asked = {
                name: self._asked(watch, request)
                for name, request in requests.items()
                if name in wants
            }
            states = watch.output(self.layers[self.layer]) if embeds else []
            yield seen
        for name, outputs in asked.items():
            setattr(seen, name, self._answer(requests[name], [x[0] for x in outputs]))
        if states and encoder is not None:
            seen.embeds = encoder.project(self.module, self._patches(states[0].detach()))

    @contextmanager
    def folding(self, method: Folds, grid: tuple[int, int]) -> Iterator[Folding]:
        """Let a method fold the tokens of the pictures that go through within the block."""
        if len(self.picks) > 1:
            raise ValueError(
                f"{type(method).__name__} folds tokens inside the encoder, and features of several "
                "layers then differ in length"
            )
        if method.proportional and "flash" in self.module.config._attn_implementation:
            raise ValueError(
                f"{type(method).__name__} weighs the encoder's attention by sizes, which flash "
                'attention does not take; load the vision tower with "sdpa", or take '
                "proportional=False"
            )
        folding = Folding(method, grid, self)
        with watching() as watch:
            for number in range(len(self.layers)):
                folding.follow(watch, number)
            yield folding

    def features(self, pictures: Tensor) -> Tensor:
        """What the projector makes of pictures (P, 3, H, W), as the model goes about it: (P, n, D).

        Of one layer's states.
        """
        states = self.module(pictures, output_hidden_states=True, return_dict=True).hidden_states
        states = states[self.picks[0] + 1]
        return self.projector(states[:, 1:] if self.drops_first else states)

    def projections(self, layer: Any) -> tuple[Any, Any]:
        """The modules of a layer that return queries and keys (P, T, C)."""
        return layer.self_attn.q_proj, layer.self_attn.k_proj

    def _asked(self, watch: Watch, request: Request) -> list[list[Any]]:
        if request.what == "states":
            return [watch.inputs(self.projector)]
        if request.what == "class":
            picked = [self.layers[pick] for pick in self.picks] if self.class_token else []
            return [watch.output(layer) for layer in picked]
        layer = self.layers[layer_of(request, self.layer, len(self.layers))]
        queries, keys = self.projections(layer)
        return [
            watch.output(x) for x in ((queries, keys) if request.what == "attention" else (keys,))
        ]

    def _answer(self, request: Request, seen: list[Tensor]) -> Tensor:
        seen = [x.detach() for x in seen]
        if request.what == "states":
            return seen[0]
        if request.what == "class":
            return torch.cat([x[:, 0] for x in seen], dim=-1) if seen else None
        seen = [heads(x, self.head_size) for x in seen]
        if request.what == "keys":
            return self._patches(keys_of(seen[0], request))
        queries, keys = seen
        return received(queries, keys, request, class_token=self.class_token)

    def _patches(self, x: Tensor) -> Tensor:
        return x[:, 1:] if self.class_token else x


class FoldedTower(Tower):
    """A SigLIP tower whose last layer makes the features, `fold` x `fold` patches a token."""

    def __init__(self, module: Any, config: Any, projector: Any, fold: int) -> None:
        self.module, self.projector, self.fold = module, projector, fold
        self.layers = module.encoder.layers
        self.head_size = config.hidden_size // config.num_attention_heads
        self.class_token = False
        self.layer = len(self.layers) - 1
        self.picks = [self.layer]

    def _answer(self, request: Request, seen: list[Tensor]) -> Tensor:
        return folded(super()._answer(request, seen), self.fold)


class Folding:
    """Pictures on their way through a tower in which their tokens fold.

    Hooks change what layers are called with and what they return. Where a method folds between
    attention and MLP, the layer adds nothing to states of the old length, which are then replaced
    by the folded ones and what the MLP made of them.

    Attributes
    ----------
    sizes
        How many tokens (P, t) each one left stands for; None before any folding.
    group
        For each token (P, T) the tower began with its number among those left; None likewise.
    """

    def __init__(self, method: Folds, grid: tuple[int, int], tower: Tower) -> None:
        self.method, self.grid, self.tower = method, grid, tower
        self.sizes: Tensor = None
        self.group: Tensor = None

    def places(self, pictures: int, shown: Tensor = None) -> Tensor:
        """Where each patch that is left stands among all of its picture (P, n).

        With patches that are `shown` (P, N), the others being padding, where the first of those
        stood; what stands for padding only stays there.
        """
        first, size = int(self.tower.class_token), self.grid[0] * self.grid[1]
        every = torch.arange(size).expand(pictures, -1)
        if self.group is None:
            return every
        group = self.group[:, first:] - first
        left = int(group.max()) + 1
        every = every.to(group.device)
        if not self.method.in_place:
            return every[:, :left]
        if shown is not None:
            every = every + size * (~shown).to(every)
        found = every.new_full((pictures, left), 2 * size)
        return found.scatter_reduce(1, group, every, "amin") % size

    def follow(self, watch: Watch, number: int) -> None:
        """Fold in a layer, and weigh the attention of one by the sizes so far."""
        layer = self.tower.layers[number]
        if self.method.proportional:
            watch.before(layer, self._weigh)
        if number > self.tower.layer:
            return
        keys = watch.output(self.tower.projections(layer)[1])
        if self.method.behind:
            watch.after(
                layer, lambda _module, _args, output: self._fold(number, keys.pop(), output)
            )
            return
        folded: list[Tensor] = []

        def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            states = self._fold(number, keys.pop(), args[0])
            if states is None:
                return None
            folded.append(states)
            return (states, *args[1:]), kwargs

        def hold(_module: Any, args: tuple[Any, ...], output: Tensor) -> Any:
            if not folded:
                return None
            folded.append(output)
            return output.new_zeros(1, 1, 1)

        def leave(_module: Any, _args: Any, _output: Tensor) -> Any:
            if not folded:
                return None
            states, added = folded
            folded.clear()
            return states + added

        watch.before(layer.layer_norm2, enter)
        watch.after(layer.mlp, hold)
        watch.after(layer, leave)

    def _weigh(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.sizes is None:
            return None
        weights = log_sizes(self.sizes).to(args[0])[:, None, None]
        if "attention_mask" in kwargs:
            return args, {**kwargs, "attention_mask": weights}
        return (args[0], weights, *args[2:]), kwargs

    def _fold(self, number: int, keys: Tensor, states: Tensor) -> Tensor | None:
        """The states (P, t', C) that go on, None where all do."""
        split = heads(keys.detach(), self.tower.head_size)
        merged = self.method.fold(
            Layer(
                number=number,
                depth=self.tower.layer + 1,
                grid=self.grid,
                class_token=self.tower.class_token,
                states=states,
                keys=split.mean(dim=-3),
                sizes=states.new_ones(states.shape[:2]).float()
                if self.sizes is None
                else self.sizes,
            )
        )
        if merged is None:
            return None
        self.sizes = merged.sizes
        self.group = merged.group if self.group is None else merged.group.gather(1, self.group)
        return merged.states


@dataclass(frozen=True, eq=False)
class Folded:
    """Pictures that went through a tower in which their tokens folded.

    Attributes
    ----------
    features
        What the projector made of the tokens that are left, laid out where these stand
        (P, N, D); 0 elsewhere.
    places
        Where those of each picture stand, in the encoder's order.
    left
        True (P, N) there.
    seen
        What was observed of them, laid out alike.
    """

    features: Tensor
    places: list[Tensor]
    left: Tensor
    seen: Seen


def folded_pictures(
    tower: Tower,
    pictures: Tensor,
    wants: frozenset[str],
    method: Folds,
    requests: Mapping[str, Request],
    shown: Tensor = None,
) -> Folded:
    """Pictures (P, 3, H, W), each folded by itself.

    One after the other, where they differ in how many tokens they are left with.

    Parameters
    ----------
    wants, method, requests
        As for `Adapter.encode_folding`.
    shown
        As for `Folding.places`.
    """
    grid = (pictures.shape[-2] // tower.patch, pictures.shape[-1] // tower.patch)
    size = grid[0] * grid[1]
    places: list[Tensor] = []
    laid: dict[str, list[Tensor]] = {}
    for some in (pictures,) if method.together else pictures.split(1):
        with tower.folding(method, grid) as folding, tower.watch(wants, None, requests) as seen:
            features = tower.features(some)
        own = None if shown is None else shown[len(places) : len(places) + len(some)]
        at = list(folding.places(len(some), own))
        for name, x in {"features": features, **seen.of(slice(None))}.items():
            laid.setdefault(name, []).extend(map(spread, x, at, [size] * len(at)))
        places += at
    together = {name: torch.stack(x) for name, x in laid.items()}
    features = together.pop("features")
    flags = features.new_ones(size, dtype=torch.bool)
    left = torch.stack([spread(flags[: len(at)], at, size) for at in places])
    return Folded(features, places, left, Seen(**together))


def stacked(pictures: Tensor, counts: Sequence[int]) -> Tensor:
    """The crops (P, 3, H, W) of images, as many of each as counted; images may be padded."""
    if pictures.ndim == 4:
        return pictures
    return torch.cat([own[:count] for own, count in zip(pictures, counts, strict=True)])
