"""What entropies and effective ranks obey, whatever the numbers."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import secateur as sc
from secateur.testing import SCALES, features

backends = st.sampled_from(["reference", "auto"])
seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(1, 30)
scales = st.sampled_from(SCALES)
dtypes = st.sampled_from([np.float16, np.float32, np.float64])


@given(lengths, seeds, scales, dtypes)
def test_entropy_lies_between_0_and_log_n(n, seed, scale, dtype):
    dice = np.random.default_rng(seed)
    p = (dice.random(n) * (dice.random(n) < 0.7)).astype(dtype)
    if dtype != np.float16:
        p = p * dtype(scale)
    h, share = float(sc.entropy(p)), float(sc.entropy(p, normalize=True))
    assert 0.0 <= h <= math.log(n) * (1 + 1e-6)
    assert 0.0 <= share <= 1.0 + 1e-6


@given(lengths, st.data(), scales, dtypes)
def test_entropy_is_0_for_one_outcome_and_log_n_for_all_alike(n, data, scale, dtype):
    scale = dtype(1.0) if dtype == np.float16 else dtype(scale)
    one_hot = np.zeros(n, dtype=dtype)
    one_hot[data.draw(st.integers(0, n - 1))] = scale
    assert float(sc.entropy(one_hot)) == 0.0
    h = float(sc.entropy(np.full(n, scale, dtype=dtype)))
    assert math.isclose(h, math.log(n), rel_tol=1e-6, abs_tol=1e-7)


@given(lengths, seeds, scales)
def test_entropy_forgets_order_and_scale(n, seed, scale):
    dice = np.random.default_rng(seed)
    p = dice.random(n)
    h = float(sc.entropy(p))
    assert math.isclose(float(sc.entropy(dice.permutation(p))), h, abs_tol=1e-12)
    assert math.isclose(float(sc.attention_entropy(p * scale)), h, abs_tol=1e-12)


@given(features(), backends)
def test_effective_rank_lies_between_1_and_the_rank(x, backend):
    with sc.backend(backend):
        r = float(sc.effective_rank(x))
    rank = max(1, np.linalg.matrix_rank(x / (abs(x).max() or 1.0)))
    assert 1.0 - 1e-9 <= r <= rank + 1e-6


@given(features(dtype=np.float32), backends)
def test_effective_rank_of_float32_follows_float64(x, backend):
    with sc.backend(backend):
        r = float(sc.effective_rank(x))
    exact = float(sc.effective_rank(x.astype(np.float64), check_finite=False))
    assert math.isclose(r, exact, rel_tol=1e-3)


def rotation(dice, n):
    return np.linalg.qr(dice.normal(size=(n, n)))[0]


@given(st.integers(1, 6), st.integers(0, 4), seeds, scales, backends)
def test_effective_rank_is_r_for_r_equal_singular_values(r, more, seed, scale, backend):
    dice = np.random.default_rng(seed)
    n, d = r + more, r + more // 2
    x = scale * rotation(dice, n)[:, :r] @ rotation(dice, d)[:r]
    with sc.backend(backend):
        assert math.isclose(float(sc.effective_rank(x)), r, rel_tol=1e-6)


@given(features(scales=(1.0,)), seeds, scales, backends)
def test_effective_rank_forgets_rotation_order_and_scale(x, seed, scale, backend):
    dice = np.random.default_rng(seed)
    turned = x @ rotation(dice, x.shape[1]) * scale
    with sc.backend(backend):
        r, same = float(sc.effective_rank(x)), float(sc.effective_rank(dice.permutation(turned)))
    assert math.isclose(r, same, rel_tol=1e-6)


@given(
    st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 256), seeds, backends
)
def test_patch_entropy_counts_grey_values(patch, rows, columns, levels, seed, backend):
    dice = np.random.default_rng(seed)
    grey = dice.integers(0, levels, size=(rows * patch, columns * patch))
    image = np.zeros((*grey.shape, 3), dtype=np.uint8)
    # Blue alone moves the grey value by 0.114: 9 steps of blue are always another level.
    image[..., 2] = grey // 9 * 9
    with sc.backend(backend):
        h = sc.patch_entropy(image, patch).reshape(rows, columns)
    assert (h >= 0).all()
    assert (h <= math.log(patch * patch) + 1e-6).all()
    for row, column in np.ndindex(rows, columns):
        part = image[..., 2][row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        share = np.unique(part, return_counts=True)[1] / patch**2
        assert math.isclose(h[row, column], -(share * np.log(share)).sum(), abs_tol=1e-6)
