"""HiPrune against the authors' program: the kept set."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc

SINGLE = ["single_small", "single_llava15", "single_qwen", "single_wide", "single_dense_text"]


@pytest.mark.parametrize("name", SINGLE)
def test_kept_set(golden, to_xp, to_numpy, name):
    case = golden(name)
    tokens = sc.Tokens(
        features=to_xp(case["features"]),
        grid=tuple(int(side) for side in case["grid"]),
        attention=to_xp(case["attention"]),
        attention_shallow=to_xp(case["attention_shallow"]),
    )
    method = sc.HiPrune(keep=int(case["k"]), alpha=float(case["hiprune_alpha"]))
    assert to_numpy(method.select(tokens).sorted()).tolist() == np.sort(case["hiprune"]).tolist()


def test_the_cases_have_anchors_and_buffers(golden):
    counts = [
        round(int(case["k"]) * float(case["hiprune_alpha"]) / 5) for case in map(golden, SINGLE)
    ]
    assert counts == [0, 6, 2, 6, 5]
