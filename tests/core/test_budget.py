"""Budgets over crops, frames and images, by numbers worked out by hand."""

import numpy as np
import pytest

import secateur as sc


@pytest.mark.parametrize(
    ("scores", "total", "options", "expected"),
    [
        ([3.0, 2.0, 1.0], 10, {}, [5, 3, 2]),
        ([1.0, 1.0, 1.0], 10, {}, [4, 3, 3]),
        ([0.0, 0.0], 5, {}, [3, 2]),
        ([1.0, 0.0, 0.0], 5, {}, [3, 1, 1]),
        ([1.0, 0.0, 0.0], 5, {"minimum": 0}, [5, 0, 0]),
        ([1.0, 0.0, 0.0], 5, {"minimum": 0, "maximum": 3}, [3, 1, 1]),
        ([8.0, 1.0, 1.0], 10, {"maximum": [4, 10, 10]}, [4, 3, 3]),
        ([8.0, 1.0, 1.0], 10, {"minimum": [0, 4, 0]}, [5, 4, 1]),
        ([2.0, 2.0], 7, {"maximum": [2, 5]}, [2, 5]),
        ([0.6, 0.2], 8, {"maximum": [2, 6]}, [2, 6]),
        ([1.5, 2.5], 4, {"minimum": 0}, [1, 3]),
        ([0.2, 0.6], 2, {"minimum": 0}, [0, 2]),
        ([1.0, 0.0, 0.0], 10, {"minimum": [0, 3, 0], "maximum": [2, 4, 9]}, [2, 4, 4]),
        ([0.1, 0.2, 0.7], 10, {"minimum": 0}, [1, 2, 7]),
        ([5.0], 7, {}, [7]),
        ([1.0, 1e-310, 0.0], 7, {}, [5, 1, 1]),
        ([1e30, 1e-30], 9, {"minimum": 2}, [7, 2]),
        ([0.5, 0.5, 0.3], 4, {"minimum": 0}, [2, 1, 1]),
        ([3.0, 2.0, 1.0], 10, {"rounding": "floor"}, [4, 3, 1]),
        ([1.0, 0.0], 10, {"rounding": "floor"}, [9, 1]),
        ([1.0, 0.0], 10, {"rounding": "floor", "maximum": 6, "minimum": 2}, [6, 2]),
    ],
)
def test_allocate_by_hand(to_xp, to_numpy, scores, total, options, expected):
    counts = to_numpy(sc.allocate(to_xp(scores), total, **options))
    assert counts.tolist() == expected
    assert counts.dtype.kind == "i"


def test_floor_is_the_published_rule(to_xp, to_numpy):
    scores = np.random.default_rng(0).random(5)
    expected = np.maximum(1, np.floor(320 * scores / (scores.sum() + 1e-6)))
    assert to_numpy(sc.allocate(to_xp(scores), 320, rounding="floor")).tolist() == list(expected)


def test_a_full_house_is_shared_without_rest(to_xp, to_numpy):
    scores = to_xp([0.1, 0.7, 0.3])
    assert to_numpy(sc.allocate(scores, 18, maximum=[3, 11, 4])).tolist() == [3, 11, 4]


def test_batches_are_shared_row_by_row(to_xp, to_numpy):
    scores = [[[3.0, 1.0]], [[1.0, 1.0]]]
    counts = to_numpy(sc.allocate(to_xp(scores), 4))
    assert counts.tolist() == [[[3, 1]], [[2, 2]]]
    assert sc.allocate(to_xp(np.zeros((0, 3))), 4).shape == (0, 3)


def test_bounds_may_be_arrays(to_xp, to_numpy):
    counts = sc.allocate(to_xp([1.0, 1.0]), 6, maximum=to_xp(np.array([2, 9])))
    assert to_numpy(counts).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"total": 0}, "total: expected a whole number of at least 1, got 0"),
        ({"total": 2.5}, "total: expected a whole number, got 2.5"),
        ({"total": None}, "total: expected a whole number"),
        ({"total": 1}, "total: 1 tokens cannot be shared with at least 2 and at most 2 in all"),
        ({"total": 9, "maximum": 4}, "total: 9 tokens cannot be shared .* at most 8 in all"),
        ({"minimum": -1}, "minimum: expected whole numbers of at least 0, got -1"),
        ({"minimum": 0.5}, "minimum: expected whole numbers of at least 0, got 0.5"),
        ({"minimum": [1, 1, 1]}, "minimum: expected a number or one for each of 2 parts"),
        ({"minimum": 3, "maximum": 2}, r"minimum: \[3, 3\] exceeds maximum \[2, 2\]"),
        ({"rounding": "up"}, "rounding: expected one of exact, floor; got 'up'"),
        ({"scores": np.array([1.0, -1.0])}, "scores: expected no negative numbers"),
        ({"scores": np.array([1.0, np.nan])}, "scores: contains NaN"),
        ({"scores": np.array([])}, r"scores: expected shape \(\.\.\., C\) without empty axes"),
    ],
)
def test_allocate_refuses(to_xp, arguments, words):
    given = {"scores": np.ones(2), "total": 5} | arguments
    with pytest.raises(ValueError, match=words):
        sc.allocate(to_xp(given.pop("scores")), given.pop("total"), **given)
