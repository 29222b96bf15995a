"""Groups by principal directions, thinned out, with shares of the budget."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.prunesid import (
    group_budgets,
    grouped_tokens,
    principal_loadings,
    thinned,
)
from secateur.testing import assert_selection


@pytest.mark.parametrize("d", [9, 31])
def test_loadings_are_those_of_singular_vectors(d, image, to_xp, to_numpy):
    host = image(n=20, d=d, batch=(2,)).features
    ours = to_numpy(principal_loadings(to_xp(host), 4))
    for x, loadings in zip(host, ours, strict=True):
        rows = 1 / (1 + np.exp(-x))
        rows = rows - rows.mean(axis=1, keepdims=True)
        directions = np.linalg.svd(rows)[0]
        np.testing.assert_allclose(loadings, np.abs(directions[:, :4]), atol=1e-9)


def test_directions_that_carry_nothing_load_nothing(to_xp, to_numpy):
    x = np.repeat(np.array([[3.0, -3.0, 1.0], [1.0, 2.0, -4.0]]), 3, axis=0)
    loadings = to_numpy(principal_loadings(to_xp(x), 5))
    assert loadings.shape == (6, 3)
    assert (loadings[:, 2] == 0).all()
    assert (to_numpy(principal_loadings(to_xp(np.ones((4, 1))), 2)) == 0).all()


def test_taken_tokens_are_unlike_and_cover_the_rest(image):
    dice = np.random.default_rng(0)
    labels, scores = dice.integers(0, 4, 40), dice.normal(size=40)
    alike = dice.random((40, 40)) < 0.3
    alike |= alike.T | np.eye(40, dtype=bool)
    groups = thinned(labels, scores, alike, 5)
    assert groups.taken[4] == len(groups.members[4]) == 0
    for each in range(4):
        members, count = groups.members[each], groups.taken[each]
        assert sorted(members.tolist()) == np.flatnonzero(labels == each).tolist()
        taken, rest = members[:count], members[count:]
        assert not (alike[np.ix_(taken, taken)] & ~np.eye(count, dtype=bool)).any()
        for token in rest:
            assert any(alike[token, t] and scores[t] >= scores[token] for t in taken)
        assert (np.diff(scores[taken]) <= 0).all()
        assert (np.diff(scores[rest]) <= 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_budgets_spend_all_and_fit(seed):
    dice = np.random.default_rng(seed)
    sizes = dice.integers(0, 30, 8)
    taken = np.where(sizes > 0, 1 + dice.integers(0, 30, 8) % np.maximum(sizes, 1), 0)
    for k in (1, 5, int(sizes.sum()) // 2, int(sizes.sum())):
        for class_token in (0, 1):
            budget = group_budgets(taken, sizes, k, class_token=class_token)
            assert budget.sum() == k
            assert (budget >= 0).all()
            assert (budget <= sizes).all()


@pytest.mark.parametrize("model", ["llava", "qwen"])
@pytest.mark.parametrize("k", [1, 3, 16, 36])
def test_a_batch(image, to_xp, to_numpy, model, k):
    tokens = image(batch=(2,), convert=to_xp)
    chosen = sc.PruneSID(keep=k, model=model).select(tokens)
    assert_selection(chosen, k)
    assert to_numpy(chosen.info["budget"]).sum(axis=-1).tolist() == [k, k]


def test_near_duplicates_are_kept_last():
    # Two bundles of nearly equal tokens: one of each is taken first.
    base = np.array([[4.0, -4.0, 0.0, 0.0], [0.0, 0.0, 4.0, -4.0]])
    x = np.repeat(base, 4, axis=0) + 1e-3 * np.random.default_rng(0).normal(size=(8, 4))
    tokens = sc.Tokens(features=x, attention=np.linspace(1.0, 0.3, 8))
    chosen = sc.PruneSID(keep=2, group=1).select(tokens)
    assert sorted(i // 4 for i in chosen.indices) == [0, 1]
    assert chosen.sorted().tolist() == [0, 4]


def test_the_states_before_the_projector_where_there_are_some(image):
    tokens = image()
    states = np.random.default_rng(3).normal(size=(36, 5))
    chosen = sc.PruneSID(keep=9).select(tokens.with_(states=states))
    expected = grouped_tokens(states, 9, tokens.attention)
    assert chosen.indices.tolist() == expected.indices.tolist()
    qwen = [
        sc.PruneSID(keep=9, model="qwen").select(each)
        for each in (tokens, tokens.with_(states=states, attention=None))
    ]
    assert qwen[0].indices.tolist() == qwen[1].indices.tolist()


def test_what_qwens_program_keeps():
    theirs = sc.published("prunesid", keep=128, model="qwen")
    assert [theirs.budget(n) for n in (10, 16, 100, 576, 1000)] == [10, 16, 22, 128, 222]
    assert theirs.budget(200, frames=2) == 44
    assert sc.PruneSID(keep=128, model="qwen").budget(1000) == 128
    assert sc.published("prunesid", keep=0.25, model="qwen").budget(100) == 25


def test_bad_settings():
    for settings, words in (
        ({"model": "clip"}, "model: expected one of llava, qwen"),
        ({"group": 0}, "group: expected a whole number of at least 1"),
        ({"scale": 0.0}, "scale: expected a finite number above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            sc.PruneSID(**settings)
