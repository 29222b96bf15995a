"""Windows that merge, key tokens, and the filter between layers."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.acts import Cut, Layout, Sight
from secateur.core.methods.mustdrop import (
    MustDrop,
    asked_for,
    key_tokens,
    merge_windows,
    window_likeness,
)


def hat(x):
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def test_likeness_is_the_mean_over_pairs(to_xp, to_numpy):
    x = np.random.default_rng(0).normal(size=(2, 30, 4))
    x[0, 7] = 0.0
    found = to_numpy(window_likeness(to_xp(x), (5, 6), (2, 3)))
    grid = hat(x).reshape(2, 5, 6, 4)
    for row in range(2):
        for w, (i, j) in enumerate([(i, j) for i in (0, 2) for j in (0, 3)]):
            u = grid[row, i : i + 2, j : j + 3].reshape(6, 4)
            pairs = u @ u.T
            expected = (pairs.sum() - np.trace(pairs)) / 30
            np.testing.assert_allclose(found[row, w], expected, atol=1e-11)


def test_rows_beyond_the_last_window_stay(to_xp, to_numpy):
    x = np.ones((1 + 20, 3)) * np.arange(21.0)[:, None]
    merged = merge_windows(to_xp(x), (4, 5), window=(3, 3))
    # One whole window of 3 x 3 in 4 x 5: all alike, so it merges.
    inside = [1 + 5 * i + j for i in range(3) for j in range(3)]
    rest = [i for i in range(1, 21) if i not in inside]
    expected = np.stack([x[0], x[inside].mean(0), *x[rest]])
    np.testing.assert_allclose(to_numpy(merged.states), expected)
    assert to_numpy(merged.sizes).tolist() == [1.0, 9.0, *[1.0] * 11]
    group = to_numpy(merged.group)
    assert group[inside].tolist() == [1] * 9
    assert group[rest].tolist() == list(range(2, 13))


def test_an_image_without_alike_windows_is_untouched(to_xp, to_numpy):
    x = np.random.default_rng(1).normal(size=(2, 9, 8))
    merged = merge_windows(to_xp(x), threshold=0.99, class_token=False)
    np.testing.assert_array_equal(to_numpy(merged.states), x)
    assert to_numpy(merged.group)[1].tolist() == list(range(9))


def test_equal_windows_merge_in_order(to_xp, to_numpy):
    x = np.repeat(np.eye(4), 2, axis=0)
    merged = merge_windows(to_xp(x), (4, 2), window=(1, 2), class_token=False)
    np.testing.assert_array_equal(to_numpy(merged.states), np.eye(4))


def test_the_filter_asks_for_both(to_xp, to_numpy):
    paid = np.random.default_rng(2).gamma(0.3, size=(3, 7, 40)) / 40
    key = np.zeros((3, 40), dtype=bool)
    key[:, 5] = True
    found = to_numpy(asked_for(to_xp(paid), overall=0.02, single=0.03, key=to_xp(key)))
    total = paid.sum(-2)
    little = (total < 0.02 * total.sum(-1, keepdims=True)) & (paid.max(-2) < 0.03)
    assert np.array_equal(found, ~little | key)
    assert 0 < found.sum() < found.size
    # The program's defaults drop nothing.
    assert to_numpy(asked_for(to_xp(paid), overall=1.0, single=0.0)).all()


def test_key_tokens_are_rounded_up(to_xp, to_numpy):
    attention = np.random.default_rng(3).permutation(101).astype(float)
    key = to_numpy(key_tokens(to_xp(attention)))
    assert np.flatnonzero(key).tolist() == sorted(np.argsort(-attention)[:9].tolist())
    assert to_numpy(key_tokens(to_xp(np.ones(1)))).tolist() == [True]
    assert not to_numpy(key_tokens(to_xp(np.ones(4)), 0.0)).any()


def sight_of(to_xp, method, n=12, seed=0):
    """A prompt of two tokens, n visual ones and three of text, and what a layer makes of it."""
    dice = np.random.default_rng(seed)
    tokens = sc.Tokens(features=to_xp(np.ones((n, 2))), attention=to_xp(dice.gamma(0.5, size=n)))
    layout = Layout(32, (n,), chosen=(method.select(tokens),))
    total = n + 5
    return layout, Sight(
        length=total,
        visual=to_xp(np.arange(2, 2 + n)),
        text=to_xp(np.arange(2 + n, total)),
        place=to_xp(np.arange(n)),
        layout=layout,
        queries=to_xp(3 * dice.normal(size=(4, total, 6))),
        keys=to_xp(3 * dice.normal(size=(2, total, 6))),
    )


def rows_of(sight, to_numpy):
    """Causal attention of the text to the visual tokens, mean over heads."""
    queries, keys = to_numpy(sight.queries), np.repeat(to_numpy(sight.keys), 2, axis=0)
    logits = queries @ keys.transpose(0, 2, 1) / np.sqrt(queries.shape[-1])
    logits = np.where(np.tri(sight.length, dtype=bool), logits, -np.inf)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    visual = to_numpy(sight.visual)
    return share.mean(0)[visual[-1] + 1 :][:, visual]


def test_a_cut_is_the_filter_and_its_limit(to_xp, to_numpy):
    method = MustDrop(keep=4, overall=0.05, single=0.1)
    _, sight = sight_of(to_xp, method)
    rows = rows_of(sight, to_numpy)
    key = sight.told("key")
    stay = (rows.sum(0) >= 0.05 * rows.sum()) | (rows.max(0) >= 0.1) | key
    assert key.sum() == 1
    assert stay.sum() > 4
    found = to_numpy(method.decide(Cut(2, 12), sight).kept)
    assert found.tolist() == np.flatnonzero(stay).tolist()
    order = sorted(np.flatnonzero(stay), key=lambda i: (not key[i], -rows.sum(0)[i]))
    found = to_numpy(method.decide(Cut(2, 4), sight).kept)
    assert found.tolist() == sorted(int(i) for i in order[:4])


def test_plans(to_xp):
    layout, _ = sight_of(to_xp, MustDrop())
    assert MustDrop(keep=12).plan(layout) == ()
    assert [c.keep for c in MustDrop(keep=1).plan(layout)] == [6, 3, 1]
    published = MustDrop(keep=3, published=True).plan(layout)
    assert published == tuple(Cut(after, 12) for after in (2, 6, 10, 14))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: merge_windows(np.ones((8, 2))), "grid: 7 tokens are no square"),
        (lambda: merge_windows(np.ones((10, 2)), window=(1, 1)), "window: expected more than one"),
        (lambda: key_tokens(np.ones(3), 2.0), "share: expected a share"),
        (lambda: asked_for(-np.ones((2, 3))), "attention: expected no negative"),
        (lambda: MustDrop(after=(6, 2)), "after: expected ascending"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
