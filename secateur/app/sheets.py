"""Sheets of pictures: what methods kept of an image, and what they thought of it.

Needs Pillow: ``pip install 'secateur[demo]'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Numbers = np.ndarray[Any, np.dtype[Any]]

PAPER, INK, FAINT = (18, 20, 24), (240, 240, 240), (160, 165, 172)
MARGIN = 24

_STOPS = np.array(
    [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21],
     [250, 193, 39], [252, 255, 164]]
)  # fmt: skip
"""Colours of a heat map from low to high, dark to light, told apart by the colour-blind."""


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet with its caption.

    Attributes
    ----------
    image
        The picture.
    title
        The first line under it.
    lines
        Further lines, smaller.
    """

    image: Image.Image
    title: str
    lines: Sequence[str] = ()


def heat(scores: Numbers, grid: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """A map of scores (h * w,) as a picture of `size` (width, height), low dark, high light.

    Tokens without a score (NaN) are grey.
    """
    values = np.asarray(scores, dtype=np.float64).reshape(grid)
    known = np.isfinite(values)
    low, high = (values[known].min(), values[known].max()) if known.any() else (0.0, 1.0)
    share = np.where(known, (values - low) / (high - low if high > low else 1.0), 0.0)
    place = share * (len(_STOPS) - 1)
    below = np.minimum(place.astype(int), len(_STOPS) - 2)
    part = (place - below)[..., None]
    colours = (1 - part) * _STOPS[below] + part * _STOPS[below + 1]
    colours[~known] = 90
    picture = Image.fromarray(colours.round().astype(np.uint8))
    return picture.resize(size, Image.Resampling.NEAREST)


def sheet(
    panels: Sequence[Panel], columns: int | None = None, *, heading: str = "", legend: str = ""
) -> Image.Image:
    """Panels side by side, captions under them; all pictures at the size of the first.

    `heading` stands above them, `legend` below.
    """
    if not panels:
        raise ValueError("panels: expected at least one")
    columns = min(len(panels), 4) if columns is None else columns
    width, height = panels[0].image.size
    caption = 34 + 20 * max(len(panel.lines) for panel in panels)
    step_x, step_y = width + MARGIN, height + caption + MARGIN
    rows = -(-len(panels) // columns)
    top = MARGIN + (40 if heading else 0)
    tall = top + rows * step_y + (20 if legend else 0)
    paper = Image.new("RGB", (columns * step_x + MARGIN, tall), PAPER)
    draw = ImageDraw.Draw(paper)
    wide = columns * step_x - MARGIN
    draw.text((MARGIN, 20), _fitted(draw, heading, 24, wide), INK, ImageFont.load_default(24))
    told = _fitted(draw, legend, 14, wide)
    draw.text((MARGIN, tall - 34), told, FAINT, ImageFont.load_default(14))
    for place, panel in enumerate(panels):
        x, y = MARGIN + place % columns * step_x, top + place // columns * step_y
        paper.paste(panel.image.resize((width, height)), (x, y))
        y += height + 8
        draw.text((x, y), _fitted(draw, panel.title, 18, width), INK, ImageFont.load_default(18))
        for number, line in enumerate(panel.lines):
            told = _fitted(draw, line, 14, width)
            draw.text((x, y + 26 + 20 * number), told, FAINT, ImageFont.load_default(14))
    return paper


def _fitted(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than its column."""
    font = ImageFont.load_default(size)
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text.rstrip() + "..."
