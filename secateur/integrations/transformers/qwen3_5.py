"""Qwen3.5: Qwen3-VL's tower without deepstack, linear-attention layers between full ones.

Before the language model nothing differs. Between its layers, a linear-attention layer that has
read a token cannot forget it: methods that leave earlier layers as they ran can be attached, at
cuts that ask a full-attention layer.
"""

from __future__ import annotations

from typing import ClassVar

from secateur.integrations.families.base import Family
from secateur.integrations.families.qwen import QWEN3_5
from secateur.integrations.transformers.qwen2_5_vl import Qwen2VL


class Qwen35(Qwen2VL):
    """Where Qwen3.5 keeps what pruning needs."""

    family: ClassVar[Family] = QWEN3_5
