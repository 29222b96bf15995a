"""Foreground by values, coordinate tokens by rotary tables."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.core.acts import Cut, Layout, Sight
from secateur.core.methods.ivcprune import IVCPrune, coordinate_tokens, value_and_place


def tables(length, width=8):
    angles = np.arange(length)[:, None] / 100.0 ** (np.arange(width) % 4 / 4)
    return np.cos(angles), np.sin(angles)


def prompt(n=40, before=3, behind=9, heads=2, seed=0):
    total = before + n + behind
    values = np.random.default_rng(seed).normal(size=(heads, total, 5))
    visual, text = np.arange(before, before + n), np.arange(before + n, total)
    return values, *tables(total), visual, text


def slow(values, cosine, sine, visual, text, keep, seeds, coordinates, foreground):
    heads, total, d = values.shape
    columns = np.arange(total) if foreground is not None else visual
    met = np.zeros((total, len(columns)))
    for v in values:
        logits = v @ v[columns].T / np.sqrt(d)
        share = np.exp(logits - logits.max(1, keepdims=True))
        met += share / share.sum(1, keepdims=True) / heads
    if foreground is not None:
        met = met[:, visual]

    def top(scores, k):
        return np.argsort(-scores, kind="stable")[:k].tolist()

    seed = top(met[text].mean(0), seeds)
    scores = met[np.concatenate([visual[seed], text])].mean(0)
    anchors = [top(t[visual].mean(-1).round(12), coordinates) for t in (cosine, sine)]
    if foreground is None:
        kept = {*anchors[0], *anchors[1]}
        for j in top(scores, len(visual)):
            if len(kept) < keep:
                kept.add(j)
    else:
        kept = {*seed, *anchors[0], *anchors[1], *top(scores, foreground)}
    return sorted(kept), sorted(seed), [*sorted(anchors[0]), *sorted(anchors[1])]


@pytest.mark.parametrize("foreground", [None, 0, 8])
@pytest.mark.parametrize(("seeds", "coordinates"), [(1, 2), (3, 0), (40, 5)])
def test_it_is_its_definition(to_xp, to_numpy, foreground, seeds, coordinates):
    values, cosine, sine, visual, text = prompt()
    keep = 20 if foreground is None else 40
    parts = value_and_place(
        *(to_xp(x) for x in (values, cosine, sine)),
        visual=to_xp(visual),
        text=to_xp(text),
        keep=keep,
        seeds=seeds,
        coordinates=coordinates,
        foreground=foreground,
    )
    kept, seed, anchors = slow(
        values, cosine, sine, visual, text, keep, seeds, coordinates, foreground
    )
    assert to_numpy(parts.kept).tolist() == kept
    assert to_numpy(parts.seeds).tolist() == seed
    assert to_numpy(parts.coordinates).tolist() == anchors


def test_several_axes_are_averaged_and_ties_go_to_the_lowest(to_xp, to_numpy):
    """Places (i, j) and (j, i) of a grid have the same mean."""
    height, width = (x.ravel() for x in np.mgrid[:4, :4])
    still = np.zeros(16, dtype=int)
    cosine, sine = (
        np.stack([table[axis] for axis in (still, height, width)]) for table in tables(4)
    )
    found = to_numpy(coordinate_tokens(to_xp(cosine), to_xp(sine), 2))
    mean = sine.mean((0, 2)).round(12)
    order = np.argsort(-mean, kind="stable")
    assert found[2:].tolist() == sorted(order[:2].tolist())
    assert found[:2].tolist() == [0, 1]  # (0, 1) before (1, 0)


def test_no_more_than_asked_for_stays(to_xp, to_numpy):
    values, cosine, sine, visual, text = prompt()
    for foreground in (None, 30):
        parts = value_and_place(
            *(to_xp(x) for x in (values, cosine, sine)),
            visual=to_xp(visual),
            text=to_xp(text),
            keep=7,
            seeds=2,
            coordinates=3,
            foreground=foreground,
        )
        kept = set(to_numpy(parts.kept).tolist())
        assert len(kept) == 7
        assert set(to_numpy(parts.coordinates).tolist()) <= kept


def test_the_method_asks_with_the_text_behind_the_image(to_xp, to_numpy):
    values, cosine, sine, visual, _ = prompt()
    method = IVCPrune(keep=20, seeds=0.05, coordinates=0.1)
    total = values.shape[1]

    def kept(mask):
        sight = Sight(
            length=total,
            visual=to_xp(visual),
            text=to_xp(np.arange(45, total)),
            mask=None if mask is None else to_xp(mask),
            values=to_xp(values),
            rotary=(to_xp(cosine), to_xp(sine)),
        )
        return to_numpy(method.decide(Cut(16, 20), sight).kept).tolist()

    for last in (total, total - 3):
        text = np.arange(43, last)
        expected, _, _ = slow(values, cosine, sine, visual, text, 20, 2, 4, None)
        assert kept(None if last == total else np.arange(total) < last) == expected


def test_plans():
    layout = Layout(28, (90, 10), earliest=1)
    assert IVCPrune().plan(layout) == (Cut(14, 50),)
    assert IVCPrune(keep=1.0).plan(layout) == ()
    llava = IVCPrune(keep=1.0, coordinates=0.05, foreground=0.2)
    assert llava.plan(Layout(32, (80,))) == (Cut(16, 1 + 2 * 4 + 16),)
    assert IVCPrune(published=True).plan(Layout(32, (47,))) == (Cut(16, 24),)
    assert IVCPrune().plan(Layout(32, (47,))) == (Cut(16, 23),)


@pytest.mark.parametrize("axes", [(0, 3), (3, 0)])
def test_nobody_to_ask_or_to_keep_is_refused(axes):
    values, cosine, sine, visual, text = prompt()
    with pytest.raises(ValueError, match="visual and text: expected the position of at least one"):
        value_and_place(
            values,
            cosine,
            sine,
            visual=visual[: axes[0]],
            text=text[: axes[1]],
            keep=2,
            seeds=1,
            coordinates=1,
        )
