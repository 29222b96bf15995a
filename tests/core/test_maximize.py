"""Greedy by every algorithm, on instances whose answer is known."""

import math

import numpy as np
import pytest

import secateur as sc
from secateur.core.arrays import library
from secateur.core.objectives import Objective
from secateur.testing import assert_algorithms_agree, assert_greedy_guarantee, assert_selection

EPSILON = 2.0**-52
ALGORITHMS = ("naive", "lazy", "incremental", "auto")

pytestmark = pytest.mark.usefixtures("computed_by")


def clusters():
    """Seven tokens on a line in three groups; a group's middle stands for it best."""
    at = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 9.0])
    return np.exp(-abs(at[:, None] - at))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_greedy_takes_the_middle_of_each_group(to_xp, to_numpy, algorithm):
    picks = sc.maximize(sc.FacilityLocation(to_xp(clusters())), 3, algorithm)
    s = clusters()
    assert to_numpy(picks.indices).tolist() == [4, 1, 6]
    gains = [s[4].sum(), np.maximum(s[4], s[1]).sum() - s[4].sum()]
    np.testing.assert_allclose(to_numpy(picks.gains)[:2], gains)
    assert float(picks.value) == pytest.approx(float(to_numpy(picks.gains).sum()))
    assert float(picks.value) == pytest.approx(np.max(s[[4, 1, 6]], axis=0).sum())
    assert float(picks.upper_bound) >= float(picks.value)
    assert 0.95 < float(picks.guarantee) <= 1.0
    assert (picks.size, int(picks.count)) == (7, 3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_certificate_of_a_known_instance(to_xp, algorithm):
    # Gains are 2.0, 1.9, 1.2 at first; after token 0 they are 0, 0.1, 0.9; then all is covered.
    s = to_xp([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.0, 1.0]])
    picks = sc.maximize(sc.FacilityLocation(s), 1, algorithm)
    assert float(picks.upper_bound) == pytest.approx(2.0)
    assert float(picks.guarantee) == pytest.approx(1.0)
    two = sc.maximize(sc.FacilityLocation(s), 2, algorithm)
    # f(S_2) + the two largest gains at S_2: 2.9 + 0.1 + 0.
    assert float(two.upper_bound) == pytest.approx(3.0)
    assert float(two.guarantee) == pytest.approx(2.9 / 3.0)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "stochastic"])
def test_the_first_gains_bound_the_best_when_tokens_do_not_overlap(to_xp, algorithm):
    picks = sc.maximize(sc.FacilityLocation(to_xp(np.diag([3.0, 1, 2, 1]))), 2, algorithm, seed=0)
    assert float(picks.upper_bound) == pytest.approx(5.0)


