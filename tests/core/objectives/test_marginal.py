"""Maximal marginal relevance, by a plain loop."""

import numpy as np
import pytest

import secateur as sc
from secateur.testing import assert_objective


def written_out(s, w, k, balance, step):
    picks, likeness = [], None
    while len(picks) < k:
        score = w.copy() if likeness is None else balance * w - (1 - balance) * likeness
        score[picks] = -np.inf
        best = np.argsort(-score, kind="stable")[: min(step, k - len(picks))]
        picks += best.tolist()
        known = s[:, best].max(1)
        likeness = known if likeness is None else np.maximum(likeness, known)
    return picks


@pytest.mark.parametrize("algorithm", ["naive", "incremental", "auto"])
@pytest.mark.parametrize(("balance", "step"), [(0.5, 1), (0.3, 4), (0.0, 1), (1.0, 3), (0.5, 99)])
def test_as_written_out(to_xp, to_numpy, balance, step, algorithm):
    dice = np.random.default_rng(0)
    x, w = dice.normal(size=(2, 15, 6)), dice.normal(size=(2, 15))
    u = x / np.linalg.norm(x, axis=-1, keepdims=True)
    s = u @ np.swapaxes(u, -1, -2)
    for f in (
        sc.MarginalRelevance.from_features(to_xp(x), to_xp(w), balance, step),
        sc.MarginalRelevance(to_xp(s), to_xp(w), balance, step),
    ):
        picks = sc.maximize(f, 10, algorithm)
        for row in range(2):
            wanted = written_out(s[row], w[row], 10, balance, step)
            assert to_numpy(picks.indices)[row].tolist() == wanted
        assert picks.value is None
        assert picks.upper_bound is None


def test_by_hand(to_xp, to_numpy):
    s = to_xp([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    f = sc.MarginalRelevance(s, to_xp([1.0, 0.9, 0.3]))
    assert to_numpy(f.gain([], np.arange(3))).tolist() == pytest.approx([1.0, 0.9, 0.3])
    assert float(f.gain([0], 1)) == pytest.approx(0.45 - 0.45)
    assert float(f.gain([0], 2)) == pytest.approx(0.15)
    picks = sc.maximize(f, 3)
    assert to_numpy(picks.indices).tolist() == [0, 2, 1]
    assert to_numpy(picks.gains).tolist() == pytest.approx([1.0, 0.15, 0.0])
    with pytest.raises(ValueError, match="MarginalRelevance has gains, but sets have no value"):
        f.value([0])


def test_duplicates_and_a_mask(to_numpy, to_xp):
    x = np.repeat(np.random.default_rng(1).normal(size=(5, 7)), 2, axis=0)
    f = sc.MarginalRelevance.from_features(to_xp(x), to_xp(np.zeros(10)))
    picks = to_numpy(sc.maximize(f, 10).indices)
    assert sorted(picks[:5].tolist()) == [0, 2, 4, 6, 8]
    free = np.arange(10) % 2 > 0
    masked = sc.MarginalRelevance.from_features(
        to_xp(x), to_xp(np.zeros(10)), selectable=to_xp(free, "bool")
    )
    picks = to_numpy(sc.maximize(masked, 10).indices)
    assert sorted(picks.tolist()) == [1, 3, 5, 7, 9]


def test_what_it_declares_holds():
    dice = np.random.default_rng(2)
    for step in (1, 3):
        x, w = dice.normal(size=(2, 9, 4)), dice.normal(size=(2, 9))
        assert_objective(sc.MarginalRelevance.from_features(x, w, 0.4, step))
    with pytest.raises(ValueError, match="'lazy' relies on gains that only shrink"):
        sc.maximize(sc.MarginalRelevance(np.eye(2), np.ones(2)), 1, "lazy")


def test_it_refuses():
    for build, words in (
        (lambda: sc.MarginalRelevance(np.ones((2, 3)), np.ones(2)), r"similarity: expected shape"),
        (lambda: sc.MarginalRelevance(np.eye(2), np.ones(3)), r"importance: expected shape \(2,\)"),
        (lambda: sc.MarginalRelevance(np.eye(2), np.ones(2), 1.5), r"balance: expected a share in"),
        (lambda: sc.MarginalRelevance(np.eye(2), np.ones(2), step=0), "step: expected a whole num"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
