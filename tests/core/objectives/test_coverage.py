"""Facility location over rows that are no square: rectangular, in blocks, with a mask."""

from itertools import combinations

import numpy as np
import pytest

import secateur as sc
from secateur.core.similarity import SoftmaxSimilarity
from secateur.testing import assert_objective

ALGORITHMS = ("naive", "lazy", "incremental", "auto")
WORDS = np.array([[0.9, 0.1, 0.0, 0.3], [0.0, 0.2, 0.8, 0.3]])
IMAGE = np.array(
    [[1.0, 0.7, 0.0, 0.2], [0.6, 1.0, 0.1, 0.0], [0.0, 0.3, 1.0, 0.4], [0.5, 0.0, 0.2, 1.0]]
)


def softmax(x, y, temperature):
    x, y = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
    e = np.exp(x @ np.swapaxes(y, -1, -2) / temperature)
    return e / e.sum(-1, keepdims=True)


def some(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_a_rectangle_by_hand(to_xp, to_numpy):
    f = sc.FacilityLocation(to_xp(WORDS), to_xp([2.0, 1.0]))
    assert (f.height, f.size) == (2, 4)
    assert float(f.value([0, 2])) == pytest.approx(2 * 0.9 + 0.8)
    assert float(f.gain([0], 3)) == pytest.approx(0.3)
    assert to_numpy(f.gain([], np.arange(4))).tolist() == pytest.approx([1.8, 0.4, 0.8, 0.9])
    picks = sc.maximize(f, 4)
    # Once 0 and 2 serve both words as well as can be, nothing is left to gain.
    assert to_numpy(picks.indices).tolist() == [0, 2, 1, 3]
    assert to_numpy(picks.gains).tolist() == pytest.approx([1.8, 0.8, 0.0, 0.0])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_more_rows_than_tokens_and_fewer(to_xp, to_numpy, algorithm):
    for shape in ((9, 5), (5, 9), (1, 6), (6, 1)):
        s = some(1, *shape)
        f = sc.FacilityLocation(to_xp(s), to_xp(np.arange(1.0, shape[0] + 1)))
        expected = sc.maximize(sc.FacilityLocation(s, np.arange(1.0, shape[0] + 1)), 4, "naive")
        picks = sc.maximize(f, 4, algorithm)
        assert to_numpy(picks.indices).tolist() == expected.indices.tolist()
        assert float(picks.value) == pytest.approx(float(expected.value))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_blocks_are_rows_one_below_the_other(to_xp, to_numpy, algorithm):
    blocks = sc.FacilityLocation.of_blocks([to_xp(WORDS), to_xp(IMAGE)], [0.5, 0.25])
    joined = sc.FacilityLocation(np.concatenate([WORDS, IMAGE]), np.array([0.5] * 2 + [0.25] * 4))
    assert (blocks.height, blocks.size, blocks.form) == (6, 4, "rows")
    for picks in ([], [3], [0, 2]):
        assert float(blocks.value(picks)) == pytest.approx(float(joined.value(picks)))
        gains = blocks.gain(picks, np.arange(4))
        np.testing.assert_allclose(to_numpy(gains), joined.gain(picks, np.arange(4)), atol=1e-15)
    found, wanted = sc.maximize(blocks, 3, algorithm), sc.maximize(joined, 3, "naive")
    assert to_numpy(found.indices).tolist() == wanted.indices.tolist()
    assert float(found.upper_bound) >= float(found.value)


def test_weights_of_blocks(to_xp):
    f = sc.FacilityLocation.of_blocks([to_xp(WORDS), to_xp(IMAGE)], [to_xp([3.0, 0.0]), None])
    assert float(f.value([0])) == pytest.approx(3 * 0.9 + 1.0 + 0.6 + 0.5)
    assert float(sc.FacilityLocation.of_blocks([to_xp(IMAGE)]).value([3])) == pytest.approx(1.6)


def test_the_softmax_of_rows_over_candidates(to_xp, to_numpy):
    x, y = some(0, 5, 4), some(1, 7, 4)
    s = SoftmaxSimilarity(to_xp(x), to_xp(y), 0.1)
    expected = softmax(x, y, 0.1)
    columns, rows = np.array([6, 0, 3]), np.array([1, 4])
    index = lambda i: to_xp(np.asarray(i, dtype=np.int64))  # noqa: E731
    np.testing.assert_allclose(
        to_numpy(s.columns(index(columns))), expected[:, columns], rtol=1e-12
    )
    np.testing.assert_allclose(to_numpy(s.rows(index(rows))), expected[rows], rtol=1e-12)
    cold = SoftmaxSimilarity(to_xp(x), to_xp(y), 1e-4)  # Powers far out of range.
    np.testing.assert_allclose(to_numpy(cold.columns(index(range(7)))).sum(1), 1.0, rtol=1e-9)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_softmax_blocks_are_those_of_the_matrix(to_xp, to_numpy, algorithm):
    text, x, v = some(2, 6, 5), some(3, 2, 12, 5), some(4, 2, 12, 3)
    f = sc.FacilityLocation.of_blocks(
        [sc.SoftmaxBlock(to_xp(text), to_xp(x), 0.05), sc.SoftmaxBlock(to_xp(v), to_xp(v), 0.2)],
        [1 / 6, 0.5 / 12],
    )
    assert (f.batch_shape, f.height, f.size) == ((2,), 18, 12)
    p = np.stack([softmax(text, each, 0.05) for each in x])
    dense = sc.FacilityLocation.of_blocks([p, softmax(v, v, 0.2)], [1 / 6, 0.5 / 12])
    found, wanted = sc.maximize(f, 5, algorithm), sc.maximize(dense, 5, "naive")
    np.testing.assert_array_equal(to_numpy(found.indices), wanted.indices)
    np.testing.assert_allclose(to_numpy(found.value), wanted.value, rtol=1e-12)
    assert (to_numpy(found.guarantee) > 1 - 1 / np.e).all()


def test_duplicates_tie_in_a_cold_softmax(to_xp, to_numpy):
    x = np.repeat(some(5, 9, 33), 3, axis=0)
    f = sc.FacilityLocation.of_blocks([sc.SoftmaxBlock(to_xp(x), to_xp(x), 0.01)])
    for algorithm in ALGORITHMS:
        picks = to_numpy(sc.maximize(f, 9, algorithm).indices)
        assert sorted(picks.tolist()) == list(range(0, 27, 3))


def test_blocks_of_entries_are_worked_on_in_parts(to_xp, to_numpy, monkeypatch):
    text, x = some(6, 7, 4), some(7, 11, 4)
    build = lambda: sc.FacilityLocation.of_blocks(  # noqa: E731
        [sc.SoftmaxBlock(to_xp(text), to_xp(x), 0.1), sc.SoftmaxBlock(to_xp(x), to_xp(x), 0.2)]
    )
    whole = to_numpy(sc.maximize(build(), 6, "incremental").indices)
    monkeypatch.setattr("secateur.core.similarity.BLOCK", 40)
    monkeypatch.setattr("secateur.core.maximize.SQUARE", 40)
    for algorithm in ALGORITHMS:
        np.testing.assert_array_equal(to_numpy(sc.maximize(build(), 6, algorithm).indices), whole)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "stochastic"])
