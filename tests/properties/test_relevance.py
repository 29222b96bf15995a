"""What relevance and score maps obey, whatever the numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import secateur as sc
from secateur.core.relevance import AGGREGATES
from secateur.testing import SCALES, features

seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from(SCALES)
aggregates = st.sampled_from(AGGREGATES)
dtypes = st.sampled_from([np.float16, np.float32, np.float64])


@st.composite
def score_maps(draw):
    n, kind = draw(st.integers(1, 20)), draw(st.sampled_from(["plain", "equal", "whole"]))
    dice = np.random.default_rng(draw(seeds))
    x = dice.normal(size=n)
    if kind == "equal":
        x = np.full(n, x[0])
    elif kind == "whole":
        x = dice.integers(-2, 3, size=n).astype(float)
    dtype = draw(dtypes)
    return (x * (1.0 if dtype == np.float16 else draw(scales))).astype(dtype)


@given(score_maps())
def test_min_max_lies_in_0_to_1_and_keeps_order(x):
    r = sc.min_max(x)
    assert (r > 0).all()
    assert (r <= 1).all()
    assert r[np.argmax(x)] == 1.0
    assert (np.diff(r[np.argsort(x, kind="stable")]) >= 0).all()


@st.composite
def grids(draw):
    h, w = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    dice = np.random.default_rng(draw(seeds))
    x = dice.normal(size=h * w) * draw(scales)
    return x, (h, w), draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([0.3, 1.0, 4.0]))


@given(grids())
def test_smoothing_stays_within_the_range_of_its_map(given_map):
    x, grid, size, sigma = given_map
    out = sc.smooth(x, grid, size, sigma)
    assert (out >= x.min()).all()
    assert (out <= x.max()).all()
    if size == 1:
        np.testing.assert_array_equal(out, x)


@given(grids())
def test_smoothing_keeps_a_constant_map(given_map):
    x, grid, size, sigma = given_map
    constant = np.full_like(x, x[0])
    np.testing.assert_array_equal(sc.smooth(constant, grid, size, sigma), constant)


@given(grids(), st.floats(-3.0, 3.0))
def test_smoothing_is_linear_and_treats_both_axes_alike(given_map, factor):
    x, (h, w), size, sigma = given_map
    turned = sc.smooth(x.reshape(h, w).T.reshape(-1), (w, h), size, sigma)
    out = sc.smooth(x, (h, w), size, sigma)
    room = 1e-12 * abs(x).max()
    np.testing.assert_allclose(turned.reshape(w, h).T.reshape(-1), out, atol=room)
    np.testing.assert_allclose(sc.smooth(factor * x, (h, w), size, sigma), factor * out, atol=room)
    flipped = sc.smooth(x[::-1], (h, w), size, sigma)[::-1]
    np.testing.assert_allclose(flipped, out, atol=room)


@given(score_maps(), st.floats(0.0, 8.0))
def test_polarisation_keeps_order_and_range(x, beta):
    r = sc.min_max(x)
    out = sc.polarize(r, beta)
    assert (np.diff(out[np.argsort(r, kind="stable")]) >= 0).all()
    assert (out >= 0).all()
    assert (out <= 1).all()


@st.composite
def questions(draw):
    """Visual tokens, text tokens and a mask that lets at least one of them through."""
    visual = draw(features(max_tokens=8, max_length=6))
    dice = np.random.default_rng(draw(seeds))
    count = draw(st.integers(1, 9))
    text = dice.normal(size=(count, visual.shape[1])) * draw(scales)
    if draw(st.booleans()):
        text[dice.random(count) < 0.3] = 0.0
    mask = dice.random(count) < 0.6
    mask[draw(st.integers(0, count - 1))] = True
    return visual, text, mask


options = st.fixed_dictionaries(
    {
        "aggregate": aggregates,
        "keep_ratio": st.sampled_from([0.2, 0.5, 1.0]),
        "alpha": st.sampled_from([0.0, 0.5, 1.0]),
        "sign": st.sampled_from([-1, 1]),
    }
)


@given(questions(), options, st.sampled_from([0.0, -1.0, 1e300, np.nan, np.inf]))
def test_masked_text_does_not_matter_at_all(question, how, filler):
    visual, text, mask = question
    r = sc.dense_relevance(visual, text, text_mask=mask, **how)
    changed = np.where(mask[:, None], text, filler)
    np.testing.assert_array_equal(sc.dense_relevance(visual, changed, text_mask=mask, **how), r)
    without = sc.dense_relevance(visual, text[mask], **how)
    np.testing.assert_allclose(r, without, rtol=1e-6, atol=1e-9)


@given(questions(), options)
def test_relevance_is_a_mean_of_cosines(question, how):
    visual, text, mask = question
    r = sc.dense_relevance(visual, text, text_mask=mask, **how)
    assert (abs(r) <= 1 + 1e-9).all()
    zero = ~visual.any(axis=-1)
    assert (r[zero] == 0).all()


@given(questions(), options, scales, seeds)
def test_relevance_forgets_scale_and_follows_the_tokens(question, how, scale, seed):
    visual, text, mask = question
    r = sc.dense_relevance(visual, text, text_mask=mask, **how)
    order = np.random.default_rng(seed).permutation(len(visual))
    turned = sc.dense_relevance(visual[order] * scale, text, text_mask=mask, **how)
    if how["aggregate"] != "tempered":
        np.testing.assert_allclose(turned, r[order], rtol=1e-5, atol=1e-6)
    crops = sc.dense_relevance(np.stack([visual, visual]), text, text_mask=mask, **how)
    np.testing.assert_allclose(crops, np.stack([r, r]), rtol=1e-9, atol=1e-12)


@given(questions(), options)
def test_half_precision_is_the_float32_of_its_values(question, how):
    visual, text, mask = question
    visual = visual / (abs(visual).max() or 1.0)
    text = text / (abs(text).max() or 1.0)
    half = sc.dense_relevance(
        visual.astype(np.float16), text.astype(np.float16), text_mask=mask, **how
    )
    single = sc.dense_relevance(
        visual.astype(np.float16).astype(np.float32),
        text.astype(np.float16).astype(np.float32),
        text_mask=mask,
        **how,
    )
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, single)
