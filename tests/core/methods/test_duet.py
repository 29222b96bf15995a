"""A pool that merges, and asking tokens."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.core.acts import Cut, Layout, Sight
from secateur.core.methods.duet import DUET, asked_tokens, pooled_merge


def hat(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow(x, attention, keys, dominant, contextual, width):
    order = np.argsort(-attention, kind="stable").tolist()
    merged = {i: x[i] for i in order[:dominant]}
    rest = order[dominant:]
    pool = rest[: max(1, width * contextual)] if contextual else []
    step = max(1, len(pool) // max(1, contextual))
    anchors = pool[::step][:contextual]
    joined = {a: [] for a in anchors}
    for i in pool:
        if i not in anchors:
            near = [float(hat(keys[i]) @ hat(keys[a])) for a in anchors]
            joined[anchors[int(np.argmax(near))]].append(i)
    for a, members in joined.items():
        merged[a] = x[a] + (np.mean(x[members], axis=0) if members else 0.0)
    return order[:dominant] + anchors, merged


@pytest.mark.parametrize(
    ("dominant", "contextual", "width"),
    [(1, 0, 4), (10, 3, 4), (10, 3, 1), (20, 5, 4), (0, 4, 3), (30, 6, 4), (36, 0, 4)],
)
def test_it_is_its_definition(image, to_xp, to_numpy, dominant, contextual, width):
    host, tokens = image(batch=(2,)), image(batch=(2,), convert=to_xp)
    chosen = pooled_merge(
        tokens.attention, tokens.keys, dominant=dominant, contextual=contextual, width=width
    )
    merged = to_numpy(chosen.merge(tokens.features))
    for row in range(2):
        kept, expected = slow(
            host.features[row], host.attention[row], host.keys[row], dominant, contextual, width
        )
        assert to_numpy(chosen.indices)[row].tolist() == kept
        together = np.stack([expected[i] for i in sorted(kept)])
        np.testing.assert_allclose(merged[row], together, rtol=1e-12, atol=1e-14)


def test_what_is_in_no_pool_is_dropped(image, to_numpy):
    tokens = image()
    chosen = pooled_merge(tokens.attention, tokens.keys, dominant=5, contextual=2, width=3)
    assert (to_numpy(chosen.folded) >= 0).sum() == 5 + 6
    assert (np.asarray(chosen.fold_weights)[np.asarray(chosen.folded) < 0] == 0).all()


def heads(seed=0, total=20):
    dice = np.random.default_rng(seed)
    return dice.normal(size=(4, total, 6)), dice.normal(size=(2, total, 6))


@pytest.mark.parametrize("causal", [True, False])
def test_asking_tokens(to_xp, to_numpy, causal):
    queries, keys = heads()
    visual, asking = np.arange(3, 15), np.array([16, 18])
    logits = queries @ np.repeat(keys, 2, axis=0).transpose(0, 2, 1) / np.sqrt(6)
    if causal:
        logits = np.where(np.tri(20, dtype=bool), logits, -np.inf)
    share = np.exp(logits)
    share /= share.sum(-1, keepdims=True)
    scores = share.mean(0)[asking].mean(0)[visual]
    for keep in (0, 1, 5, 12, 99):
        found = asked_tokens(
            to_xp(queries),
            to_xp(keys),
            visual=to_xp(visual),
            asking=to_xp(asking),
            keep=keep,
            causal=causal,
        )
        expected = np.sort(np.argsort(-scores, kind="stable")[:keep])
        assert to_numpy(found).tolist() == expected.tolist()


def test_the_method_asks_with_all_behind_the_image(to_xp, to_numpy):
    queries, keys = heads()
    visual = np.arange(3, 15)
    for model in ("llava", "qwen"):
        sight = Sight(
            length=20,
            visual=to_xp(visual),
            text=to_xp(np.arange(15, 20)),
            queries=to_xp(queries),
            keys=to_xp(keys),
        )
        expected = asked_tokens(
            queries, keys, visual=visual, asking=np.arange(15, 20), keep=4, causal=model == "llava"
        )
        found = DUET(model=model).decide(Cut(16, 4), sight).kept
        assert to_numpy(found).tolist() == expected.tolist()


def test_plans_count_from_what_entered(image):
    tokens = image()
    chosen = DUET(keep=15).select(tokens)
    layout = Layout(32, (36,), chosen=(chosen,))
    assert DUET(keep=15).plan(layout) == (Cut(16, 7), Cut(24, 0))
    assert DUET(keep=15, shares=(0.5, 0.25)).plan(layout) == (Cut(16, 7), Cut(24, 3))
    assert DUET(keep=36).plan(Layout(32, (36,))) == ()
    assert DUET(keep=0.7).plan(Layout(28, (20, 10))) == (Cut(14, 10), Cut(21, 0))


def test_the_programs_counts_on_qwen():
    """65 % dominant and 5 % contextual tokens."""
    for size in (120, 240, 400):
        chosen = DUET(keep=0.7)
        anchors = int(chosen.budget(size) * chosen.contextual + 1e-9)
        assert (chosen.budget(size) - anchors, anchors) == (int(0.65 * size), int(0.05 * size))


def test_what_the_program_does_beside():
    ours, theirs = DUET(), DUET(published=True)
    assert (ours.looks_ahead, ours.renumbers) == (False, False)
    assert (theirs.looks_ahead, theirs.renumbers) == (True, True)
    assert not DUET(published=True, model="qwen").renumbers


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pooled_merge(np.ones(3), np.ones((3, 2)), dominant=3, contextual=1),
            "dominant and contextual: expected 1 to 3",
        ),
        (lambda: DUET(shares=(0.5,)), "shares: expected one for each"),
        (lambda: DUET(after=(0.75, 0.5)), "after: expected ascending"),
        (lambda: DUET(shares=(0.2, 0.5)), "shares: expected descending"),
        (lambda: DUET(model="else"), "model: expected one of"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