def test_every_prefix_tightens_the_bound(to_xp):
    """The middle prefix bounds best here: 10 + 6 + 2 at the first pick, 25 at none."""
    f = sc.FacilityLocation(to_xp(np.diag([10.0, 9.0, 6.0, 6.0])))
    assert float(sc.maximize(f, 4, "naive").upper_bound) == pytest.approx(31.0)
    s = np.array([[6.0, 5.0, 0.0], [0.0, 5.0, 0.0], [4.0, 0.0, 4.5]])
    f = sc.FacilityLocation(to_xp(s))
    naive = sc.maximize(f, 2, "naive")
    # Gains: (10, 10, 4.5), then (0, 5, 0.5), then (0, 0, 0.5).
    assert float(naive.value) == pytest.approx(15.0)
    assert float(naive.upper_bound) == pytest.approx(15.5)
    assert float(sc.maximize(f, 2, "auto").upper_bound) == pytest.approx(15.5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ties_go_to_the_lowest_index(to_xp, to_numpy, algorithm):
    f = sc.FacilityLocation(to_xp(np.kron(np.eye(3), np.ones((2, 2)))))
    assert to_numpy(sc.maximize(f, 6, algorithm).indices).tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_duplicate_features_tie(to_xp, to_numpy, algorithm, dtype):
    x = np.random.default_rng(0).normal(size=(4, 33))[[2, 0, 1, 1, 0, 2, 3, 3, 1]]
    f = sc.FacilityLocation.from_features(to_xp(x, dtype))
    picks = to_numpy(sc.maximize(f, 9, algorithm).indices)
    assert set(picks[:4].tolist()) == {0, 1, 2, 6}
    assert picks[4:].tolist() == [3, 4, 5, 7, 8]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gains_that_differ_by_rounding_tie(to_xp, to_numpy, algorithm):
    more = np.diag([1.0, 1.0 + 4 * EPSILON, 1.0 + 8 * EPSILON, 2.0])
    for f in (sc.FacilityLocation(to_xp(more)), sc.LogDeterminant(to_xp(more))):
        assert to_numpy(sc.maximize(f, 4, algorithm).indices).tolist() == [3, 0, 1, 2]
    # 0.1 + 0.2 + 0.3 is one rounding error above 0.3 + 0.2 + 0.1.
    s = np.zeros((3, 3))
    s[:, 0], s[:, 1] = [0.3, 0.2, 0.1], [0.1, 0.2, 0.3]
    f = sc.FacilityLocation(to_xp(s))
    assert to_numpy(sc.maximize(f, 1, algorithm).indices).tolist() == [0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parallel_features_tie(to_xp, to_numpy, algorithm, dtype):
    """All point the same way but for rounding, so every pick after the first adds nothing."""
    dice = np.random.default_rng(0)
    x = dice.uniform(0.1, 9.0, size=(20, 1)) * dice.normal(size=(1, 100))
    if dtype == "float32":
        x = np.repeat(x[:1], 20, axis=0)
    kinds = [sc.FacilityLocation]
    if algorithm != "lazy":
        kinds.append(sc.Dispersion)
    for kind in kinds:
        f = kind.from_features(to_xp(x, dtype))
        assert to_numpy(sc.maximize(f, 20, algorithm).indices).tolist() == list(range(20))


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "stochastic"])
def test_one_token_and_all_tokens(to_xp, to_numpy, algorithm):
    one = sc.maximize(sc.FacilityLocation(to_xp([[0.5]])), 1, algorithm, seed=0)
    assert (to_numpy(one.indices).tolist(), float(one.value)) == ([0], 0.5)
    f = sc.FacilityLocation(to_xp(clusters()))
    everyone = sc.maximize(f, 100, algorithm, seed=0)
    assert sorted(to_numpy(everyone.indices).tolist()) == list(range(7))
    assert float(everyone.value) == pytest.approx(7.0)
    assert float(everyone.guarantee) == pytest.approx(1.0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_weights_zero(to_xp, to_numpy, algorithm):
    f = sc.FacilityLocation(to_xp(clusters()), to_xp(np.zeros(7)))
    picks = sc.maximize(f, 3, algorithm)
    assert to_numpy(picks.indices).tolist() == [0, 1, 2]
    assert (float(picks.value), float(picks.upper_bound), float(picks.guarantee)) == (0, 0, 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("source", ["matrix", "features"])
def test_rows_have_budgets_of_their_own(to_xp, to_numpy, algorithm, source):
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 4))
    w = np.random.default_rng(2).random((2, 3, 6))
    if source == "matrix":
        s = np.random.default_rng(3).random((2, 3, 6, 6))
        f, row = sc.FacilityLocation(to_xp(s), to_xp(w)), lambda b: sc.FacilityLocation(s[b], w[b])
    else:
        f = sc.FacilityLocation.from_features(to_xp(x), to_xp(w))
        row = lambda b: sc.FacilityLocation.from_features(x[b], w[b])  # noqa: E731
    budgets = np.array([[1, 4, 2], [6, 9, 3]])
    picks = sc.maximize(f, budgets, algorithm)
    assert_selection(picks, np.minimum(budgets, 6))
    for b in np.ndindex(2, 3):
        k = min(int(budgets[b]), 6)
        one = sc.maximize(row(b), k, "naive")
        assert to_numpy(picks.indices)[b][:k].tolist() == one.indices.tolist()
        np.testing.assert_allclose(to_numpy(picks.gains)[b][:k], one.gains, rtol=1e-9, atol=1e-12)
        assert not to_numpy(picks.gains)[b][k:].any()
        assert to_numpy(picks.value)[b] == pytest.approx(float(one.value))
        if algorithm != "lazy":
            assert to_numpy(picks.upper_bound)[b] == pytest.approx(float(one.upper_bound))


