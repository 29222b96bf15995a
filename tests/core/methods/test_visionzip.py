"""Dominant and contextual tokens."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def hat(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow(x, attention, keys, k, contextual):
    """Kept tokens in order of picking, and the merged features of all tokens by index."""
    order = np.argsort(-attention, kind="stable").tolist()
    c = int(k * contextual + 1e-9)
    dominant = order[: k - c]
    rest = [i for i in range(len(x)) if i not in dominant]
    if c == 0:
        return dominant, {i: x[i] for i in dominant}
    targets = rest[:: len(rest) // c][:c]
    joined = {t: [] for t in targets}
    for i in rest:
        if i not in targets:
            closeness = [float(hat(keys[i]) @ hat(keys[t])) for t in targets]
            joined[targets[int(np.argmax(closeness))]].append(i)
    merged = {i: x[i] for i in dominant}
    for t, members in joined.items():
        merged[t] = x[t] + (np.mean(x[members], axis=0) if members else 0.0)
    return dominant + targets, merged


@pytest.mark.parametrize("contextual", [0.0, 10 / 64, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 7, 20, 36])
def test_it_is_its_definition(image, to_xp, to_numpy, k, contextual):
    host = image(batch=(2,))
    tokens = image(batch=(2,), convert=to_xp)
    chosen = sc.VisionZip(keep=k, contextual=contextual).select(tokens)
    merged = to_numpy(chosen.merge(tokens.features))
    for b in range(2):
        kept, expected = slow(host.features[b], host.attention[b], host.keys[b], k, contextual)
        assert to_numpy(chosen.indices)[b].tolist() == kept
        together = np.stack([expected[i] for i in sorted(kept)])
        np.testing.assert_allclose(merged[b], together, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("k", "contextual"), [(64, 10), (128, 20), (192, 30)])
def test_the_papers_settings(image, k, contextual):
    tokens = image(n=576, d=4)
    chosen = sc.VisionZip(keep=k).select(tokens)
    dominant = np.argsort(-tokens.attention, kind="stable")[: k - contextual]
    assert chosen.indices[: k - contextual].tolist() == dominant.tolist()
    targets = np.unique(chosen.folded[~chosen.mask()])
    assert len(chosen.indices) - len(dominant) == contextual
    assert set(targets) <= set(chosen.indices[k - contextual :].tolist())


def test_what_was_folded_adds_up(image):
    chosen = sc.VisionZip(keep=12).select(image())
    kept = chosen.mask()
    assert np.array_equal(chosen.folded[kept], np.flatnonzero(kept))
    # Each target gets its own weight 1, and 1 in all from those that joined it.
    for target in np.unique(chosen.folded[~kept]):
        assert chosen.fold_weights[chosen.folded == target].sum() == pytest.approx(2.0)


def test_without_contextual_tokens_the_rest_is_dropped(image):
    tokens = image()
    chosen = sc.VisionZip(keep=5, contextual=0.0).select(tokens)
    assert np.array_equal(chosen.folded < 0, ~chosen.mask())
    np.testing.assert_array_equal(chosen.merge(tokens.features), chosen.gather(tokens.features))


def test_it_needs_keys(image):
    with pytest.raises(sc.MissingInputError, match=r"VisionZip needs tokens\.keys"):
        sc.VisionZip().select(image().with_(keys=None))
    with pytest.raises(ValueError, match="contextual: expected a share"):
        sc.VisionZip(contextual=2.0)


def test_as_published_the_class_token_is_handed_on_first(to_xp, to_numpy):
    dice = np.random.default_rng(3)
    n, k, count = 40, 12, 4
    host = {"features": dice.normal(size=(n, 4)), "keys": dice.normal(size=(n, 5))}
    host |= {"states": dice.normal(size=(n, 6)), "attention": dice.random(n)}
    given = {name: to_xp(x) for name, x in host.items()}
    head = dice.normal(size=6)
    tokens = sc.Tokens(**given, class_state=to_xp(head))
    method = sc.published("visionzip", keep=k, contextual=count / k)
    chosen = method.select(tokens)
    dominant = np.sort(np.argsort(-host["attention"], kind="stable")[: k - count - 1])
    rest = np.setdiff1d(np.arange(n), dominant)
    targets = rest[:: len(rest) // count][:count]
    assert to_numpy(chosen.sorted()).tolist() == np.sort([*dominant, *targets]).tolist()
    unit = host["keys"] / np.linalg.norm(host["keys"], axis=1, keepdims=True)
    joined = (unit @ unit[targets].T).argmax(axis=1)
    expected = [head, *host["states"][dominant]]
    for place, target in enumerate(targets):
        own = [i for i in np.setdiff1d(rest, targets) if joined[i] == place]
        expected.append(host["states"][target] + host["states"][own].mean(axis=0))
    made = to_numpy(method.make(tokens, chosen))
    np.testing.assert_allclose(made, np.stack(expected), rtol=1e-12)
    # Without a class token all are patches, and by default it is left out.
    assert int(to_numpy(method.select(sc.Tokens(**given)).count)) == k
    ours = sc.VisionZip(keep=k, contextual=count / k)
    assert int(to_numpy(ours.select(tokens).count)) == k
    assert not ours.makes
