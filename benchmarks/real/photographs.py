"""Photographs through a transformer that others trained: ``python benchmarks/real/photographs.py``.

At 336 pixels and at 518; at 518 every fifth of them: ``photographs.py 518 5``.

What of 576 tokens at 336 pixels, or 1,369 at 518, methods keep, measured by what none of them
optimises: how well all patches are least squares of the kept ones, and how well a linear probe,
learnt on other photographs and random choices, tells the pooled output from the kept ones.
Photographs are those in the packages scikit-image, scikit-learn and foolbox, and in Debian's
opencv-doc where it can be had; they are measured and, but for four in the public domain, not shown.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import packages
import torch
from PIL import Image
from transformer import PATCH, Transformer, pixels

import secateur as sc

SIDE, GRID = 336, (24, 24)
LARGER = 518
BUDGETS = (32, 64, 128)
OPENLY = ("astronaut", "chelsea", "coffee", "rocket")
"""In the public domain, so that they may be shown."""

SKIMAGE = (
    *("astronaut brick camera cell chelsea clock_motion coffee coins grass gravel").split(),
    *("hubble_deep_field ihc moon motorcycle_left page retina rocket text").split(),
)
OPENCV = (
    *("graf1 rubberwhale1 chicky_512 leuvenA aloeL sudoku ela_original baboon basketball1").split(),
    *("box_in_scene board smarties fruits building cards messi5 squirrel_cls apple orange").split(),
    *("stuff left01 starry_night licenseplate_motion imageTextR home butterfly aero1").split(),
    *("scenetext01 scenetext02 scenetext03 scenetext04 scenetext05 scenetext06 000 plant").split(),
)

Choose = Callable[[sc.Tokens, int, int], sc.Selection]


@dataclass
class Photograph:
    """One picture's tokens, and what the encoder says of it as a whole."""

    name: str
    tokens: sc.Tokens
    """Of the block before the last, as LLaVA takes them, with its keys and attention."""
    last: np.ndarray
    """Features (N, D) behind the last norm."""
    pooled: np.ndarray
    entropies: list[float]
    """Of the class token's attention in each block."""
    jpeg: int
    """Bytes of the square as a JPEG."""


def files() -> list[Path]:
    """The photographs that can be had."""
    found = []
    folder = packages.unpacked("scikit-image==0.26.0") / "skimage" / "data"
    found += [path for name in SKIMAGE for path in folder.glob(f"{name}.*")]
    found += sorted((packages.unpacked("scikit-learn==1.9.1") / "sklearn").rglob("*.jpg"))
    found += sorted((packages.unpacked("foolbox==3.3.4") / "foolbox" / "data").glob("imagenet*"))
    debian = packages.opencv_examples()
    if debian is not None:
        by_name = {path.stem: path for path in sorted(debian.rglob("*.*g"))}
        found += [by_name[name] for name in OPENCV if name in by_name]
    return found


def of_side(name: str, side: int) -> str:
    """A name in the cache; pictures of the usual side have none of their own."""
    return name if side == SIDE else f"{name}-{side}"


def _jpeg(path: Path, side: int) -> int:
    square = np.uint8(
        np.clip(pixels(Image.open(path), side).numpy().transpose(1, 2, 0), -2, 2) * 60
    )
    kept = io.BytesIO()
    Image.fromarray(square + 128).save(kept, "JPEG", quality=85)
    return kept.tell()


