"""Coverage weighed by the candidate's saliency, by a plain loop and by its laws."""

import numpy as np
import pytest

import secateur as sc
from secateur.testing import assert_objective


def written_out(s, w, k, combine):
    m, picks = np.zeros(len(s)), []
    for _ in range(k):
        gain = np.maximum(s - m[:, None], 0).sum(0)
        score = gain * w if combine == "multi" else gain + w
        score[picks] = -np.inf
        picks.append(int(np.argmax(score)))
        m = np.maximum(m, s[:, picks[-1]])
    return picks


@pytest.mark.parametrize("algorithm", ["naive", "lazy", "incremental", "auto"])
@pytest.mark.parametrize("combine", ["multi", "add"])
def test_as_written_out(to_xp, to_numpy, combine, algorithm):
    dice = np.random.default_rng(0)
    s, w = dice.normal(size=(2, 14, 14)), dice.gamma(0.5, size=(2, 14))
    f = sc.SalientCoverage(to_xp(s), to_xp(w), combine)
    picks = sc.maximize(f, 6, algorithm)
    for row in range(2):
        wanted = written_out(s[row], w[row], 6, combine)
        assert to_numpy(picks.indices)[row].tolist() == wanted
    assert (picks.upper_bound is None) == (combine == "multi")


def test_multi_by_hand(to_xp, to_numpy):
    f = sc.SalientCoverage(to_xp([[1.0, 0.5], [0.5, 1.0]]), to_xp([0.2, 1.0]))
    assert to_numpy(f.gain([], np.arange(2))).tolist() == pytest.approx([0.3, 1.5])
    assert float(f.gain([1], 0)) == pytest.approx(0.5 * 0.2)
    assert float(f.value([1])) == pytest.approx(1.5)  # Coverage alone.
    assert not f.differences


def test_add_by_hand(to_xp):
    f = sc.SalientCoverage(to_xp([[1.0, 0.5], [0.5, 1.0]]), to_xp([0.2, 1.0]), "add")
    assert float(f.value([0, 1])) == pytest.approx(2.0 + 1.2)
    assert float(f.gain([1], 0)) == pytest.approx(0.5 + 0.2)
    assert float(f.gain([1], 1)) == 0.0
    assert f.differences


@pytest.mark.parametrize("combine", ["multi", "add"])
@pytest.mark.parametrize("shape", [(8, 8), (2, 5, 9), (7, 1)])
def test_it_keeps_the_laws(combine, shape):
    dice = np.random.default_rng(1)
    w = dice.gamma(0.5, size=(*shape[:-2], shape[-1]))
    free = None if shape[-1] == 1 else np.arange(shape[-1]) != 2
    assert_objective(sc.SalientCoverage(dice.normal(size=shape), w, combine, selectable=free))


def test_saliency_of_nothing_goes_by_index():
    f = sc.SalientCoverage(np.eye(4), np.zeros(4))
    for algorithm in ("naive", "lazy", "incremental", "auto"):
        assert sc.maximize(f, 4, algorithm).indices.tolist() == [0, 1, 2, 3]


def test_it_refuses():
    with pytest.raises(ValueError, match="combine: expected one of multi, add; got 'minus'"):
        sc.SalientCoverage(np.eye(2), np.ones(2), "minus")
    with pytest.raises(ValueError, match=r"saliency: expected shape \(2,\), got \(3,\)"):
        sc.SalientCoverage(np.eye(2), np.ones(3))
    with pytest.raises(ValueError, match="saliency: expected no negative numbers"):
        sc.SalientCoverage(np.eye(2), -np.ones(2))
