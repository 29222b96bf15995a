"""Pictures from files, and files for pictures: what is wrong with them is said before work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence, UnidentifiedImageError

from secateur.app.command import writable

Shown = Image.Image | Sequence[Image.Image]
"""A picture, or the frames of a video."""

FILMS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
"""Ends of names of videos, whose frames others take out."""


def watched(path: Path) -> Image.Image | list[Image.Image]:
    """A picture; of an animated one its frames, of a folder its pictures by name, as a video."""
    if path.suffix.lower() in FILMS:
        raise ValueError(
            f"{path}: give a folder of its frames, such as "
            f"'ffmpeg -i {path} -vf fps=1 frames/%04d.png' fills"
        )
    if path.is_dir():
        ends = Image.registered_extensions()
        named = sorted(each for each in path.iterdir() if each.suffix.lower() in ends)
        return _frames([opened(each) for each in named], path)
    first = opened(path)
    with Image.open(path) as picture:
        if getattr(picture, "n_frames", 1) == 1 or picture.format not in ("GIF", "WEBP", "PNG"):
            return first
        return _frames([each.convert("RGB") for each in ImageSequence.Iterator(picture)], path)


def _frames(frames: list[Image.Image], path: Path) -> list[Image.Image]:
    if len(frames) < 2:
        raise ValueError(f"{path}: expected the frames of a video, got {len(frames)} pictures")
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        raise ValueError(f"{path}: expected frames of one size, got {sizes[0]} and {sizes[1]}")
    return frames


def opened(image: Path | Image.Image) -> Image.Image:
    """A picture in colour."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as picture:
            return picture.convert("RGB")
    except (FileNotFoundError, UnidentifiedImageError):
        raise  # these name the file
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{image} cannot be read as a picture: {error}") from None


def seen(picture: Image.Image, processor: Any) -> Image.Image:
    """The part of a picture that the model sees: CLIP's processors cut off what is too long.

    Others stretch or pad a picture, or cut it into tiles whose overview is all of it.
    """
    how = getattr(processor, "image_processor", processor)
    if not (type(how).__name__.startswith("CLIP") and how.do_center_crop):
        return picture
    short, crop = dict(how.size).get("shortest_edge"), dict(how.crop_size)
    if short is None:
        return picture
    scale = min(picture.size) / short
    wide, tall = (
        min(side, scale * crop[name])
        for side, name in zip(picture.size, ("width", "height"), strict=True)
    )
    left, top = (picture.width - wide) / 2, (picture.height - tall) / 2
    return picture.crop((round(left), round(top), round(left + wide), round(top + tall)))


def shown(picture: Shown, processor: Any) -> Shown:
    """What the model sees of a picture; frames as they are."""
    return seen(picture, processor) if isinstance(picture, Image.Image) else picture


def drawable(path: Path, option: str) -> None:
    """Refuse a file that no picture could be written to."""
    writable(path, option)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{option}: expected the name of a picture, such as x.png, got {path}")
