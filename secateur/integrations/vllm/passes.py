"""How many images a tower encodes at a time.

vLLM counts what a step encodes in tokens of the prompt. Pruned images have few of those, so a step
may hold a hundred images where an unpruned one holds three. They are encoded in passes of no more
than vLLM's budget in *unpruned* tokens, and their pixels reach the device pass by pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch


def bounds(loads: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """First and last of neighbours whose loads add up to the budget at most, one at least.

    >>> list(bounds([3, 3, 3, 9, 1], 7))
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    first = held = 0
    for place, load in enumerate(loads):
        if place > first and held + load > budget:
            yield first, place
            first, held = place, 0
        held += load
    if loads:
        yield first, len(loads)


def cut(
    given: Mapping[str, Any],
    first: int,
    last: int,
    count: int,
    flat: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """The arguments of a call for its items from `first` to before `last`.

    Parameters
    ----------
    given
        What all `count` items were given: tensors and lists of an entry each.
    flat
        Where rows of items begin and the last ends (count + 1), for tensors that hold them one
        after another.
    """
    found = {}
    for name, value in given.items():
        if name in flat:
            found[name] = value[flat[name][first] : flat[name][last]]
        elif getattr(value, "ndim", 1) and hasattr(value, "__len__") and len(value) == count:
            found[name] = value[first:last]
        else:
            found[name] = value
    return found


def moved(value: Any, device: Any) -> Any:
    """Tensors, alone or in lists, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return [moved(each, device) for each in value]
    return value
