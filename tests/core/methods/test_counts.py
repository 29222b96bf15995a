"""What a method's count comes from, which is what hosts ask before they make room for tokens."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc

CASES = [
    (sc.TopK(), "size"),
    (sc.AgilePruner(), "size"),
    (sc.AgilePruner(count="adaptive", mean_erank=9.0), "features"),
    (sc.AgilePruner(count="balanced", mean_erank=9.0), "features"),
    (sc.PruMergePlus(), "size"),
    (sc.PruMergePlus(adaptive=True), "features"),
    (sc.ERASE(), "pixels"),
    (sc.SparseVLM(), "features"),
    (sc.SparseVLM(count="limit"), "size"),
    (sc.FastV(), "size"),
    (sc.Mixture(), "size"),
    (sc.Mixture(attention=sc.PruMergePlus(adaptive=True)), "features"),
    (sc.Mixture(attention=sc.ERASE()), "features"),
]


@pytest.mark.parametrize(("method", "source"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_source_of_the_count(method, source):
    assert method.counted_from == source


def test_a_count_from_the_features_differs_between_images_of_one_size():
    dice = np.random.default_rng(0)
    attention = np.stack([np.ones(64), dice.pareto(0.5, 64)])
    features = dice.normal(size=(2, 64, 8))
    tokens = sc.Tokens(features=features, keys=features, attention=attention)
    counts = {
        adaptive: sc.PruMergePlus(keep=32, adaptive=adaptive).select(tokens).count
        for adaptive in (False, True)
    }
    assert np.broadcast_to(counts[False], 2).tolist() == [32, 32]
    assert len(set(counts[True].tolist())) == 2
