"""The lab: scenes drawn by a seed, and a small vision-language model that answers about them."""

from secateur.lab.scene import scenes

__all__ = ["scenes"]
