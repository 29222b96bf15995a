"""Density clusters, and folding by key norms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from secateur.core.acts import Cut, Layout, Sight
from secateur.core.methods.vitcop import ViTCoP, density_clusters, fold_clusters, key_norms


def slow_labels(keys, places, share, scale, radius):
    n = len(keys)
    d = np.sqrt(((keys[:, None] - keys[None]) ** 2).sum(-1) + 1e-8)
    np.fill_diagonal(d, 0.0)
    s = np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1) + 1e-8)
    density = np.exp(-((d / scale) ** 2)).sum(1)
    order = np.argsort(-density, kind="stable").tolist()
    parent, peak = list(range(n)), np.full(n, np.inf)
    for rank, i in enumerate(order):
        near = [j for j in order[:rank] if s[i, j] <= radius]
        among = near or order[:rank]
        if among:
            parent[i] = min(among, key=lambda j: d[i, j])
        if near:
            peak[i] = d[i, parent[i]] * density[i]
    ranked = sorted(range(n), key=lambda i: (-peak[i], -density[i], i))
    labels = {i: rank for rank, i in enumerate(ranked[: max(1, int(share * n))])}
    for i in order:
        labels.setdefault(i, labels.get(parent[i]))
    return [labels[i] for i in range(n)]


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.6, 2.0])
@pytest.mark.parametrize("share", [0.01, 0.18, 1.0])
def test_clusters_are_their_definition(to_xp, to_numpy, share, radius):
    dice = np.random.default_rng(4)
    keys, places = 2 * dice.normal(size=(2, 40, 5)), dice.uniform(size=(2, 40, 2))
    found = density_clusters(to_xp(keys), to_xp(places), share=share, radius=radius)
    for row in range(2):
        expected = slow_labels(keys[row], places[row], share, 8.0, radius)
        assert to_numpy(found)[row].tolist() == expected


def test_duplicates_and_one_token_are_ordinary(to_xp, to_numpy):
    keys = np.repeat(np.array([[0.0, 0.0], [9.0, 9.0]]), 3, axis=0)
    places = np.zeros((6, 2))
    labels = to_numpy(density_clusters(to_xp(keys), to_xp(places), share=0.34))
    assert labels.min() == 0
    assert len(set(labels[:3].tolist())) == len(set(labels[3:].tolist())) == 1
    assert labels[0] != labels[3]
    assert to_numpy(density_clusters(to_xp(keys[:1]), to_xp(places[:1]))).tolist() == [0]


def case(n=30, clusters=6, seed=0):
    dice = np.random.default_rng(seed)
    return dice.gamma(2.0, size=n), dice.integers(0, clusters, size=n)


@pytest.mark.parametrize("keep", [1, 2, 4, 6, 7, 15, 29, 30, 99])
@pytest.mark.parametrize("clusters", [1, 6, 30])
def test_exactly_as_many_stay_and_nothing_is_lost(to_xp, to_numpy, keep, clusters):
    norms, labels = case(clusters=clusters)
    chosen = fold_clusters(to_xp(norms), to_xp(labels), keep)
    kept, folded = to_numpy(chosen.indices), to_numpy(chosen.folded)
    weights = to_numpy(chosen.fold_weights)
    assert len(kept) == min(keep, 30)
    assert np.array_equal(folded[kept], kept)
    assert set(folded.tolist()) == set(kept.tolist())
    if keep >= 30:
        assert (weights == 1.0).all()
        return
    for place in kept:
        members = np.flatnonzero(folded == place)
        if len(members) == 1 and weights[place] == 1.0:
            continue
        assert place == members[len(members) // 2]
        mean = np.full(len(members), 1 / len(members)) + (members == place)
        np.testing.assert_allclose(weights[members], mean)
        if keep >= len(set(labels.tolist())):
            assert len(set(labels[members].tolist())) == 1


def test_small_norms_stay_as_they_are(to_xp, to_numpy):
    """A cluster's kept tokens have smaller norms than those it folds."""
    norms, labels = case()
    chosen = fold_clusters(to_xp(norms), to_xp(labels), 15)
    alone = np.zeros(30, dtype=bool)
    kept = to_numpy(chosen.indices)
    alone[kept] = to_numpy(chosen.fold_weights)[kept] == 1.0
    assert alone.sum() == 15 - 6
    for label in range(6):
        own = labels == label
        if (own & alone).any():
            assert norms[own & alone].max() <= norms[own & ~alone].min()


