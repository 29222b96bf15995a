"""DivPrune against the authors' program: picks in order."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc

SINGLE = ["single_small", "single_llava15", "single_qwen", "single_wide", "single_dense_text"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SINGLE)
def test_picks_in_order(golden, to_xp, to_numpy, name, dtype):
    case = golden(name)
    tokens = sc.Tokens(features=to_xp(case["features"].astype(dtype)))
    chosen = sc.DivPrune(keep=int(case["k"])).select(tokens)
    assert to_numpy(chosen.indices).tolist() == case["divprune_order"].tolist()


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("name", SINGLE)
def test_picks_of_each_backend(golden, name, backend):
    case = golden(name)
    tokens = sc.Tokens(features=case["features"])
    chosen = sc.DivPrune(keep=int(case["k"])).select(tokens, backend=backend)
    assert chosen.indices.tolist() == case["divprune_order"].tolist()


@pytest.mark.parametrize("name", SINGLE)
def test_value_is_that_of_the_authors_set(golden, name):
    case = golden(name)
    x = case["features"].astype(np.float64)
    x = x[case["divprune_order"]] / np.linalg.norm(x[case["divprune_order"]], axis=1)[:, None]
    theirs = (1.0 - x @ x.T)[~np.eye(len(x), dtype=bool)].min()
    chosen = sc.DivPrune(keep=int(case["k"])).select(sc.Tokens(features=case["features"]))
    np.testing.assert_allclose(float(chosen.value), theirs, rtol=1e-5)
    np.testing.assert_allclose(float(chosen.gains[1:].min()), theirs, rtol=1e-5)
