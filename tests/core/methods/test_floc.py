"""Facility location in which all tokens weigh the same."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods import eadp


def slow(x, k):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    s = (1 + unit @ unit.T) / 2
    picks, covered = [], np.zeros(len(x))
    for _ in range(k):
        gains = np.maximum(s, covered[:, None]).sum(axis=0) - covered.sum()
        gains[picks] = -1
        picks.append(int(np.argmax(gains)))
        covered = np.maximum(covered, s[:, picks[-1]])
    return picks, covered.sum()


@pytest.mark.parametrize("matrix_up_to", [10, 8192])
@pytest.mark.parametrize("k", [1, 6, 36])
def test_it_is_its_definition(image, to_xp, to_numpy, monkeypatch, k, matrix_up_to):
    monkeypatch.setattr(eadp, "MATRIX_UP_TO", matrix_up_to)
    host = image(batch=(2,)).features
    chosen = sc.FLoC(keep=k).select(sc.Tokens(features=to_xp(host)))
    for b in range(2):
        picks, value = slow(host[b], k)
        assert to_numpy(chosen.indices)[b].tolist() == picks
        np.testing.assert_allclose(float(to_numpy(chosen.value)[b]), value)
    assert (to_numpy(chosen.guarantee) >= 1 - 1 / np.e).all()


def test_a_video_as_one_pool(image):
    x = image(n=30).features
    pool = sc.FLoC(keep=4, over="video").select(sc.Tokens(features=x, frames=3))
    assert pool.indices.tolist() == slow(x, 12)[0]
    frames = sc.FLoC(keep=4).select(sc.Tokens(features=x, frames=3))
    assert frames.sorted().tolist() == sorted(
        10 * t + i for t in range(3) for i in slow(x[10 * t : 10 * t + 10], 4)[0]
    )


@pytest.mark.parametrize("similarity", ["norms", "exemplar", "gaussian", "softmax"])
def test_other_similarities(image, similarity):
    tokens = image()
    f = sc.FacilityLocation.from_features(tokens.features, similarity=similarity)
    chosen = sc.FLoC(keep=6, similarity=similarity).select(tokens)
    assert chosen.indices.tolist() == sc.maximize(f, 6, "naive").indices.tolist()
    with pytest.raises(ValueError, match="similarity: expected one of cosine, norms, exemplar"):
        sc.FLoC(similarity="distance")
