"""Draws ``docs/images/photographs.png``: what some methods keep of four photographs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import packages
import photographs
from PIL import Image, ImageDraw

import secateur as sc

sys.path.append(str(Path(__file__).parents[1]))
from machine import DOCS

BUDGET, SIDE, EDGE = 64, 168, 16
SHOWN = (
    *("TopK", "AgilePruner, tau_max 0.3", "AgilePruner, fitting", "DivPrune"),
    *("cover, cosine (FLoC)", "cover, exemplar", "cover, gaussian", "cover, softmax"),
)


def square(path: Path) -> Image.Image:
    """The middle of a picture, as small as it is shown."""
    picture = Image.open(path).convert("RGB")
    edge = min(picture.size)
    left, top = ((side - edge) // 2 for side in picture.size)
    return picture.crop((left, top, left + edge, top + edge)).resize((SIDE, SIDE))


def veiled(picture: Image.Image, kept: np.ndarray) -> Image.Image:
    """The picture, pale where patches were dropped."""
    mask = np.zeros(photographs.GRID[0] * photographs.GRID[1], bool)
    mask[kept] = True
    patch = SIDE // photographs.GRID[0]
    mask = mask.reshape(photographs.GRID).repeat(patch, 0).repeat(patch, 1)
    pixels = np.asarray(picture)
    return Image.fromarray(np.where(mask[..., None], pixels, 200 + pixels // 5).astype(np.uint8))


def main() -> None:
    """Draw one row a photograph, one column a method."""
    found = photographs.photographs()
    paths = {path.stem: path for path in photographs.files()}
    others = [p.tokens for p in found if p.name not in photographs.OPENLY]
    erank = float(np.mean([float(sc.effective_rank(each.features)) for each in others]))
    method = sc.AgilePruner(keep=BUDGET, mean_erank=erank)
    chosen = photographs.contestants(erank, {BUDGET: method.fitting(others).tau_max})
    width, height = SIDE + 4, SIDE + 4
    shape = ((len(SHOWN) + 1) * width, len(photographs.OPENLY) * height + EDGE)
    sheet = Image.new("RGB", shape, "white")
    drawing = ImageDraw.Draw(sheet)
    for column, name in enumerate(("the photograph", *SHOWN)):
        drawing.text((column * width + 2, 2), name, fill="black")
    rows = [p for p in found if p.name in photographs.OPENLY]
    for row, each in enumerate(rows):
        picture = square(paths[each.name])
        sheet.paste(picture, (0, EDGE + row * height))
        for column, name in enumerate(SHOWN):
            kept = np.asarray(chosen[name](each.tokens, BUDGET, 0).sorted())
            sheet.paste(veiled(picture, kept), ((column + 1) * width, EDGE + row * height))
    path = DOCS / "images" / "photographs.png"
    sheet.quantize(128).save(path, optimize=True)
    print(f"wrote docs/images/{path.name}")


if __name__ == "__main__":
    try:
        main()
    except packages.MissingError as error:
        sys.exit(f"benchmarks/real: {error}")