@pytest.mark.parametrize(
    "build",
    [
        sc.FacilityLocation,
        sc.FacilityLocation.from_features,
        sc.LogDeterminant,
        sc.Dispersion,
        sc.Dispersion.from_features,
    ],
)
def test_a_batch_of_no_images(to_xp, build):
    f = build(to_xp(np.zeros((0, 4, 4))))
    picks = sc.maximize(f, 2)
    shapes = [x.shape for x in (picks.indices, picks.gains, picks.count, picks.value)]
    assert shapes == [(0, 2), (0, 2), (0,), (0,)]
    assert sc.maximize(f, np.zeros(0, dtype=np.int64), "naive").indices.shape == (0, 0)


def test_stochastic_is_seeded(to_xp, to_numpy):
    f = sc.FacilityLocation.from_features(to_xp(np.random.default_rng(4).normal(size=(60, 5))))
    first, again, other = (sc.maximize(f, 6, "stochastic", seed=s) for s in (7, 7, 8))
    assert to_numpy(first.indices).tolist() == to_numpy(again.indices).tolist()
    assert to_numpy(first.indices).tolist() != to_numpy(other.indices).tolist()
    assert_selection(first, 6)
    exact = sc.maximize(f, 6)
    assert 0.9 * float(exact.value) < float(first.value) <= float(exact.upper_bound) + 1e-9
    assert float(first.upper_bound) >= float(exact.value)


def test_stochastic_picks_do_not_depend_on_the_library(to_xp, to_numpy):
    x = np.random.default_rng(5).normal(size=(40, 3))
    ours = sc.maximize(sc.FacilityLocation.from_features(to_xp(x)), 5, "stochastic", seed=3)
    numpys = sc.maximize(sc.FacilityLocation.from_features(x), 5, "stochastic", seed=3)
    assert to_numpy(ours.indices).tolist() == numpys.indices.tolist()


def test_stochastic_asks_as_many_as_it_says(to_xp):
    class Spy(sc.FacilityLocation):
        asked: list = []  # noqa: RUF012

        def gain(self, indices, j):
            self.asked.append(int(j.shape[0]))
            return super().gain(indices, j)

    sc.maximize(Spy(to_xp(np.eye(20))), 4, "stochastic", seed=0, epsilon=0.3)
    # All of them at the start and the end, for the bound; 20 / 4 log(1 / 0.3) = 6.02 at a pick.
    assert Spy.asked == [20, 7, 7, 7, 7, 20]


def test_lazy_asks_less_than_naive(to_xp):
    class Spy(sc.FacilityLocation):
        asked = 0

        def gain(self, indices, j):
            Spy.asked += int(np.size(j)) if isinstance(j, int) else int(j.shape[0])
            return super().gain(indices, j)

    f = Spy(to_xp(np.exp(-np.abs(np.subtract.outer(np.arange(50.0), np.arange(50.0))))))
    sc.maximize(f, 10, "lazy")
    assert 50 <= Spy.asked < 250


def test_log_determinant_greedy_by_hand(to_xp, to_numpy):
    kernel = np.array([[2.0, 1.9, 0.0], [1.9, 2.1, 0.0], [0.0, 0.0, 1.0]])
    picks = sc.maximize(sc.LogDeterminant(to_xp(kernel)), 3)
    assert to_numpy(picks.indices).tolist() == [1, 2, 0]
    left = 2.0 - 1.9**2 / 2.1
    np.testing.assert_allclose(to_numpy(picks.gains), np.log([2.1, 1.0, left]), atol=1e-14)
    assert float(picks.value) == pytest.approx(math.log(np.linalg.det(kernel)))
    assert picks.upper_bound is None
    assert picks.guarantee is None


