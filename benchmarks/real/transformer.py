"""A vision transformer that others trained, in PyTorch: DINOv2-small's shape, patches of 14 pixels.

Twelve blocks of 384 channels and six heads, at any multiple of 14 pixels; features, keys and the
class token's attention of every block can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm

Tensor = torch.Tensor
WIDTH, HEADS, BLOCKS, PATCH, SIDE = 384, 6, 12, 14, 37
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Seen:
    """What the blocks hold of one picture's patches: lists of twelve, but for the output."""

    output: Tensor
    """Behind the last norm (N, D)."""
    pooled: Tensor
    """The class token there (D,)."""
    features: list[Tensor]
    keys: list[Tensor]
    attention: list[Tensor]
    """Of the class token, mean over heads (N,)."""


class Transformer:
    """The encoder; call it on pixels (3, H, W)."""

    def __init__(self, weights: Path) -> None:
        stored = np.load(weights)
        self._w = {name: torch.from_numpy(stored[name]) for name in stored.files}

    def _of(self, name: str) -> Tensor:
        return self._w[f"backbone.{name}"]

    def _begun(self, pixels: Tensor) -> Tensor:
        kernel = "embeddings.patch_embeddings.projection"
        x = conv2d(pixels[None], self._of(f"{kernel}.weight"), self._of(f"{kernel}.bias"), PATCH)
        rows, columns = x.shape[-2:]
        places = self._w["positions"].reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
        if (rows, columns) != (SIDE, SIDE):
            places = interpolate(places, size=(rows, columns), mode="bicubic")
        tokens = (x + places).flatten(2).mT
        first = self._of("embeddings.cls_token") + self._w["first_position"].reshape(1, 1, WIDTH)
        return torch.cat([first, tokens], dim=1)[0]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Seen:
        x = self._begun(pixels)
        features, keys, attention = [], [], []
        for block in range(BLOCKS):
            x, key, weight = self._block(x, block)
            features.append(x[1:])
            keys.append(key[1:])
            attention.append(weight)
        output = self._norm(x, "layernorm")
        return Seen(output[1:], output[0], features, keys, attention)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._of(f"{name}.weight"), self._of(f"{name}.bias")
        return layer_norm(x, (WIDTH,), weight, bias, 1e-6)

    def _block(self, x: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        name = f"encoder.layer.{block}"
        key, value, query, out, up, down = (self._w[f"product{6 * block + i}"] for i in range(6))
        bias = lambda part: self._of(f"{name}.{part}.bias")  # noqa: E731
        h = self._norm(x, f"{name}.norm1")
        k = h @ key + bias("attention.attention.key")
        q, v = h @ query + bias("attention.attention.query"), h @ value
        v = v + bias("attention.attention.value")
        heads = [each.unflatten(-1, (HEADS, -1)).transpose(0, 1) for each in (q, k, v)]
        weight = (heads[0] @ heads[1].mT / (WIDTH // HEADS) ** 0.5).softmax(-1)
        said = (weight @ heads[2]).transpose(0, 1).flatten(1) @ out
        said = said + bias("attention.output.dense")
        x = x + said * self._of(f"{name}.layer_scale1.lambda1")
        h = self._norm(x, f"{name}.norm2")
        h = gelu(h @ up + bias("mlp.fc1")) @ down + bias("mlp.fc2")
        return x + h * self._of(f"{name}.layer_scale2.lambda1"), k, weight[:, 0, 1:].mean(0)


def pixels(image: object, side: int) -> Tensor:
    """The square in the middle of a picture, at `side` pixels."""
    from PIL import Image

    picture: Image.Image = image.convert("RGB")  # type: ignore[attr-defined]
    width, height = picture.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    square = picture.crop((left, top, left + edge, top + edge)).resize((side, side), Image.BICUBIC)
    x = (np.asarray(square, np.float32) / 255 - np.float32(MEAN)) / np.float32(SPREAD)
    return torch.from_numpy(x.transpose(2, 0, 1).copy())
