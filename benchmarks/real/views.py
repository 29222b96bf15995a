"""Finding a photograph from another view of it, by kept tokens alone.

``python benchmarks/real/views.py``. Each photograph is asked for with a crop, a mirrored, a darker
and a brighter view: which photograph's kept tokens are most like the view's? By late interaction
(for each of the view's tokens the best cosine among a photograph's, mean) and by the cosine of the
two means; cosines are about the mean of all photographs' tokens, which the kept ones do not know.
With a number n, every nth photograph alone is taken.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import packages
import photographs
import torch
from PIL import Image, ImageEnhance, ImageOps
from transformer import Transformer, pixels

import secateur as sc

BUDGETS = (4, 8, 16, 32)
VIEWS = ("crop", "mirrored", "darker", "brighter")
METHODS = (
    *("Random", "UniformGrid", "TopK", "FPS", "DivPrune", "OTPrune", "VisPruner", "VisionZip"),
    *("SCOPE", "Mixture", "AgilePruner, tau_max 0.3", "cover, cosine (FLoC)", "cover, exemplar"),
    *("cover, gaussian", "cover, softmax"),
)


def view(picture: Image.Image, name: str) -> Image.Image:
    """The middle square of a picture, seen otherwise; a crop is its upper left, half the edge."""
    edge = min(picture.size)
    left, top = ((side - edge) // 2 for side in picture.size)
    square = picture.convert("RGB").crop((left, top, left + edge, top + edge))
    if name == "crop":
        return square.crop((0, 0, edge // 2, edge // 2))
    if name == "mirrored":
        return ImageOps.mirror(square)
    return ImageEnhance.Brightness(square).enhance({"darker": 0.5, "brighter": 1.6}[name])


def encoded(path: Path, encoder: Transformer) -> dict[str, sc.Tokens]:
    """Tokens of each view of a photograph, in the cache once made."""
    stored = packages.CACHE / "views" / f"{path.stem}.npz"
    if not stored.exists():
        stored.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            seen = [encoder(pixels(view(picture, name), photographs.SIDE)) for name in VIEWS]
        part = stored.with_suffix(".part.npz")
        parts = ("features", "keys", "attention")
        np.savez(part, **{x: np.stack([getattr(s, x)[-2].numpy() for s in seen]) for x in parts})
        part.rename(stored)
    found = {key: np.float64(array) for key, array in np.load(stored).items()}
    return {
        name: sc.Tokens(
            features=found["features"][i],
            keys=found["keys"][i],
            attention=found["attention"][i] / found["attention"][i].sum(),
            grid=photographs.GRID,
        )
        for i, name in enumerate(VIEWS)
    }


def ranks(asked: list[np.ndarray], there: list[np.ndarray]) -> dict[str, list[int]]:
    """Where each view's own photograph stands among all, from 0: by tokens, and by their means."""

    def units(parts: list[np.ndarray]) -> list[np.ndarray]:
        return [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in parts]

    queries, known = units(asked), np.stack(units(there))
    late = np.array([(q @ known.transpose(0, 2, 1)).max(-1).mean(-1) for q in queries])
    means = [np.stack(units([x.mean(0) for x in parts])) for parts in (asked, there)]
    likeness = {"late": late, "mean": means[0] @ means[1].T}
    return {
        name: [int((row > row[i]).sum()) for i, row in enumerate(each)]
        for name, each in likeness.items()
    }


def measure(found: list[photographs.Photograph], seen: list[dict[str, sc.Tokens]]) -> Any:
    """Ranks by view, method and budget; what is there is kept, and the rest gone on with."""
    path = packages.CACHE / f"views-of-{len(found)}.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    erank = float(np.mean([float(sc.effective_rank(p.tokens.features)) for p in found]))
    choose = photographs.contestants(erank, dict.fromkeys(BUDGETS, 0.1))
    middle = np.mean([p.tokens.features.mean(0) for p in found], axis=0)

    def kept(method: str, tokens: sc.Tokens, k: int, seed: int) -> np.ndarray:
        places = np.asarray(choose[method](tokens, k, seed).sorted())
        return tokens.features[places] - middle

    for method, k in product(METHODS, BUDGETS):
        if all(f"{method}|{k}|{name}" in rows for name in VIEWS):
            continue
        there = [kept(method, p.tokens, k, i) for i, p in enumerate(found)]
        for name in VIEWS:
            asked = [kept(method, each[name], k, 1000 + i) for i, each in enumerate(seen)]
            rows[f"{method}|{k}|{name}"] = ranks(asked, there)
        path.write_text(json.dumps(rows))
        print(f"asked with {k} tokens of {method}", flush=True)
    return rows


def main() -> None:
    """Encode the views, ask, and keep what was found."""
    torch.set_num_threads(1)
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    try:
        found = photographs.photographs()[::every]
        encoder = Transformer(packages.transformer())
        seen = [encoded(path, encoder) for path in photographs.files()[::every]]
    except packages.MissingError as error:
        sys.exit(f"benchmarks/real: {error}")
    told = {"rows": measure(found, seen), "photographs": len(found)}
    (packages.CACHE / "views.json").write_text(json.dumps(told))
    print(f"asked for {len(found)} photographs")


if __name__ == "__main__":
    main()