def test_what_may_not_be_picked_still_counts(to_xp, to_numpy, algorithm):
    free = np.array([False, True, True, True])
    f = sc.FacilityLocation(to_xp(IMAGE), selectable=to_xp(free, "bool"))
    picks = sc.maximize(f, 2, algorithm, seed=0, epsilon=1e-9)
    # Without the mask greedy takes 0; the row of token 0 is still served by 1.
    assert to_numpy(sc.maximize(sc.FacilityLocation(to_xp(IMAGE)), 1).indices).tolist() == [0]
    best = max(combinations([1, 2, 3], 2), key=lambda s: IMAGE[:, s].max(1).sum())
    assert to_numpy(picks.indices).tolist() == [1, 3]
    assert best == (1, 2) or best == (1, 3)
    assert float(picks.value) == pytest.approx(IMAGE[:, [1, 3]].max(1).sum())
    assert float(picks.upper_bound) >= IMAGE[:, list(best)].max(1).sum() - 1e-12


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "stochastic"])
def test_a_count_beyond_the_selectable_is_capped_or_refused(to_xp, to_numpy, algorithm):
    free = np.array([[True, False, True, False], [True, True, True, False]])
    s = np.stack([IMAGE, IMAGE.T])
    f = sc.FacilityLocation(to_xp(s), selectable=to_xp(free, "bool"))
    picks = sc.maximize(f, 3, algorithm, seed=0)
    assert to_numpy(picks.count).tolist() == [2, 3]
    kept = to_numpy(picks.indices)
    assert set(kept[0].tolist()) == {0, 2, -1}
    assert set(kept[1].tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match=r"k: expected at most the \[2, 3\] selectable tokens, g"):
        sc.maximize(f, 3, algorithm, beyond="refuse")
    assert to_numpy(sc.maximize(f, 2, algorithm, seed=0, beyond="refuse").count).tolist() == [2, 2]
    with pytest.raises(ValueError, match="k: expected at most the 4 selectable tokens, got 5"):
        sc.maximize(sc.FacilityLocation(to_xp(IMAGE)), 5, algorithm, beyond="refuse")


