"""What an attachment did to the last prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from secateur.integrations.encoded import Indices, Modality

Flags = np.ndarray[Any, np.dtype[np.bool_]]

PAPER, INK, FAINT, EDGE = (18, 20, 24), (240, 240, 240), (90, 94, 102), (255, 140, 0)
GAP, WIDEST = 4, 1600
"""Pixels between frames of a strip, and about how wide one is."""


@dataclass(frozen=True)
class Picture:
    """One grid of an image or a video: the image itself, a crop or a frame.

    Attributes
    ----------
    grid
        (h, w).
    index
        Where its tokens (h * w,) stand among those of the image; -1 at padding that the model cuts
        off, which a published method may choose from as its program does.
    kept
        True (h * w,) at the tokens that were kept.
    scores
        The method's score (h * w,) of each token, where it has such a thing.
    """

    grid: tuple[int, int]
    index: Indices
    kept: Flags
    scores: np.ndarray[Any, Any] | None = None

    @property
    def budget(self) -> int:
        """How many it kept, of padding too."""
        return int(self.kept.sum())


class Stage(NamedTuple):
    """What was left of one grid after a stage of pruning."""

    after: int
    """After how many layers of the language model; 0 for before it."""
    kept: Flags
    """True (h * w,) at the tokens that were left."""


@dataclass(frozen=True, repr=False)
class Report:
    """What was kept of the last prompt, and what it cost.

    Attributes
    ----------
    kept
        One ascending index array an image (or video), in prompt order: which of its tokens went
        on, newline and other separator tokens included.
    scores
        One array an image of the method's scores of its tokens (NaN at separators), None where
        the method has none.
    grids
        One list an image of the (h, w) of its parts.
    pictures
        One list an image of its parts in detail.
    rows
        The prompt each image stands in.
    modalities
        "image" or "video", one an entry of `kept`.
    positions
        For each prompt the positions of the tokens that went on: (B, T) columns of the unpruned
        prompt, -1 at padding.
    prompt_length
        (before, after): the longest prompt of the batch as given, and as the language model
        started it.
    inside
        For pruning inside the language model, one (after, kept) a cut and prompt: after how many
        layers, and which columns of the unpruned prompt held the visual tokens that stayed.
    final_length
        The length every layer caches of the prompt.
    milliseconds
        Wall time by stage: "encode", "choose", "compact", "inside".
    columns
        One array an image: where its tokens stood in the unpruned prompt.
    """

    kept: list[Indices]
    scores: list[np.ndarray[Any, Any] | None]
    grids: list[list[tuple[int, int]]]
    pictures: list[list[Picture]]
    rows: list[int]
    modalities: list[Modality]
    positions: Indices
    prompt_length: tuple[int, int]
    milliseconds: dict[str, float]
    inside: list[list[tuple[int, Indices]]] = field(default_factory=list)
    final_length: int = 0
    columns: list[Indices] = field(default_factory=list)

    def stages(self, which: int = 0, part: int = 0) -> list[Stage]:
        """What was left of an image before the language model and after each cut inside it.

        `which` and `part` say of which image and grid, as for `overlay`.
        """
        grid = self.pictures[which][part]
        found = [Stage(0, grid.kept)]
        if self.inside:
            stood = self.columns[which][grid.index]
            for after, left in self.inside[self.rows[which]]:
                found.append(Stage(after, np.isin(stood, left)))
        return found

    def overlay(
        self, image: Any, which: int = 0, *, part: int = 0, dim: float = 0.25, edge: int = 1
    ) -> Any:
        """A picture of what was kept: dropped tokens are dimmed, kept ones stay as they are.

        Of a method that cuts inside the language model too, kept are those left after the last
        cut; the later a token was dropped, the less it is dimmed.

        Parameters
        ----------
        image
            The picture (PIL) or array (H, W, 3) as the model saw it: where the processor cuts
            off what is too long, as CLIP's does, the square in the middle. Of a video, one
            of its frames, or all of them, in order: a list, or an array (F, H, W, 3).
        which
            Which image of the prompt.
        part
            Which of its grids: of LLaVA-NeXT's crops 0 is the overview, of a video the frame.
            Plays no part where all frames are given.
        dim
            Brightness of what was dropped.
        edge
            Width of the line around kept tokens, 0 for none.

        Returns
        -------
        PIL.Image.Image
            At the size of `image`. Of all frames a strip, row under row where it is long, and
            below it the timeline: a bar a frame, as high as the share of its tokens that it kept.
            Where a model reads several frames as one, the first of them is shown.
        """
        from PIL import Image

        if isinstance(image, (list, tuple)) or getattr(image, "ndim", 3) == 4:
            parts = self.pictures[which]
            if not len(image) or len(image) % len(parts):
                raise ValueError(
                    f"image: {len(image)} frames for {len(parts)} that the model read; give all, "
                    "or as many for each"
                )
            step = len(image) // len(parts)
            panels = [
                self.overlay(image[step * place], which, part=place, dim=dim, edge=edge)
                for place in range(len(parts))
            ]
            left = [int(self.stages(which, place)[-1].kept.sum()) for place in range(len(parts))]
            return strip(panels, left, parts[0].kept.size)
        picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        shown = np.asarray(picture.convert("RGB")).astype(np.float64)
        grid, stages = self.pictures[which][part].grid, self.stages(which, part)
        height, width = shown.shape[:2]
        rows = np.minimum(np.arange(height) * grid[0] // height, grid[0] - 1)
        columns = np.minimum(np.arange(width) * grid[1] // width, grid[1] - 1)
        survived = np.sum([stage.kept for stage in stages], axis=0, dtype=int)
        survived = survived.reshape(grid)[np.ix_(rows, columns)]
        kept = survived == len(stages)
        bright = dim + DIMMED_LESS * survived / len(stages)
        grey = shown.mean(axis=-1, keepdims=True)
        out = np.where(kept[..., None], shown, bright[..., None] * (0.5 * shown + 0.5 * grey))
        if edge > 0:
            out[kept & ~_within(kept, edge)] = EDGE
        return Image.fromarray(np.minimum(out, 255.0).round().astype(np.uint8))

    def __repr__(self) -> str:
        before, after = self.prompt_length
        told = ", ".join(
            f"{sum(int(part.kept[part.index >= 0].sum()) for part in parts)} of "
            f"{sum(int((part.index >= 0).sum()) for part in parts)}"
            for parts in self.pictures[:4]
        )
        more = f" and {len(self.kept) - 4} more" if len(self.kept) > 4 else ""
        spent = ", ".join(f"{name} {ms:.1f} ms" for name, ms in self.milliseconds.items())
        return f"Report(kept {told}{more}; prompt {before} -> {after}; {spent})"


DIMMED_LESS = 0.6
"""How much brighter than what went first is what would go after all stages."""


def _within(kept: Flags, edge: int) -> Flags:
    """Pixels (H, W) around which all are kept, as far as `edge`; outside nothing is."""
    height, width = kept.shape
    padded = np.pad(kept, edge)
    inner = kept.copy()
    for step in range(2 * edge + 1):
        inner &= padded[step : step + height, edge : edge + width]
        inner &= padded[edge : edge + height, step : step + width]
    return inner


def strip(frames: Sequence[Any], kept: Sequence[int], of: int) -> Any:
    """Frames (PIL) in rows, and under each row a bar a frame, of `kept` of so many tokens.

    The tallest bar there can be is a third of a frame high, and a line says where it would end.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, height = frames[0].size
    columns = min(len(frames), max(1, WIDEST // (width + GAP)))
    rows = -(-len(frames) // columns)
    room, words = max(24, height // 3), 16
    step = height + room + words + 3 * GAP
    paper = Image.new("RGB", (columns * (width + GAP) + GAP, rows * step + GAP), PAPER)
    draw = ImageDraw.Draw(paper)
    font = ImageFont.load_default(12)
    for place, (frame, count) in enumerate(zip(frames, kept, strict=True)):
        x, y = GAP + place % columns * (width + GAP), GAP + place // columns * step
        paper.paste(frame, (x, y))
        top, foot = y + height + GAP, y + height + GAP + room
        draw.line((x, top, x + width - 1, top), fill=FAINT)
        high = round(room * count / max(1, of))
        if high:
            draw.rectangle((x, foot - high, x + width - 1, foot), fill=EDGE)
        draw.text((x + width // 2, foot + 2), str(count), INK, font, anchor="ma")
    return paper


def scores_of(size: int, pictures: Sequence[Picture]) -> np.ndarray[Any, Any] | None:
    """The scores of all parts of an image, laid out as its features are."""
    if any(each.scores is None for each in pictures):
        return None
    laid = np.full(size, np.nan)
    for each in pictures:
        there = each.index >= 0
        laid[each.index[there]] = np.asarray(each.scores)[there]
    return laid
