"""What an attachment did to the last prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.integrations.encoded import Indices, Modality


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
    kept: np.ndarray[Any, np.dtype[np.bool_]]
    scores: np.ndarray[Any, Any] | None = None

    @property
    def budget(self) -> int:
        """How many it kept, of padding too."""
        return int(self.kept.sum())


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

    def overlay(
        self, image: Any, which: int = 0, *, part: int = 0, dim: float = 0.25, edge: int = 1
    ) -> Any:
        """A picture of what was kept: dropped tokens are dimmed, kept ones stay as they are.

        Parameters
        ----------
        image
            The picture (PIL) that was given to the model, or an array (H, W, 3).
        which
            Which image of the prompt.
        part
            Which of its grids: of LLaVA-NeXT's crops 0 is the overview, of a video the frame.
        dim
            Brightness of what was dropped.
        edge
            Width of the line around kept tokens, 0 for none.

        Returns
        -------
        PIL.Image.Image
            At the size of `image`.
        """
        from PIL import Image

        picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        shown = np.asarray(picture.convert("RGB")).astype(np.float64)
        chosen = self.pictures[which][part]
        height, width = shown.shape[:2]
        rows = np.minimum(np.arange(height) * chosen.grid[0] // height, chosen.grid[0] - 1)
        columns = np.minimum(np.arange(width) * chosen.grid[1] // width, chosen.grid[1] - 1)
        kept = chosen.kept.reshape(chosen.grid)[np.ix_(rows, columns)]
        grey = shown.mean(axis=-1, keepdims=True)
        out = np.where(kept[..., None], shown, dim * (0.5 * shown + 0.5 * grey))
        if edge > 0:
            inner = kept.copy()
            for axis in (0, 1):
                for step in range(-edge, edge + 1):
                    inner &= np.roll(kept, step, axis=axis)
            border = kept & ~inner
            out[border] = (255.0, 140.0, 0.0)
        return Image.fromarray(out.round().astype(np.uint8))

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


def scores_of(size: int, pictures: Sequence[Picture]) -> np.ndarray[Any, Any] | None:
    """The scores of all parts of an image, laid out as its features are."""
    if any(each.scores is None for each in pictures):
        return None
    laid = np.full(size, np.nan)
    for each in pictures:
        there = each.index >= 0
        laid[each.index[there]] = np.asarray(each.scores)[there]
    return laid
