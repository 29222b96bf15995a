"""VisPruner against the authors' program, run in float64: the kept set."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc

ACCEPTED = ["single_llava15", "single_qwen", "single_wide"]
"""Those whose sizes stay even, so that the program takes them."""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_kept_set(golden, to_xp, to_numpy, name, dtype):
    case = golden(name)
    tokens = sc.Tokens(
        features=to_xp(case["features"].astype(dtype)), attention=to_xp(case["attention"])
    )
    chosen = sc.VisPruner(keep=int(case["k"])).select(tokens)
    assert to_numpy(chosen.sorted()).tolist() == case["vispruner"].tolist()


@pytest.mark.parametrize("name", ["single_small", "single_dense_text"])
def test_sizes_the_program_refuses(golden, name):
    case = golden(name)
    k = int(case["k"])
    left = len(case["features"]) - k // 2
    # The program fails when a round that drops tokens begins with an odd number of them.
    assert left % 2 == 1
    tokens = sc.Tokens(features=case["features"], attention=case["attention"])
    kept = sc.VisPruner(keep=k).select(tokens).indices.tolist()
    assert len(set(kept)) == k
    assert kept[: k // 2] == np.argsort(-case["attention"], kind="stable")[: k // 2].tolist()
