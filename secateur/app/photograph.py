"""Prune the patches of a photograph and draw what was kept: ``python -m secateur.photograph``.

No model is needed. A patch is described by its own pixels; how much it stands out takes the
place of attention, and three patches of the scene stand for the words of an instruction.
Coverage is the facility location of EADP; the certificate of the greedy choice bounds the best
any choice could reach, so every way of choosing can be held against it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import secateur as sc

Floats = np.ndarray[Any, np.dtype[np.float64]]

PATCH = 14
"""Side of a patch in pixels, as in CLIP's and Qwen-VL's encoders."""

WORDS = ((4, 24), (12, 23), (16, 23))
"""Row and column of the patches asked for: the inside of the cup, the coffee, the rim."""


class Kept(NamedTuple):
    """What one way of choosing kept, and how much of the best coverage that is for certain."""

    title: str
    how: str
    mask: np.ndarray[Any, np.dtype[np.bool_]]
    coverage: float
    milliseconds: float


def photograph() -> Floats:
    """The bundled photograph (448, 672, 3), 0..255."""
    with (resources.files("secateur") / "data" / "coffee.jpg").open("rb") as file:
        return np.asarray(Image.open(file).convert("RGB"), dtype=np.float64)


def patch_features(pixels: Floats, patch: int = PATCH) -> Floats:
    """Describe each patch by its pixels (N, 10), every column with mean 0 and deviation 1.

    Mean and deviation of brightness and of two colour differences, how brightness changes from
    the upper to the lower and from the left to the right half, and how strong edges are.
    """
    red, green, blue = np.moveaxis(pixels / 255.0, -1, 0)
    grey = (red + green + blue) / 3
    down, across = np.gradient(grey)
    colours = [_cut(x, patch) for x in (grey, red - green, (red + green) / 2 - blue)]
    brightness, middle = colours[0], patch // 2
    columns = [
        *(x.mean((1, 2)) for x in colours),
        *(x.std((1, 2)) for x in colours),
        brightness[:, middle:].mean((1, 2)) - brightness[:, :middle].mean((1, 2)),
        brightness[:, :, middle:].mean((1, 2)) - brightness[:, :, :middle].mean((1, 2)),
        *(np.abs(_cut(x, patch)).mean((1, 2)) for x in (down, across)),
    ]
    features = np.stack(columns, axis=-1)
    standard: Floats = (features - features.mean(0)) / features.std(0)
    return standard


def _cut(plane: Floats, patch: int) -> Floats:
    """A plane (H, W) as patches (N, patch, patch), row by row."""
    h, w = plane.shape[0] // patch, plane.shape[1] // patch
    cut = plane[: h * patch, : w * patch].reshape(h, patch, w, patch).swapaxes(1, 2)
    return cut.reshape(h * w, patch, patch)


def choose(pixels: Floats, keep: int) -> list[Kept]:
    """Prune the same patches in several ways, and say how well each choice stands for all."""
    features = patch_features(pixels)
    grid = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    tokens = sc.Tokens(
        features=features,
        grid=grid,
        text=features[[row * grid[1] + column for row, column in WORDS]],
        attention=np.sqrt(np.mean(features**2, axis=-1)),
        pixels=pixels,
    )
    asked = sc.EADP(keep=keep, beta=4.0, sign=1)
    average = float(sc.effective_rank(features))
    ways: list[tuple[sc.Method, str]] = [
        (asked, "together close to all that resembles the framed patches"),
        (
            sc.AgilePruner(keep=keep, mean_erank=average),
            "what stands out, each driving away its likes, further with every pick",
        ),
        (
            sc.ERASE(keep=keep, thresholds=(), ratios=(min(1.0, keep / tokens.size),), patch=PATCH),
            "first stage: the patches whose grey values have the most entropy",
        ),
        (sc.DivPrune(keep=keep), "each pick the patch farthest from those kept"),
        (sc.Random(keep=keep), "what the others have to beat"),
    ]
    certified = asked.select(tokens)
    worth = sc.FacilityLocation.from_features(features, certified.scores)
    kept = []
    for method, how in ways:
        selection, milliseconds = timed(method, tokens)
        share = float(worth.value(selection.indices) / certified.upper_bound)
        mask = selection.mask().reshape(grid)
        kept.append(Kept(type(method).__name__, how, mask, share, milliseconds))
    return kept


def timed(method: sc.Method, tokens: sc.Tokens, repeats: int = 3) -> tuple[sc.Selection, float]:
    """What a method selects, and the milliseconds of its fastest call."""
    fastest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        selection = method.select(tokens)
        fastest = min(fastest, 1e3 * (time.perf_counter() - start))
    return selection, fastest


SIDE = 10
"""Side of a patch in the picture."""
MARGIN, CAPTION = 28, 84
PAPER, INK, FAINT, FRAME = (18, 20, 24), (240, 240, 240), (160, 165, 172), (60, 220, 255)


def picture(pixels: Floats, kept: Sequence[Kept], columns: int = 3) -> Image.Image:
    """The photograph, and what each way kept of it, the rest dimmed."""
    h, w = kept[0].mask.shape
    small = Image.fromarray(pixels.astype(np.uint8)).resize((w * SIDE, h * SIDE))
    bright = np.asarray(small, dtype=np.float64)
    frames = ImageDraw.Draw(small)
    for row, column in WORDS:
        x, y = column * SIDE, row * SIDE
        frames.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline=FRAME, width=2)
    dim = 0.22 * bright.mean(-1, keepdims=True) + np.array(PAPER)

    facts = f"{h * w} patches of {PATCH} x {PATCH} pixels"
    panels = [(np.asarray(small), "The photograph", facts, "framed: the patches asked for")]
    for each in kept:
        lit = each.mask.repeat(SIDE, axis=0).repeat(SIDE, axis=1)[..., None]
        facts = (
            f"{each.mask.sum()} patches, coverage at least {each.coverage:.1%} of the best, "
            f"{each.milliseconds:.1f} ms"
        )
        panels.append((np.where(lit, bright, dim), each.title, facts, each.how))

    rows = -(-len(panels) // columns)
    step_x, step_y = w * SIDE + MARGIN, h * SIDE + CAPTION + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (image, title, facts, how) in enumerate(panels):
        x = MARGIN + place % columns * step_x
        y = MARGIN + place // columns * step_y
        sheet.paste(Image.fromarray(image.astype(np.uint8)), (x, y))
        y += h * SIDE
        draw.text((x, y + 12), title, INK, ImageFont.load_default(24))
        draw.text((x, y + 42), facts, INK, ImageFont.load_default(16))
        draw.text((x, y + 64), how, FAINT, ImageFont.load_default(14))
    return sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose, say what was chosen, write the picture."""
    parser = argparse.ArgumentParser(prog="python -m secateur.photograph", description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=Path("photograph.png"))
    parser.add_argument("--keep", type=int, default=192, help="patches to keep (%(default)s)")
    given = parser.parse_args(arguments)
    if given.keep < 1:
        parser.error(f"--keep: at least one patch has to stay, got {given.keep}")

    pixels = photograph()
    kept = choose(pixels, given.keep)
    print(f"secateur {sc.__version__} keeps {kept[0].mask.sum()} of {kept[0].mask.size} patches by")
    for each in kept:
        print(
            f"  {each.title:20} coverage at least {each.coverage:5.1%} of the best possible, "
            f"{each.milliseconds:6.1f} ms"
        )
    picture(pixels, kept).save(given.output, optimize=True)
    print(f"Wrote {given.output}: the photograph, and what each kept.")


if __name__ == "__main__":
    main()
