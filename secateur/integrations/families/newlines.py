"""Newline tokens, which LLaVA-NeXT and LLaVA-OneVision put at the end of rows of crops.

Mistral 3's breaks between the rows of an image are such tokens, too.
Which of them stay in a pruned image is a setting of the model's configuration, `SETTING`, that
every host reads:

``"rows"``
    Those whose row keeps a token. How many that is shows when the image is encoded.
``"all"``
    Every one.
``"none"``
    None.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast, get_args

import numpy as np

from secateur.integrations.encoded import Visual

SETTING = "secateur_newlines"
"""The key of a model's configuration."""

Newlines = Literal["rows", "all", "none"]


def newlines_of(config: Any) -> Newlines | None:
    """What a configuration says; None where it says nothing, which leaves it to the host."""
    given = getattr(config, SETTING, None)
    if given is not None and given not in get_args(Newlines):
        raise ValueError(
            f"{SETTING}: expected one of {', '.join(get_args(Newlines))}; got {given!r}"
        )
    return cast("Newlines | None", given)


def with_newlines(visual: Visual, newlines: Newlines) -> Visual:
    """An image whose newlines stay as the setting says, whatever is chosen of it."""
    if newlines == "rows":
        return visual
    marked = np.zeros(0, dtype=np.int64)
    if newlines == "all":
        marked = np.concatenate([part.index for part in visual.parts])
    return replace(visual, separators=[(place, marked) for place, _ in visual.separators])
