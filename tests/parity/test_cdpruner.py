"""CDPruner against the authors' program: the kept set, where the kernel has full rank."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc

FULL_RANK = ["single_small", "single_wide"]


def tokens_of(case, dtype="float32", convert=np.asarray):
    return sc.Tokens(
        features=convert(case["features"].astype(dtype)),
        text_global=convert(case["text_global"].astype(dtype)),
    )


def log_volume(case, kept):
    x = case["features"].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    g = case["text_global"].astype(np.float64)
    r = -(x @ g) / np.linalg.norm(g)
    r = (r - r.min() + 1e-6) / (r.max() - r.min() + 1e-6)
    kernel = r[:, None] * (x @ x.T) * r
    return np.linalg.slogdet(kernel[np.ix_(kept, kept)]).logabsdet


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FULL_RANK)
def test_kept_set(golden, to_xp, to_numpy, name, dtype):
    case = golden(name)
    chosen = sc.CDPruner(keep=int(case["k"])).select(tokens_of(case, dtype, to_xp))
    assert to_numpy(chosen.sorted()).tolist() == case["cdpruner"].tolist()


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("name", FULL_RANK)
def test_kept_set_of_each_backend(golden, name, backend):
    case = golden(name)
    chosen = sc.CDPruner(keep=int(case["k"])).select(tokens_of(case), backend=backend)
    assert chosen.sorted().tolist() == case["cdpruner"].tolist()


@pytest.mark.parametrize("name", FULL_RANK)
def test_value_is_that_of_the_authors_set(golden, name):
    case = golden(name)
    chosen = sc.CDPruner(keep=int(case["k"])).select(tokens_of(case))
    np.testing.assert_allclose(float(chosen.value), log_volume(case, case["cdpruner"]), rtol=1e-5)


@pytest.mark.parametrize("name", ["single_llava15", "single_qwen", "single_dense_text"])
def test_past_the_rank_all_picks_are_distinct_where_the_program_repeats_tokens(golden, name):
    case = golden(name)
    k, width = int(case["k"]), case["features"].shape[1]
    assert k > width
    chosen = sc.CDPruner(keep=k).select(tokens_of(case))
    assert len(set(chosen.indices.tolist())) == k
    # The kernel has the rank of the features: that many picks add volume, and then none does
    # but for rounding.
    assert chosen.gains[:width].min() > -6.0
    assert chosen.gains[width:].max() < -12.0
