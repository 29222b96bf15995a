"""An engine of its own: a batcher of requests for one small LLaVA-NeXT, and pruning in it.

What a host has to bring is here; what it may take is imported. It brings how its tower is run and
what it lays into the prompt, and takes geometry and newlines from the family, requests and their
arithmetic from observing, and the choice itself from choosing.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from secateur.core.inputs import Request
from secateur.core.methods.base import Method
from secateur.integrations.choosing import Chosen, choose, keep_all, wanted
from secateur.integrations.encoded import TEXT, Seen, Visual
from secateur.integrations.families.llava_next import LLAVA_NEXT, crop_layout, crops_visual
from secateur.integrations.families.newlines import with_newlines
from secateur.integrations.observing import heads, keys_of, layer_of, received, requests_of
from secateur.integrations.text import Text

IMAGE = 9
"""The token that stands for a picture in a prompt."""


class Model(torch.nn.Module):
    """A tower of three layers of attention, a projector, words, and a decoder of one layer."""

    def __init__(self, width: int = 32, side: int = 4, patch: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.side, self.patch = side, patch
        vision = SimpleNamespace(image_size=side * patch)
        pinpoints = [[16, 32], [32, 16], [32, 32]]
        self.config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
        self.embed = torch.nn.Linear(3 * patch * patch, width)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, 3 * width) for _ in range(3))
        self.projector = torch.nn.Linear(width, width)
        self.newline = torch.nn.Parameter(torch.randn(width))
        self.words = torch.nn.Embedding(32, width)
        self.decoder = torch.nn.Linear(width, 32)

    def tower(self, pictures: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        """States (P, n, C) of pictures (P, 3, H, W), and each layer's queries and keys."""
        patches = torch.nn.functional.unfold(pictures, self.patch, stride=self.patch)
        x, projected = self.embed(patches.transpose(1, 2)), []
        for layer in self.layers:
            q, k, v = (heads(each, 8) for each in layer(x).chunk(3, dim=-1))
            projected.append((q, k))
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + mixed.transpose(1, 2).flatten(2)
        return x, projected


@dataclass
class Served:
    """What a request was answered with, and what its picture cost."""

    token: int
    length: int
    chosen: Chosen


class Engine:
    """Serves prompts of ids with one picture each, its crops and its size (height, width)."""

    def __init__(self, model: Model, method: Method | None = None) -> None:
        self.model, self.method = model, method
        self.wants = frozenset() if method is None else wanted(method, LLAVA_NEXT, None)
        self.requests = {} if method is None else requests_of(method)

    @torch.no_grad()
    def serve(self, prompts: list[tuple[list[int], torch.Tensor, tuple[int, int]]]) -> list[Served]:
        """One token for every prompt."""
        answers = []
        for ids, pictures, size in prompts:
            visual = self._encoded(pictures, size)
            chosen = keep_all(visual)
            if self.method is not None:
                words = self.model.words(torch.tensor([x for x in ids if x != IMAGE]))
                text = Text(words, words.mean(dim=0)) if self.wants & TEXT else None
                chosen = choose(self.method, visual, self.wants, text)
            states = self._laid(ids, chosen.features[torch.from_numpy(chosen.places)])
            token = int(self.model.decoder(states.mean(dim=0)).argmax())
            answers.append(Served(token, len(states), chosen))
        return answers

    def _encoded(self, pictures: torch.Tensor, size: tuple[int, int]) -> Visual:
        model = self.model
        states, projected = model.tower(pictures)
        seen = Seen(states=states if "states" in self.wants else None)
        for name in self.wants & {"attention", "attention_shallow", "keys"}:
            request = self.requests[name]
            queries, keys = projected[layer_of(request, len(projected) - 1, len(projected))]
            setattr(seen, name, _observed(queries, keys, request))
        rows, columns, top, left = layout = crop_layout(model.config, size, model.side)
        tokens = model.projector(states)
        crops = tokens[1:].unflatten(0, (rows, columns)).unflatten(2, (model.side, model.side))
        crops = crops.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
        crops = crops[top : crops.shape[0] - top, left : crops.shape[1] - left]
        newlines = model.newline.expand(len(crops), 1, -1)
        features = torch.cat([tokens[0], torch.cat([crops, newlines], dim=1).flatten(0, 1)])
        return with_newlines(crops_visual(features, layout, model.side, seen, 0), "rows")

    def _laid(self, ids: list[int], tokens: torch.Tensor) -> torch.Tensor:
        at = ids.index(IMAGE)
        before, behind = (self.model.words(torch.tensor(x)) for x in (ids[:at], ids[at + 1 :]))
        return torch.cat([before, tokens, behind])


def _observed(queries: torch.Tensor, keys: torch.Tensor, request: Request) -> torch.Tensor:
    return keys_of(keys, request) if request.what == "keys" else received(queries, keys, request)