@pytest.mark.parametrize("algorithm", ["naive", "lazy", "incremental", "auto"])
def test_picks_stay_distinct_past_the_rank_of_a_kernel(to_xp, to_numpy, algorithm):
    x = np.random.default_rng(6).normal(size=(7, 2))
    picks = sc.maximize(sc.LogDeterminant(to_xp(x @ x.T)), 7, algorithm)
    order = to_numpy(picks.indices).tolist()
    assert sorted(order) == list(range(7))
    assert order[2:] == sorted(order[2:])
    assert to_numpy(picks.gains)[2:].tolist() == [-math.inf] * 5
    assert float(picks.value) == -math.inf


def test_farthest_first_by_hand(to_xp, to_numpy):
    at = np.array([0.0, 1.0, 2.0, 6.0, 7.5])
    f = sc.Dispersion(to_xp(abs(at[:, None] - at)))
    picks = sc.maximize(f, 4)
    # The token whose nearest neighbour is farthest, then always the farthest from those kept.
    assert to_numpy(picks.indices).tolist() == [3, 0, 2, 4]
    assert to_numpy(picks.gains).tolist() == [1.5, 6.0, 2.0, 1.5]
    assert float(picks.value) == 1.5
    assert picks.upper_bound is None


def test_dispersion_of_one_pick_or_one_token(to_xp, to_numpy):
    f = sc.Dispersion(to_xp([[0.0]]))
    assert to_numpy(sc.maximize(f, 1).indices).tolist() == [0]
    assert float(sc.maximize(sc.Dispersion(to_xp(1 - np.eye(2))), 1).value) == math.inf


def test_dispersion_in_blocks_of_features(to_xp, to_numpy, monkeypatch):
    x = np.random.default_rng(7).normal(size=(9, 4))
    f = sc.Dispersion.from_features(to_xp(x))
    u = x / np.linalg.norm(x, axis=-1, keepdims=True)
    matrix = sc.maximize(sc.Dispersion(to_xp(np.clip(1 - u @ u.T, 0, None))), 9)
    features = sc.maximize(f, 9)
    assert to_numpy(features.indices).tolist() == to_numpy(matrix.indices).tolist()
    np.testing.assert_allclose(to_numpy(features.gains), to_numpy(matrix.gains), atol=1e-14)


class Cut(Objective):
    """The edges between a set and the rest: submodular, not monotone."""

    submodular = True

    def __init__(self, edges, sample):
        self.edges, self.sample, self.size = edges, sample, 5

    def value(self, indices):
        inside = set(indices)
        return sum((a in inside) != (b in inside) for a, b in self.edges)


class Monotone(Cut):
    """Vertices touched by the edges of a set of vertices: not submodular by its word."""

    submodular = False


@pytest.mark.parametrize("kind", [Cut, Monotone])
@pytest.mark.parametrize("algorithm", ["auto", "naive", "incremental", "lazy", "stochastic"])
def test_objectives_of_other_people(to_xp, to_numpy, kind, algorithm):
    f = kind([(0, 1), (0, 2), (0, 3), (3, 4), (2, 4)], to_xp([0.0]))
    if algorithm == "lazy" and not f.submodular:
        with pytest.raises(ValueError, match=r"'lazy' relies on gains that only shrink.* Monotone"):
            sc.maximize(f, 2, algorithm)
        return
    picks = sc.maximize(f, 2, algorithm, seed=1, epsilon=0.01)
    assert to_numpy(picks.indices).tolist() == [0, 4]
    assert to_numpy(picks.gains).tolist() == [3.0, 2.0]
    assert float(picks.value) == 5.0
    assert picks.guarantee is None
    assert library(picks.value) == library(to_xp([0.0]))


@pytest.mark.parametrize("algorithm", ["auto", "naive", "incremental", "lazy", "stochastic"])
def test_picks_stay_distinct_where_every_token_costs(to_xp, to_numpy, algorithm):
    f = Cut([(0, 1), (0, 2), (0, 3), (3, 4), (2, 4)], to_xp([0.0]))
    picks = sc.maximize(f, 5, algorithm, seed=0)
    assert_selection(picks, 5)
    assert to_numpy(picks.gains).min() < 0
    assert float(picks.value) == 0.0


