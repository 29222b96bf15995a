"""IVC-Prune against the authors' programs: seeds, foreground, coordinates and what stays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secateur.core.methods.ivcprune import value_and_place


@pytest.mark.parametrize("name", ["new_ivcprune_llava", "new_ivcprune_qwen"])
def test_parts(golden, to_xp, to_numpy, name):
    case = golden(name)
    told = json.loads(str(case["params"]))
    n, first = told["length"], told["start"]
    last, total = first + n, case["values"].shape[1]
    if told["model"] == "llava":
        counts = {"keep": n, "coordinates": round(0.05 * n), "foreground": round(0.2 * n)}
    else:
        counts = {"keep": round(0.5 * n), "coordinates": round(0.1 * n)}
    parts = value_and_place(
        to_xp(case["values"]),
        to_xp(case["cos"]),
        to_xp(case["sin"]),
        visual=to_xp(np.arange(first, last)),
        text=to_xp(np.arange(last + 2, total)),
        seeds=max(1, round(0.01 * n)),
        **counts,
    )
    first_half = len(case["coordinates"]) // 2
    expected = {
        "seeds": np.sort(case["seeds"]) - first,
        "coordinates": np.concatenate(
            [np.sort(half) for half in np.split(case["coordinates"], [first_half])]
        )
        - first,
        "foreground": np.sort(case["foreground"]) - first if "foreground" in case else [],
        "kept": [i - first for i in case["kept"].tolist() if first <= i < last],
    }
    for part, places in expected.items():
        assert to_numpy(getattr(parts, part)).tolist() == list(places), part
    if "scores" in case:
        np.testing.assert_allclose(to_numpy(parts.scores), case["scores"], rtol=1e-8)


def test_text_stays(golden):
    """The cases keep what is no image: only visual places are a choice."""
    for name in ("new_ivcprune_llava", "new_ivcprune_qwen"):
        case = golden(name)
        told = json.loads(str(case["params"]))
        first, last = told["start"], told["start"] + told["length"]
        total = case["values"].shape[1]
        assert {*range(first), *range(last, total)} <= set(case["kept"].tolist())
