"""Conditional diversity."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import secateur as sc


def hat(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def relevance(space, wholes, sign):
    r = np.mean([sign * (hat(space) @ hat(g)) for g in wholes], axis=0)
    return (r - r.min() + 1e-6) / (r.max() - r.min() + 1e-6)


def slow(x, r, k):
    """Greedy by determinants worked out anew for every candidate."""
    kernel = r[:, None] * (hat(x) @ hat(x).T) * r
    kept = []
    while len(kept) < k:
        logs = [
            -np.inf
            if j in kept
            else np.linalg.slogdet(kernel[np.ix_([*kept, j], [*kept, j])]).logabsdet
            for j in range(len(x))
        ]
        kept.append(int(np.argmax(logs)))
    return kept, max(logs)


@pytest.mark.parametrize("sign", [-1, 1])
def test_it_is_its_definition(image, to_xp, to_numpy, sign):
    host = image(d=12, batch=(2,))
    chosen = sc.CDPruner(keep=8, sign=sign).select(image(d=12, batch=(2,), convert=to_xp))
    for b in range(2):
        r = relevance(host.features[b], [host.text_global], sign)
        kept, value = slow(host.features[b], r, 8)
        assert to_numpy(chosen.indices)[b].tolist() == kept
        np.testing.assert_allclose(to_numpy(chosen.scores)[b], r, rtol=1e-9)
        np.testing.assert_allclose(to_numpy(chosen.value)[b], value, rtol=1e-9)


def test_relevance_is_taken_in_the_space_of_the_text_and_averaged_over_texts(image):
    tokens = image(d=12)
    dice = np.random.default_rng(5)
    embeds, wholes = dice.normal(size=(36, 4)), [dice.normal(size=4), dice.normal(size=4)]
    chosen = sc.CDPruner(keep=8).select(tokens.with_(embeds=embeds, text_global=wholes))
    r = relevance(embeds, wholes, -1)
    np.testing.assert_allclose(chosen.scores, r, rtol=1e-9)
    assert chosen.indices.tolist() == slow(tokens.features, r, 8)[0]


def test_past_the_rank_the_lowest_open_tokens_follow():
    x = np.repeat(np.eye(3), 4, axis=0)
    g = np.array([0.2, 0.5, 0.9])
    chosen = sc.CDPruner(keep=6, sign=1).select(sc.Tokens(features=x, text_global=g))
    assert chosen.indices.tolist() == [8, 4, 0, 1, 2, 3]
    assert np.isneginf(chosen.gains[3:]).all()
    assert np.isneginf(chosen.value)


def test_it_needs_the_instruction():
    with pytest.raises(sc.MissingInputError, match=r"CDPruner needs tokens\.text_global"):
        sc.CDPruner(keep=2).select(sc.Tokens(features=np.ones((4, 3))))
    with pytest.raises(ValueError, match="sign: expected -1 or 1, got 0"):
        sc.CDPruner(sign=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_many_tokens_no_kernel_is_built(monkeypatch, dtype):
    dice = np.random.default_rng(3)
    x = dice.normal(size=(400, 24)).astype(dtype)
    tokens = sc.Tokens(features=x, text_global=x[5], frames=10)
    usual = sc.CDPruner(keep=30, over="video").select(tokens.with_(frames=None))
    monkeypatch.setattr("secateur.core.methods.cdpruner.SQUARE", 1000)
    few = sc.CDPruner(keep=30).select(tokens.with_(frames=None))
    assert few.indices.tolist()[:24] == usual.indices.tolist()[:24]  # as many as have volume
    tracemalloc.start()
    try:
        chosen = sc.CDPruner(keep=2, over="video").select(tokens)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert chosen.indices.tolist() == usual.indices.tolist()[:20]
    assert peak < x.shape[0] ** 2 * x.itemsize