def test_ties_of_a_sample_go_to_the_lowest_index(to_xp, to_numpy):
    """A sample of 6 / 2 log 10 tokens is all of them."""
    picks = sc.maximize(sc.FacilityLocation(to_xp(np.eye(6))), 2, "stochastic", seed=0)
    assert to_numpy(picks.indices).tolist() == [0, 1]


def test_objectives_without_flags_default_to_the_definition(to_xp, to_numpy):
    f = Monotone([(0, 1), (1, 2), (3, 4)], to_xp([0.0]))
    assert to_numpy(sc.maximize(f, 3).indices).tolist() == [1, 3, 0]
    assert_algorithms_agree(f, 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_narrow_dtypes(xp, to_xp, to_numpy, computed_by, dtype, algorithm):
    if not hasattr(xp, dtype):
        pytest.skip(f"{xp.__name__} has no {dtype}")
    x = xp.asarray(np.random.default_rng(8).normal(size=(12, 5)).astype(np.float32))
    x = xp.astype(x, getattr(xp, dtype))
    picks = sc.maximize(sc.FacilityLocation.from_features(x), 5, algorithm)
    exact = sc.FacilityLocation.from_features(to_xp(to_numpy(x), "float64"))
    same = sc.maximize(exact, 5)
    assert float(exact.value(picks.indices)) == pytest.approx(float(same.value), rel=1e-6)
    assert float(picks.guarantee) >= 1 - 1 / math.e
    if computed_by == "reference":
        assert to_numpy(picks.indices).tolist() == to_numpy(same.indices).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("source", ["matrix", "features"])
def test_every_pick_is_the_best_but_for_rounding(to_xp, to_numpy, source, dtype):
    """Replay the picks in float64: near the end many candidates are within rounding in float32."""
    dice = np.random.default_rng(13)
    x = dice.normal(size=(24, 12))[dice.integers(0, 24, 260)] + 0.2 * dice.normal(size=(260, 12))
    w = dice.random(260) ** 4
    x, w = (
        to_numpy(to_xp(x, dtype)).astype(np.float64),
        to_numpy(to_xp(w, dtype)).astype(np.float64),
    )
    u = x / np.linalg.norm(x, axis=-1, keepdims=True)
    s = np.clip((1 + u @ u.T) / 2, 0, 1)
    if source == "matrix":
        f = sc.FacilityLocation(to_xp(s, dtype), to_xp(w, dtype))
    else:
        f = sc.FacilityLocation.from_features(to_xp(x, dtype), to_xp(w, dtype))
    picks = sc.maximize(f, 120)
    rounding = 8 * float(np.finfo(dtype).eps) * w.sum()
    m = np.zeros(260)
    for pick, gain in zip(to_numpy(picks.indices), to_numpy(picks.gains), strict=True):
        gains = w @ np.maximum(s - m[:, None], 0)
        assert gains[pick] == pytest.approx(gain, abs=rounding)
        assert gains[pick] >= gains.max() - 2 * rounding
        m = np.maximum(m, s[:, pick])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_float32_at_extreme_scales(to_xp, to_numpy, scale, algorithm):
    s = to_xp((clusters() * scale).astype(np.float32))
    picks = sc.maximize(sc.FacilityLocation(s), 3, algorithm)
    assert to_numpy(picks.indices).tolist() == [4, 1, 6]
    assert float(picks.guarantee) > 0.95
    x = to_xp((np.eye(4, 3) * scale).astype(np.float32))
    order = to_numpy(sc.maximize(sc.FacilityLocation.from_features(x), 4, algorithm).indices)
    assert order.tolist() == [0, 1, 2, 3]
    d = to_xp((abs(np.subtract.outer(np.arange(4.0), np.arange(4.0))) * scale).astype(np.float32))
    assert to_numpy(sc.maximize(sc.Dispersion(d), 2).indices).tolist() == [0, 3]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_promise_of_greedy_is_kept_where_greedy_is_wrong(to_xp, to_numpy, algorithm):
    """The first token serves a bit of everything; the other two together serve all of it."""
    s = np.zeros((4, 4))
    s[:, 0] = 0.6
    s[:2, 1] = s[2:, 2] = 1.0
    f = sc.FacilityLocation(to_xp(s))
    assert_greedy_guarantee(f, 2, algorithm)
    picks = sc.maximize(f, 2, algorithm)
    assert to_numpy(picks.indices).tolist() == [0, 1]
    assert float(picks.value) == pytest.approx(3.2)
    assert 3.2 / 4.0 >= float(picks.guarantee) >= 3 / 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"f": np.eye(3)}, "f: expected an Objective, got ndarray of shape"),
        ({"k": 0}, "k: a count is at least 1, got 0"),
        ({"k": 1.5}, r"k: a share lies in \(0, 1\], got 1\.5"),
        ({"k": "3"}, "k: expected a count"),
        ({"k": [1, 2]}, r"k: expected one budget for each of the rows \(\), got \(2,\)"),
        (
            {"algorithm": "fast"},
            "algorithm: expected one of auto, naive, lazy, incremental, stochastic; got 'fast'",
        ),
        ({"algorithm": "stochastic", "epsilon": 0.0}, r"epsilon: expected a number in \(0, 1\)"),
        ({"backend": "fast"}, "backend: expected one of auto, reference, .*; got 'fast'"),
    ],
)
def test_maximize_refuses(to_xp, arguments, words):
    given = {"f": sc.FacilityLocation(to_xp(np.eye(3))), "k": 2} | arguments
    with pytest.raises(ValueError, match=words):
        sc.maximize(**given)


