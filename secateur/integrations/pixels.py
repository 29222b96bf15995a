"""The image as the model received it, from `pixel_values`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.integrations.encoded import Tensor
from secateur.integrations.families.base import Family


@dataclass(frozen=True)
class Pixels:
    """Undoes an image processor's normalisation.

    A processor maps the 8-bit value v of a channel to (v * scale - mean) / std. The way back is
    rounded, so that values come out exact from float32 and float16. bfloat16 tells 8-bit values
    apart up to |x| = 2; CLIP's brightest values, up to 2.15, may come out off by one.

    Attributes
    ----------
    mean, std
        One number a channel.
    scale
        What 8-bit values were multiplied with first.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0 / 255.0

    @classmethod
    def of(cls, family: Family, processor: Any) -> Pixels:
        """What `processor` does, or the family's usual numbers without one."""
        worker = getattr(processor, "image_processor", processor)
        mean, std = family.normalisation
        if worker is None or not hasattr(worker, "image_mean"):
            return cls(mean, std)
        if getattr(worker, "do_normalize", True):
            mean, std = tuple(worker.image_mean), tuple(worker.image_std)
        else:
            mean, std = (0.0,) * 3, (1.0,) * 3
        rescales = getattr(worker, "do_rescale", True)
        return cls(mean, std, float(worker.rescale_factor) if rescales else 1.0)

    def restore(self, values: Tensor) -> Tensor:
        """Pixels (..., H, W, 3), whole numbers 0..255 in float32, from channels (..., 3, H, W)."""
        x = values.detach().float().movedim(-3, -1)
        mean, std = x.new_tensor(self.mean), x.new_tensor(self.std)
        return ((x * std + mean) / self.scale).round().clamp(0, 255)
