"""Pictures from files, and files for pictures: what is wrong with them is said before work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from secateur.app.command import writable


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


def drawable(path: Path, option: str) -> None:
    """Refuse a file that no picture could be written to."""
    writable(path, option)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{option}: expected the name of a picture, such as x.png, got {path}")
