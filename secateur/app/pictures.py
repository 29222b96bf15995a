"""Pictures from files, and files for pictures: what is wrong with them is said before work."""

from __future__ import annotations

from pathlib import Path

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


def drawable(path: Path, option: str) -> None:
    """Refuse a file that no picture could be written to."""
    writable(path, option)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{option}: expected the name of a picture, such as x.png, got {path}")
