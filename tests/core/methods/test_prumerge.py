"""Outliers, an even spread, and the merge."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def hat(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow(x, attention, keys, k, adaptive=False):
    """Kept tokens in order of picking, merged features by index, and how many outliers."""
    n = len(x)
    low, high = np.percentile(attention, [25, 75])
    m = int((attention > high + 1.5 * (high - low)).sum())
    if adaptive:
        k = min(k, max(1, 4 * m))
    important = np.argsort(-attention, kind="stable")[: min(m, k)].tolist()
    others = [i for i in range(n) if i not in important]
    extra = k - len(important)
    kept = important + [others[i * len(others) // extra] for i in range(extra)]
    merged = {i: x[i].copy() for i in kept}
    for i in set(range(n)) - set(kept):
        closeness = [float(hat(keys[i]) @ hat(keys[p])) for p in sorted(kept)]
        merged[sorted(kept)[int(np.argmax(closeness))]] += attention[i] * x[i]
    return kept, merged, len(important)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("k", [1, 2, 9, 23, 36])
def test_it_is_its_definition(image, to_xp, to_numpy, k, adaptive):
    host = image(batch=(3,))
    tokens = image(batch=(3,), convert=to_xp)
    chosen = sc.PruMergePlus(keep=k, adaptive=adaptive).select(tokens)
    merged = to_numpy(chosen.merge(tokens.features))
    for b in range(3):
        kept, expected, outliers = slow(
            host.features[b], host.attention[b], host.keys[b], k, adaptive
        )
        assert to_numpy(chosen.indices)[b][: len(kept)].tolist() == kept
        assert int(to_numpy(chosen.count)[b]) == len(kept)
        assert int(to_numpy(chosen.info["outliers"])[b]) == outliers
        together = np.stack([expected[i] for i in sorted(kept)])
        np.testing.assert_allclose(merged[b][: len(kept)], together, rtol=1e-12, atol=1e-14)


def test_simple_images_keep_fewer_when_outliers_decide():
    peaks = np.full((3, 100), 0.01)
    peaks[1, 50], peaks[2, 10:20] = 0.5, 0.5
    tokens = sc.Tokens(features=np.ones((3, 100, 4)), keys=np.ones((3, 100, 4)), attention=peaks)
    chosen = sc.PruMergePlus(keep=1.0, adaptive=True).select(tokens)
    assert chosen.count.tolist() == [1, 4, 40]
    assert sc.PruMergePlus(keep=16, adaptive=True).select(tokens).count.tolist() == [1, 4, 16]
    assert sc.PruMergePlus(keep=16).select(tokens).count.tolist() == [16, 16, 16]


def test_extras_lie_at_even_steps_when_nothing_stands_out():
    tokens = sc.Tokens(features=np.eye(12), keys=np.eye(12), attention=np.full(12, 1 / 12))
    assert sc.PruMergePlus(keep=4).select(tokens).indices.tolist() == [0, 3, 6, 9]


def test_more_outliers_than_the_budget_keeps_the_highest(image):
    attention = np.full(40, 0.001)
    attention[5:14] = np.arange(9, 0, -1)
    tokens = image(n=40).with_(attention=attention)
    assert sc.PruMergePlus(keep=4).select(tokens).indices.tolist() == [5, 6, 7, 8]


def test_it_needs_keys(image):
    with pytest.raises(sc.MissingInputError, match=r"PruMergePlus needs tokens\.keys"):
        sc.PruMergePlus().select(image().with_(keys=None))
    with pytest.raises(ValueError, match="adaptive: expected True or False, got 3"):
        sc.PruMergePlus(adaptive=3)


def plain(convert, n=60, seed=0):
    dice = np.random.default_rng(seed)
    attention = dice.random(n) / 100
    attention[[7, 20, 41]] = 0.3, 0.5, 0.4
    arrays = {"features": dice.normal(size=(n, 4)), "keys": dice.normal(size=(n, 5))}
    arrays |= {"states": dice.normal(size=(n, 6)), "attention": attention}
    return arrays, sc.Tokens(**{name: convert(x) for name, x in arrays.items()})


@pytest.mark.parametrize("adaptive", [False, True])
def test_without_plus_only_the_most_attended_stay(to_xp, to_numpy, adaptive):
    host, tokens = plain(to_xp)
    chosen = sc.PruMerge(keep=5, adaptive=adaptive).select(tokens)
    kept = np.argsort(-host["attention"], kind="stable")[: 3 if adaptive else 5]
    assert to_numpy(chosen.indices).tolist() == kept.tolist()
    assert int(to_numpy(chosen.info["outliers"])) == 3
    expected = host["features"][np.sort(kept)].copy()
    for i in set(range(60)) - set(kept.tolist()):
        near = int(np.argmax(hat(host["keys"][np.sort(kept)]) @ hat(host["keys"][i])))
        expected[near] += host["attention"][i] * host["features"][i]
    np.testing.assert_allclose(to_numpy(chosen.merge(tokens.features)), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_as_published_clusters_overlap_and_one_token_stands_for_the_rest(to_xp, to_numpy, name):
    host, tokens = plain(to_xp)
    method = sc.published(name)
    assert (method.keep, method.adaptive, method.makes) == (1.0, True, True)
    chosen = method.select(tokens)
    kept = [20, 41, 7]
    if name == "prumerge_plus":  # 60 / 3 outliers, by thirds, without the last token
        kept += [i for i in range(0, 59, 6) if i not in kept]
    assert to_numpy(chosen.indices).tolist() == kept
    expected = []
    for i in kept:
        closeness = hat(host["keys"]) @ hat(host["keys"][i])
        closeness[i] = -np.inf
        near = np.argsort(-closeness, kind="stable")[:32]
        share = host["attention"][near, None] * host["states"][near]
        expected.append(host["states"][i] + share.sum(axis=0))
    rest = np.setdiff1d(np.arange(60), kept)
    expected.append((host["attention"][rest, None] * host["states"][rest]).sum(axis=0))
    made = to_numpy(method.make(tokens, chosen))
    np.testing.assert_allclose(made, np.stack(expected), rtol=1e-12)


def test_as_published_a_limit_drops_the_spread_from_its_end(to_xp, to_numpy):
    _, tokens = plain(to_xp)
    chosen = sc.published("prumerge_plus", keep=6).select(tokens)
    assert to_numpy(chosen.indices).tolist() == [20, 41, 7, 0, 6, 12]
    assert to_numpy(sc.published("prumerge", keep=2).select(tokens).indices).tolist() == [20, 41]
