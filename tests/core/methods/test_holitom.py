"""What stands still is said once."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.holitom import fold_into_attended


def still_and_moving(times=4, n=8, still=5):
    dice = np.random.default_rng(0)
    x = dice.normal(size=(times, n, 6))
    x[:, :still] = x[:1, :still] * (1 + np.arange(times))[:, None, None]
    return x, dice.random((times, n))


def test_all_still_places_stay_as_means_where_the_share_allows(to_xp, to_numpy):
    x, attention = still_and_moving()
    tokens = sc.Tokens(
        features=to_xp(x.reshape(32, 6)), attention=to_xp(attention.ravel()), frames=4
    )
    # 3 of 4 frames save 5 tokens each: 17 of 32 are left, all of which half of 32 nearly buys.
    chosen = sc.HoliTom(keep=17 / 32, tau=0.99).select(tokens)
    assert int(chosen.count) == 17
    assert chosen.info["saved"] == 15
    merged = to_numpy(chosen.merge(tokens.features))
    np.testing.assert_allclose(merged[:5], x[:, :5].mean(axis=0))
    assert to_numpy(chosen.sorted())[:8].tolist() == list(range(8))
    np.testing.assert_allclose(merged[5:8], x[0, 5:])


def test_a_video_without_stillness_keeps_the_most_attended(to_xp, to_numpy):
    x, attention = still_and_moving(still=0)
    tokens = sc.Tokens(
        features=to_xp(x.reshape(32, 6)), attention=to_xp(attention.ravel()), frames=4
    )
    chosen = sc.HoliTom(keep=3, tau=1.0).select(tokens)
    expected = sc.TopK(keep=3).select(tokens)
    assert to_numpy(chosen.sorted()).tolist() == to_numpy(expected.sorted()).tolist()


@pytest.mark.parametrize("beta", [None, 0.0, 0.6, 1.0])
def test_peaks_take_in_the_other_means(beta):
    dice = np.random.default_rng(3)
    x = np.repeat(dice.normal(size=(1, 9, 5)), 2, axis=0).reshape(18, 5)
    tokens = sc.Tokens(features=x, attention=np.ones(18), frames=2)
    chosen = sc.HoliTom(keep=2, beta=beta).select(tokens)
    centres, cluster = sc.density_clusters(x[:9], int(chosen.count), int(chosen.count))
    merged = dict(zip(chosen.sorted().tolist(), chosen.merge(x), strict=True))
    assert sorted(merged) == sorted(centres.tolist())
    for number, centre in enumerate(centres.tolist()):
        joined = [i for i in range(9) if cluster[i] == number and i != centre]
        if beta is None:
            expected = x[[centre, *joined]].mean(axis=0)
        elif joined:
            expected = beta * x[centre] + (1 - beta) * x[joined].mean(axis=0)
        else:
            expected = x[centre]
        np.testing.assert_allclose(merged[centre], expected)


def test_windows_are_capped(to_xp, to_numpy):
    x = to_xp(np.ones((12, 3)))
    tokens = sc.Tokens(features=x, attention=to_xp(np.ones(12)), frames=6)
    for window, saved in ((1, 0), (2, 6), (3, 8), (6, 10), (99, 10)):
        assert sc.HoliTom(keep=1, window=window).select(tokens).info["saved"] == saved


def test_a_window_of_few_still_places_keeps_one_unless_published():
    x, attention = still_and_moving(n=40, still=2)
    tokens = sc.Tokens(features=x.reshape(160, 6), attention=attention.ravel(), frames=4)
    ours, theirs = (
        make("holitom", keep=0.1, tau=0.9999).select(tokens) for make in (sc.method, sc.published)
    )
    assert [int(each.count) - int(each.count) // 4 * 4 for each in (ours, theirs)] == [1, 0]


def test_the_fold_inside_is_its_definition(to_xp, to_numpy):
    dice = np.random.default_rng(5)
    states, attention = dice.normal(size=(20, 6)), dice.random(12)
    visual = np.arange(4, 16)
    kept, folded = fold_into_attended(to_xp(states), to_xp(attention), to_xp(visual), 5)
    own = np.sort(np.argsort(-attention)[:5])
    assert to_numpy(kept).tolist() == visual[own].tolist()
    u = states / np.linalg.norm(states, axis=-1, keepdims=True)
    expected = states[visual[own]].copy()
    for i in np.setdiff1d(np.arange(12), own):
        j = int(np.argmax(u[visual[own]] @ u[visual[i]]))
        expected[j] = (expected[j] + states[visual[i]]) / 2
    np.testing.assert_allclose(to_numpy(folded), expected)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="tau: expected a cosine"):
        sc.HoliTom(tau=2.0)
    with pytest.raises(ValueError, match="window: expected"):
        sc.HoliTom(window=0)
    with pytest.raises(ValueError, match="attention: expected shape"):
        fold_into_attended(np.ones((4, 2)), np.ones(3), np.arange(4), 2)