def photographs(side: int = SIDE, every: int = 1) -> list[Photograph]:
    """All of them, or every so many, encoded once."""
    path = packages.CACHE / f"{of_side('photographs', side)}.npz"
    listed = files()[::every]
    names = [each.stem for each in listed]
    if not path.exists() or json.loads(str(np.load(path)["names"])) != names:
        encoder, kept = Transformer(packages.transformer()), []
        for place, each in enumerate(listed):
            seen = encoder(pixels(Image.open(each), side))
            weights = torch.stack(seen.attention)
            parts = (seen.features[-2], seen.keys[-2], weights, seen.output, seen.pooled)
            kept.append([part.numpy() for part in parts])
            if place % 10 == 9:
                print(f"encoded {place + 1} of {len(listed)} photographs", flush=True)
        stacked = {f"part{i}": np.stack(part) for i, part in enumerate(zip(*kept, strict=True))}
        sizes = np.array([_jpeg(each, side) for each in listed])
        np.savez(path, names=json.dumps(names), sizes=sizes, **stacked)
    stored = np.load(path)
    features, keys, weights, output, pooled = (np.float64(stored[f"part{i}"]) for i in range(5))
    found = []
    for place, name in enumerate(names):
        attention = weights[place] / weights[place].sum(-1, keepdims=True)
        tokens = sc.Tokens(
            features=features[place],
            keys=keys[place],
            attention=attention[-2],
            attention_shallow=attention[2],
            grid=(side // PATCH, side // PATCH),
        )
        entropies = [float(sc.attention_entropy(each)) for each in attention]
        size = int(stored["sizes"][place])
        found.append(Photograph(name, tokens, output[place], pooled[place], entropies, size))
    return found


def _of(method: type[sc.Method], **more: Any) -> Choose:
    return lambda tokens, k, seed: method(keep=k, **more).select(tokens)


def _cover(similarity: Any) -> Choose:
    return lambda tokens, k, seed: sc.maximize(
        sc.FacilityLocation.from_features(tokens.features, similarity=similarity), k
    )


def contestants(erank: float, fitting: dict[int, float]) -> dict[str, Choose]:
    """Methods that need no text, by name; `fitting` has a threshold for each budget."""
    return {
        "Random": lambda tokens, k, seed: sc.Random(keep=k, seed=seed).select(tokens),
        "UniformGrid": _of(sc.UniformGrid),
        "TopK": _of(sc.TopK),
        "FPS": _of(sc.FPS),
        "DivPrune": _of(sc.DivPrune),
        "OTPrune": _of(sc.OTPrune),
        "VisPruner": _of(sc.VisPruner),
        "VisionZip": _of(sc.VisionZip),
        "DART": _of(sc.DART),
        "SCOPE": _of(sc.SCOPE),
        "Mixture": _of(sc.Mixture, mean_erank=erank),
        "AgilePruner, tau_max 0.3": _of(sc.AgilePruner, mean_erank=erank),
        "AgilePruner, fitting": lambda tokens, k, seed: sc.AgilePruner(
            keep=k, mean_erank=erank, tau_max=fitting[k]
        ).select(tokens),
        "cover, cosine (FLoC)": _cover("cosine"),
        "cover, norms": _cover("norms"),
        "cover, exemplar": _cover("exemplar"),
        "cover, gaussian": _cover("gaussian"),
        "cover, softmax": _cover("softmax"),
    }


def explained(x: np.ndarray, kept: np.ndarray) -> float:
    """Share of the patches' variance that least squares of the kept ones explains.

    All are taken about their mean, which is known.
    """
    middle = x - x.mean(0)
    q, _ = np.linalg.qr(middle[kept].T)
    left = middle - (middle @ q) @ q.T
    return float(1 - (left**2).sum() / (middle**2).sum())


class Probe:
    """Ridge from the mean of kept tokens to the pooled output, learnt on random choices."""

    def __init__(self, seen: list[Photograph], seed: int = 0) -> None:
        dice = np.random.default_rng(seed)
        means, pooled = [], []
        for each in seen:
            for count in (16, 32, 64, 128, 256, len(each.last)):
                for _ in range(4):
                    places = dice.permutation(len(each.last))[:count]
                    means.append(each.last[places].mean(0))
                    pooled.append(each.pooled)
        x, y = np.array(means), np.array(pooled)
        self.x, self.y = x.mean(0), y.mean(0)
        x, y = x - self.x, y - self.y
        heavy = 0.1 * np.trace(x.T @ x) / x.shape[1]
        self.w = np.linalg.solve(x.T @ x + heavy * np.eye(x.shape[1]), x.T @ y)

    def missed(self, each: Photograph, kept: np.ndarray) -> tuple[float, float]:
        """Squared error from the kept tokens, and of knowing nothing."""
        guess = self.y + (each.last[kept].mean(0) - self.x) @ self.w
        return float(((guess - each.pooled) ** 2).sum()), float(((self.y - each.pooled) ** 2).sum())


def measure(found: list[Photograph], side: int = SIDE) -> dict[str, Any]:
    """Everything that is reported, one entry a photograph."""
    rows: dict[str, dict[str, Any]] = {}
    fitting = []
    for half in (0, 1):
        path = packages.CACHE / f"{of_side('photographs', side)}-{half}-of-{len(found)}.json"
        if not path.exists():
            told = _measured(found[half::2], found[1 - half :: 2])
            path.write_text(json.dumps(told))
        told = json.loads(path.read_text())
        fitting.append(told["fitting"])
        for name, of_each in told["rows"].items():
            rows.setdefault(name, {}).update(of_each)
    return {
        "rows": rows,
        "fitting": fitting,
        "flat": flatness(found),
        "filled": fillings(found),
        "of each": {
            p.name: {
                "erank": float(sc.effective_rank(p.tokens.features)),
                "erank of the last": float(sc.effective_rank(p.last)),
                "entropies": p.entropies,
                "jpeg": p.jpeg,
            }
            for p in found
        },
    }


def _measured(seen: list[Photograph], others: list[Photograph]) -> dict[str, Any]:
    """What methods keep of some photographs, with what was learnt from the others."""
    rows: dict[str, dict[str, Any]] = {}
    erank = float(np.mean([float(sc.effective_rank(p.tokens.features)) for p in seen]))
    images = [p.tokens for p in seen]
    fitting = {k: sc.AgilePruner(keep=k, mean_erank=erank).fitting(images).tau_max for k in BUDGETS}
    probe = Probe(seen)
    for each in others:
        for (name, choose), k in product(contestants(erank, fitting).items(), BUDGETS):
            chosen = choose(each.tokens, k, len(each.name))
            kept = np.asarray(chosen.sorted())
            missed, nothing = probe.missed(each, kept)
            row = {"explained": explained(each.last, kept), "missed": missed, "nothing": nothing}
            if chosen.upper_bound is not None:
                row["guarantee"] = float(chosen.guarantee)
            rows.setdefault(f"{name}|{k}", {})[each.name] = row
        print(f"measured {each.name}", flush=True)
    return {"rows": rows, "fitting": {str(k): tau for k, tau in fitting.items()}}


def flatness(found: list[Photograph], k: int = 64) -> dict[str, list[tuple[float, float]]]:
    """What greedy and what a random choice are certain to reach of the best, by similarity."""
    told: dict[str, list[tuple[float, float]]] = {}
    for similarity in ("cosine", "norms", "exemplar", "gaussian", "softmax"):
        for place, each in enumerate(found):
            x = each.tokens.features
            f = sc.FacilityLocation.from_features(x, similarity=similarity)
            best = sc.maximize(f, k)
            chance = np.random.default_rng(place).permutation(len(x))[:k]
            share = float(f.value(chance)) / float(best.upper_bound)
            told.setdefault(similarity, []).append((float(best.guarantee), share))
    return told


def fillings(found: list[Photograph]) -> dict[str, list[float]]:
    """Tokens that attention alone fills up, by layer, threshold and budget, mean over all."""
    told = {}
    for layer in ("last but one", "last"):
        images = [
            p.tokens if layer == "last but one" else p.tokens.with_(features=p.last) for p in found
        ]
        eranks = np.array([float(sc.effective_rank(each.features)) for each in images])
        steps = 0.01 * eranks / eranks.mean()
        for tau, k in product((0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6), BUDGETS):
            filled = [
                int(sc.greedy_threshold(x.features, x.attention, k, step, tau).info["filled"])
                for x, step in zip(images, steps, strict=True)
            ]
            told[f"{layer}|{tau}|{k}"] = [float(np.mean(filled)), float(np.max(filled))]
    return told


def main() -> None:
    """Measure, and keep what was found."""
    torch.set_num_threads(1)
    asked = [int(x) for x in sys.argv[1:]]
    every = asked[1] if len(asked) > 1 else 1
    for side in asked[:1] or (SIDE, LARGER):
        try:
            found = photographs(side, every)
        except packages.MissingError as error:
            sys.exit(f"benchmarks/real: {error}")
        path = packages.CACHE / f"{of_side('photographs', side)}.json"
        path.write_text(json.dumps(measure(found, side)))
        print(f"{len(found)} photographs measured at {side} pixels")


if __name__ == "__main__":
    main()