def test_features_and_sparse_rows_with_a_mask(to_xp, to_numpy):
    sparse = pytest.importorskip("scipy.sparse")
    free = np.array([True, False, True, True])
    dense = sc.FacilityLocation(IMAGE, selectable=free)
    listed = sc.FacilityLocation(sparse.csr_array(IMAGE), selectable=free)
    x = some(8, 9, 4)
    mask = np.arange(9) % 2 > 0
    features = sc.FacilityLocation.from_features(to_xp(x), selectable=to_xp(mask, "bool"))
    matrix = sc.FacilityLocation(sc.core.similarity.cosine_similarity(x), selectable=mask)
    for algorithm in ALGORITHMS:
        wanted = sc.maximize(dense, 3, algorithm).indices.tolist()
        assert sc.maximize(listed, 3, algorithm).indices.tolist() == wanted
        wanted = sc.maximize(matrix, 4, algorithm).indices.tolist()
        assert to_numpy(sc.maximize(features, 4, algorithm).indices).tolist() == wanted


@pytest.mark.parametrize(
    "f",
    [
        sc.FacilityLocation(WORDS, np.array([2.0, 1.0])),
        sc.FacilityLocation(IMAGE, selectable=np.array([True, False, True, True])),
        sc.FacilityLocation.of_blocks([WORDS, IMAGE], [0.5, 0.1], selectable=[1, 1, 1, 0]),
        sc.FacilityLocation.of_blocks(
            [sc.SoftmaxBlock(some(0, 3, 4), some(1, 2, 8, 4), 0.1), some(2, 2, 5, 8)]
        ),
    ],
)
def test_they_keep_the_laws(f):
    assert_objective(f)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: sc.FacilityLocation.of_blocks([]), "blocks: expected at least one block"),
        (
            lambda: sc.FacilityLocation.of_blocks([WORDS, IMAGE[:, :3]]),
            r"blocks: expected the same batch and tokens in each, got shapes \(2, 4\), \(4, 3\)",
        ),
        (
            lambda: sc.FacilityLocation.of_blocks([WORDS, IMAGE], [1.0]),
            "weights: expected one entry for each of 2 blocks, got 1",
        ),
        (
            lambda: sc.FacilityLocation.of_blocks([WORDS], [np.ones(3)]),
            r"weights: expected shape \(2,\), got \(3,\)",
        ),
        (
            lambda: sc.FacilityLocation.of_blocks([sc.SoftmaxBlock(WORDS, IMAGE, 0.0)]),
            r"temperature: expected a number above 0, got 0.0",
        ),
        (
            lambda: sc.FacilityLocation.of_blocks([sc.SoftmaxBlock(WORDS[:, :2], IMAGE, 1.0)]),
            r"blocks: expected rows and candidates of one length and batch, got \(2, 2\) and",
        ),
        (
            lambda: sc.FacilityLocation(IMAGE, selectable=np.ones(3, dtype=bool)),
            r"selectable: expected shape \(4,\), got \(3,\)",
        ),
        (
            lambda: sc.FacilityLocation(IMAGE, selectable=np.zeros(4, dtype=bool)),
            "selectable: expected at least one token that may be picked",
        ),
        (
            lambda: sc.maximize(sc.FacilityLocation(IMAGE), 1, beyond="more"),
            "beyond: expected one of cap, refuse; got 'more'",
        ),
    ],
)
def test_they_refuse(build, words):
    with pytest.raises(ValueError, match=words):
        build()
