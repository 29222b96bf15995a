"""A batch chosen from a few images at a time.

What is worked out of all pairs of tokens of many images at once does not fit the cache, and may not
fit memory; and nothing is gained by it where images are looked at one after the other anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from secateur.core.arrays import shape_of
from secateur.core.inputs import Tokens, images_of
from secateur.core.selection import Selection, Shares, stack


def chosen_in_parts(
    choose: Callable[[Tokens], Selection], tokens: Tokens, images: int
) -> Selection:
    """What `choose` chooses from a batch, that many images at a time."""
    batch = tokens.batch_shape
    count = math.prod(batch)
    places = np.unravel_index(np.arange(count), batch)
    rows: list[Selection] = []
    for start in range(0, count, images):
        stop = min(start + images, count)
        # Of one axis, a view of what is there.
        some = (slice(start, stop),) if len(batch) == 1 else tuple(x[start:stop] for x in places)
        rows += rows_of(choose(images_of(tokens, some)))
    return stack(rows, batch)


def rows_of(chosen: Selection) -> Iterator[Selection]:
    """The selections of the images of a batch of one axis."""
    count = shape_of(chosen.indices)[0]
    names = [
        name
        for name in ("gains", "value", "upper_bound", "scores", "folded", "fold_weights")
        if getattr(chosen, name) is not None
    ]
    own = {key for key, x in chosen.info.items() if np.shape(x)[:1] == (count,)}
    for row in range(count):
        changes: dict[str, Any] = {name: getattr(chosen, name)[row] for name in names}
        if chosen.shares is not None:
            changes["shares"] = Shares(*(x[row] for x in chosen.shares))
        changes["info"] = {key: x[row] if key in own else x for key, x in chosen.info.items()}
        yield Selection(chosen.indices[row], chosen.count[row], chosen.size, **changes)