def test_a_share_of_the_tokens(to_xp):
    assert int(sc.maximize(sc.FacilityLocation(to_xp(np.eye(8))), 0.25).count) == 2


def test_tensors_with_gradients_and_inference_tensors(computed_by):
    torch = pytest.importorskip("torch")
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = sc.maximize(sc.FacilityLocation.from_features(x), 3).indices.tolist()
    learned = x.clone().requires_grad_()
    weights = torch.ones(6, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        frozen = x.clone()
    for features, w in ((learned, weights), (frozen, None)):
        for algorithm in ALGORITHMS:
            f = sc.FacilityLocation.from_features(features, w)
            picks = sc.maximize(f, 3, algorithm)
            assert picks.indices.tolist() == expected
            assert not picks.value.requires_grad
        sc.maximize(sc.Dispersion.from_features(features), 3)
        sc.maximize(sc.LogDeterminant(features @ features.T), 3)


def test_views_lists_and_read_only_arrays(to_numpy):
    x = np.random.default_rng(9).normal(size=(10, 6))
    view = np.asfortranarray(x)[::-1, ::2]
    expected = sc.maximize(sc.FacilityLocation.from_features(view.copy()), 4).indices.tolist()
    fixed = view.copy()
    fixed.setflags(write=False)
    for same in (view, fixed, view.tolist()):
        f = sc.FacilityLocation.from_features(same)
        assert sc.maximize(f, 4).indices.tolist() == expected
        assert sc.maximize(sc.Dispersion.from_features(same), 4).indices.shape == (4,)
    torch = pytest.importorskip("torch")
    turned = torch.tensor(np.ascontiguousarray(view.T)).T
    assert sc.maximize(sc.FacilityLocation.from_features(turned), 4).indices.tolist() == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sparse_rows_give_the_picks_of_the_matrix(algorithm):
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(10)
    s = rng.random((20, 20)) * (rng.random((20, 20)) < 0.2)
    w = rng.random(20)
    dense = sc.maximize(sc.FacilityLocation(s, w), 8, "naive")
    picks = sc.maximize(sc.FacilityLocation(sparse.csr_array(s), w), 8, algorithm)
    assert picks.indices.tolist() == dense.indices.tolist()
    assert float(picks.value) == pytest.approx(float(dense.value))
