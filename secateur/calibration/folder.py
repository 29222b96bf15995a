"""What adaptive methods need to know of a model and the images it will see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from secateur.core.arrays import to_numpy
from secateur.core.complexity import Calibration, RunningCalibration, one_picture
from secateur.core.measures import median, patch_entropy
from secateur.core.methods.erase import ERASE
from secateur.integrations.attach import encode
from secateur.integrations.choosing import tokens_of

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Calibrated:
    """What a folder of images says.

    Attributes
    ----------
    calibration
        For `AgilePruner` and `Mixture`.
    thresholds
        The quartiles of the images' complexity as `ERASE` measures it, highest first: its four
        levels then hold a quarter of such images each.
    erase
        ERASE with these thresholds, its other parameters as they were.
    """

    calibration: Calibration
    thresholds: tuple[float, ...]
    erase: ERASE

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "calibration": self.calibration.to_dict(),
            "thresholds": list(self.thresholds),
            "erase": self.erase.to_dict(),
        }


def pictures(folder: Path) -> list[Path]:
    """The images of a folder, by name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder of images")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if len(found) < 4:
        raise ValueError(
            f"{folder}: expected at least four images ({', '.join(PICTURES)}), found {len(found)}"
        )
    return found


def picture_at(path: Path) -> Image.Image:
    """A picture in colour, or why it cannot be read."""
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def calibrate_on(
    images: Sequence[Path],
    network: Any,
    processor: Any,
    prompt: Callable[[Image.Image], Any],
    *,
    done: Callable[[], None] = lambda: None,
) -> Calibrated:
    """Measure the complexity of images as a model's encoder and `ERASE` see it.

    `prompt` makes the inputs of the model from a picture; `done` is called after each.
    """
    vision = network.config.vision_config
    erase = ERASE(patch=vision.patch_size * getattr(vision, "spatial_merge_size", 1))
    running = RunningCalibration()
    levels: list[float] = []

    for path in images:
        inputs = prompt(picture_at(path)).to(network.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(network.dtype)
        with torch.inference_mode(), one_picture():
            encoded = encode(network, inputs, processor, wants={"attention", "pixels"})
            for tokens in tokens_of(encoded):
                running.see(tokens)
                levels.extend(
                    np.ravel(to_numpy(median(patch_entropy(tokens.pixels, erase.patch_of(tokens)))))
                )
        done()
    found = running.so_far
    assert found is not None
    steps = tuple(float(x) for x in np.quantile(levels, (0.75, 0.5, 0.25)))
    thresholds = tuple(np.minimum.accumulate([s - 1e-9 * n for n, s in enumerate(steps)]).tolist())
    return Calibrated(found, thresholds, ERASE(patch=erase.patch, thresholds=thresholds))