def test_a_lone_token_is_doubled(to_xp, to_numpy):
    chosen = fold_clusters(to_xp([1.0, 2.0, 3.0]), to_xp([0, 1, 1]), 2)
    assert to_numpy(chosen.merge(to_xp([[1.0], [2.0], [4.0]]))).tolist() == [[2.0], [7.0]]


def test_norms_are_of_the_mean_over_heads(to_xp, to_numpy):
    keys = np.random.default_rng(0).normal(size=(3, 9, 4))
    visual = np.array([2, 5, 6])
    expected = np.linalg.norm(keys.mean(0)[visual], axis=-1)
    np.testing.assert_allclose(to_numpy(key_norms(to_xp(keys), to_xp(visual))), expected)


def test_the_average_over_layers_is_what_was_asked():
    for keep in (40, 64, 128, 192, 230, 270):
        method = ViTCoP(keep=keep)
        entered = method.budget(576)
        cuts = [Cut(0, entered), *method.plan(Layout(32, (576,))), Cut(32, 0)]
        layers = sum(one.keep * (two.after - one.after) for one, two in pairwise(cuts))
        assert abs(layers / 32 - keep) <= 1
    assert ViTCoP(keep=576).plan(Layout(32, (576,))) == ()
    assert ViTCoP(keep=300).budget(576) == 300
    # The least a layer can hold: everything in the first two, then one token.
    assert [c.keep for c in ViTCoP(keep=1).plan(Layout(32, (576,)))] == [1]


def test_first_stage_tells_clusters_of_the_kept(image, to_xp, to_numpy):
    tokens = image(batch=(2,), convert=to_xp)
    chosen = ViTCoP(keep=3).select(tokens)
    clusters, kept = to_numpy(chosen.info["cluster"]), to_numpy(chosen.sorted())
    assert kept.shape == (2, 18)
    host = image(batch=(2,))
    for row in range(2):
        assert (np.flatnonzero(clusters[row] >= 0) == kept[row]).all()
        places = np.stack([kept[row] // 6, kept[row] % 6], -1) / 6
        expected = slow_labels(host.keys[row][kept[row]], places, 0.18, 8.0, 0.6)
        assert clusters[row][kept[row]].tolist() == expected


def test_clusters_of_two_images_are_not_one(image, to_xp, to_numpy):
    first, second = (image(seed=seed, convert=to_xp) for seed in (0, 1))
    method = ViTCoP(keep=6)
    chosen = tuple(method.select(each) for each in (first, second))
    layout = Layout(32, (36, 36), chosen=chosen)
    place = np.concatenate([to_numpy(chosen[0].sorted()), 36 + to_numpy(chosen[1].sorted())])
    dice = np.random.default_rng(5)
    keys, hidden = dice.normal(size=(2, 40, 4)), dice.normal(size=(40, 3))
    visual = np.arange(2, 38)
    sight = Sight(
        length=40,
        visual=to_xp(visual),
        text=to_xp(np.array([38, 39])),
        place=to_xp(place),
        layout=layout,
        keys=to_xp(keys),
        hidden=to_xp(hidden),
    )
    fold, last = method.plan(layout)
    stay = method.decide(fold, sight)
    kept = to_numpy(stay.kept)
    assert len(kept) == fold.keep
    assert stay.states.shape == (fold.keep, 3)
    labels = np.concatenate([to_numpy(each.info["cluster"]) for each in chosen])
    labels = np.where(np.arange(72) < 36, labels, labels + 100)[place]
    norms = np.linalg.norm(keys.mean(0)[visual], axis=-1)
    expected = fold_clusters(norms, labels, fold.keep)
    assert kept.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(to_numpy(stay.states), expected.merge(hidden[visual]))
    dropped = method.decide(Cut(22, last.keep), sight)
    assert dropped.states is None
    shortest = np.sort(np.argsort(norms, kind="stable")[: last.keep])
    assert to_numpy(dropped.kept).tolist() == shortest.tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fold_clusters(np.ones(3), np.ones(2), 1), "labels: expected one for each"),
        (lambda: fold_clusters(np.ones(3), np.ones(3), 0), "keep: expected a count"),
        (lambda: density_clusters(np.ones((3, 2)), np.ones((3, 2)), share=0.0), "share: expected"),
        (lambda: ViTCoP(after=(22, 2)), "after: expected two ascending"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
