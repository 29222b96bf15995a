"""The threshold scan, against the rule written out token by token."""

import math

import numpy as np
import pytest

import secateur as sc

pytestmark = pytest.mark.usefixtures("computed_by")


def by_the_rule(features, attention, k, step, tau_max=1.0):
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    u = features / np.where(lengths > 0, lengths, 1)
    waiting = sorted(range(len(u)), key=lambda j: (-attention[j], j))
    kept, removed = [], []
    while waiting and len(kept) < k:
        j = waiting.pop(0)
        kept.append(j)
        tau = min(tau_max, step * len(kept))
        gone = [i for i in waiting if 1 - u[i] @ u[j] < tau]
        waiting = [i for i in waiting if i not in gone]
        removed += gone
    fill = sorted(removed, key=lambda j: (-attention[j], j))[: k - len(kept)]
    return kept + fill, len(fill)


@pytest.mark.parametrize(("step", "tau_max"), [(0.0, 1.0), (0.05, 1.0), (0.3, 0.4), (1.0, 2.0)])
def test_the_scan_is_the_rule(to_xp, to_numpy, step, tau_max):
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=(15, 3)), rng.random(15)
    for k in (1, 6, 15):
        picks = sc.greedy_threshold(to_xp(x), to_xp(a), k, step, tau_max)
        expected, filled = by_the_rule(x, a, k, step, tau_max)
        assert to_numpy(picks.indices).tolist() == expected
        assert int(picks.info["filled"]) == filled
        assert int(picks.count) == k
        assert to_numpy(picks.scores).tolist() == a.tolist()


def test_rows_have_budgets_and_steps_of_their_own(to_xp, to_numpy):
    rng = np.random.default_rng(1)
    x, a = rng.normal(size=(2, 8, 3)), rng.random((2, 8))
    picks = sc.greedy_threshold(to_xp(x), to_xp(a), [5, 2], step=to_xp([0.2, 0.9]))
    first, filled = by_the_rule(x[0], a[0], 5, 0.2)
    second, _ = by_the_rule(x[1], a[1], 2, 0.9)
    assert to_numpy(picks.indices).tolist() == [first, [*second, -1, -1, -1]]
    assert to_numpy(picks.info["filled"])[0] == filled
    assert to_numpy(picks.count).tolist() == [5, 2]


def test_a_threshold_grows_with_every_token_kept(to_xp, to_numpy):
    angles = np.array([0.0, 1.0, 1.2, 1.4, 2.9])
    x = np.stack([np.cos(angles), np.sin(angles)], -1)
    # 1 - cos: 0 to 1.0 is 0.46, 1.0 to 1.2 is 0.02, 1.0 to 1.4 is 0.08, 1.0 to 2.9 is 1.32.
    a = to_xp(np.array([0.5, 0.4, 0.3, 0.2, 0.1]))
    for step, expected in ((0.01, [0, 1, 3]), (0.05, [0, 1, 4]), (0.5, [0, 2, 4])):
        picks = to_numpy(sc.greedy_threshold(to_xp(x), a, 3, step=step).indices)
        assert picks.tolist() == expected, step


def test_duplicates_are_not_below_a_threshold_of_zero(to_xp, to_numpy):
    """Of forty unit vectors many have a square above 1, that is a distance to itself below 0."""
    x = np.repeat(np.random.default_rng(2).normal(size=(40, 7)), 2, axis=0)
    a = np.repeat(np.arange(40.0), 2)
    for dtype in ("float32", "float64"):
        picks = sc.greedy_threshold(to_xp(x, dtype), to_xp(a, dtype), 60, step=0.0)
        expected = [2 * j + i for j in range(39, 9, -1) for i in range(2)]
        assert to_numpy(picks.indices).tolist() == expected
        assert int(picks.info["filled"]) == 0


def test_a_distance_within_rounding_of_the_threshold_is_not_below_it(to_xp, to_numpy):
    """1 - cos of the first two is 0.2, and 0.19999999999999996 in float64."""
    x = to_xp([[1.0, 0.0], [0.8, 0.6], [1.0, 0.1]])
    picks = sc.greedy_threshold(x, to_xp([0.3, 0.2, 0.1]), 2, step=0.2)
    assert to_numpy(picks.indices).tolist() == [0, 1]
    assert int(picks.info["filled"]) == 0


def test_what_was_removed_fills_up_by_attention(to_xp, to_numpy):
    x, a = np.ones((4, 2)), np.array([0.1, 0.4, 0.2, 0.3])
    picks = sc.greedy_threshold(to_xp(x), to_xp(a), 3, step=0.5)
    assert to_numpy(picks.indices).tolist() == [1, 3, 2]
    assert int(picks.info["filled"]) == 2


def test_zero_vectors_are_at_distance_one_from_all(to_xp, to_numpy):
    picks = sc.greedy_threshold(to_xp(np.zeros((3, 2))), to_xp([1.0, 2.0, 3.0]), 3, step=1.0)
    assert to_numpy(picks.indices).tolist() == [2, 1, 0]
    assert int(picks.info["filled"]) == 0


def test_no_images(to_xp):
    picks = sc.greedy_threshold(to_xp(np.zeros((0, 4, 2))), to_xp(np.zeros((0, 4))), 3)
    assert (picks.indices.shape, picks.info["filled"].shape) == ((0, 3), (0,))


def test_tensors_with_gradients_are_taken_as_numbers():
    torch = pytest.importorskip("torch")
    x = torch.eye(3, requires_grad=True)
    picks = sc.greedy_threshold(x, torch.arange(3.0, requires_grad=True), 2, step=0.1)
    assert picks.indices.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"attention": np.ones(4)}, "lengths disagree: features has 3, attention has 4"),
        (
            {"attention": np.ones((2, 3))},
            r"attention: expected shape \(3,\) beside features \(3, 2\), got \(2, 3\)",
        ),
        ({"features": np.full((3, 2), np.nan)}, "features: contains NaN or infinity"),
        ({"attention": np.full(3, np.inf)}, "attention: contains NaN or infinity"),
        ({"features": np.ones(3)}, r"features: expected shape \(\.\.\., N, D\), got \(3,\)"),
        ({"k": 0}, "k: a count is at least 1, got 0"),
        ({"k": [1]}, r"k: expected one budget for each of the rows \(\), got \(1,\)"),
        ({"tau_max": -0.1}, "tau_max: expected a distance of at least 0, got -0.1"),
        ({"tau_max": math.nan}, "tau_max: expected a distance of at least 0, got nan"),
        ({"step": -1.0}, "step: expected finite numbers of at least 0, got -1"),
        ({"step": math.inf}, "step: expected finite numbers"),
        ({"step": [0.1]}, r"step: expected a number or one for each of the rows \(\), got \(1,\)"),
    ],
)
def test_greedy_threshold_refuses(to_xp, arguments, words):
    given = {"features": np.ones((3, 2)), "attention": np.ones(3), "k": 2} | arguments
    given = {k: to_xp(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    with pytest.raises(ValueError, match=words):
        sc.greedy_threshold(**given)


def test_libraries_do_not_mix():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="arrays of one library are expected in one call"):
        sc.greedy_threshold(torch.eye(2), np.ones(2), 1)
