"""What the threshold scan obeys, whatever the numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import secateur as sc
from secateur.testing import assert_selection, features

backends = st.sampled_from(["reference", "auto"])


@st.composite
def images(draw):
    x = draw(features(max_tokens=12, dtype=draw(st.sampled_from([np.float32, np.float64]))))
    dice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    a = dice.integers(0, 5, len(x)) / 4 if draw(st.booleans()) else dice.random(len(x))
    return x, a.astype(x.dtype), draw(st.integers(1, len(x)))


@given(images(), backends)
def test_without_a_threshold_it_is_top_k_by_attention(image, backend):
    x, a, k = image
    for options in ({"step": 0.0}, {"step": 0.5, "tau_max": 0.0}):
        picks = sc.greedy_threshold(x, a, k, backend=backend, **options)
        assert picks.indices.tolist() == np.argsort(-a, kind="stable")[:k].tolist()
        assert int(picks.info["filled"]) == 0


@given(images(), st.floats(0.0, 1.0), st.floats(0.0, 2.0), backends)
def test_kept_tokens_are_apart_and_the_rest_fills_up_in_order(image, step, tau_max, backend):
    x, a, k = image
    picks = sc.greedy_threshold(x, a, k, step, tau_max, backend=backend)
    assert_selection(picks, k)
    filled = int(picks.info["filled"])
    kept, fill = picks.indices[: k - filled].tolist(), picks.indices[k - filled :].tolist()
    u = x.astype(np.float64) / (abs(x).max() or 1.0)
    u = u / np.maximum(np.linalg.norm(u, axis=-1, keepdims=True), 1e-300)
    room = 32 * float(np.finfo(x.dtype).eps)
    for t, j in enumerate(kept):
        for i, earlier in enumerate(kept[:t], start=1):
            assert 1 - u[earlier] @ u[j] >= min(tau_max, step * i) - room
    assert kept[0] == int(np.argmax(a))
    for group in (kept, fill):
        assert (np.diff(a[group]) <= 0).all()
    if fill:
        left = np.setdiff1d(np.arange(len(x)), kept + fill)
        assert left.size == 0 or a[left].max() <= a[fill].min()


@given(images(), backends)
def test_a_higher_threshold_never_keeps_more_before_filling_up(image, backend):
    x, a, _ = image
    filled = [
        int(sc.greedy_threshold(x, a, len(x), 3.0, tau, backend=backend).info["filled"])
        for tau in (0.0, 2.1)
    ]
    assert filled[0] == 0
    assert filled[1] == len(x) - 1
