"""Merging inside the encoder."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.core.methods.tome import (
    ToMe,
    kth_matching,
    log_sizes,
    merge,
    merging_schedule,
    soft_matching,
)


def hat(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow(x, metric, r, sizes, class_token):
    """Groups as lists of old tokens, in the new order, and their weighted means."""
    t = len(x)
    r = min(r, (t - class_token) // 2)
    a, b = list(range(0, t, 2)), list(range(1, t, 2))
    cosine = hat(metric)[a] @ hat(metric)[b].T
    if class_token:
        cosine[0] = -np.inf
    order = np.argsort(-cosine.max(1), kind="stable").tolist()
    gone, stay = order[:r], order[r:]
    if class_token:
        stay = sorted(stay)
    groups = [[a[i]] for i in stay] + [[j] for j in b]
    for i in gone:
        groups[len(stay) + int(cosine[i].argmax())].append(a[i])
    means = [np.average(x[g], axis=0, weights=sizes[g]) for g in groups]
    return groups, np.stack(means)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize(("t", "r"), [(2, 1), (7, 2), (12, 6), (13, 99)])
def test_a_step_is_its_definition(to_xp, to_numpy, t, r, class_token):
    dice = np.random.default_rng(t + r)
    x, metric = dice.normal(size=(2, t, 5)), dice.normal(size=(2, t, 4))
    sizes = dice.integers(1, 9, size=(2, t)).astype(float)
    matching = soft_matching(to_xp(metric), r, class_token=class_token)
    merged = merge(matching, to_xp(x), to_xp(sizes))
    if min(r, (t - class_token) // 2) == 0:
        np.testing.assert_array_equal(to_numpy(merged.states), x)
        return
    for row in range(2):
        groups, means = slow(x[row], metric[row], r, sizes[row], class_token)
        np.testing.assert_allclose(to_numpy(merged.states)[row], means, rtol=1e-12)
        total = [sizes[row][group].sum() for group in groups]
        np.testing.assert_allclose(to_numpy(merged.sizes)[row], total)
        place = np.empty(t, dtype=int)
        for number, group in enumerate(groups):
            place[group] = number
        assert to_numpy(merged.group)[row].tolist() == place.tolist()


def test_what_merges_in_several_steps_is_the_mean_of_all(to_xp, to_numpy, xp):
    x = np.random.default_rng(0).normal(size=(17, 3))
    states, sizes, group = to_xp(x), None, None
    for r in (4, 0, 3, 2):
        merged = merge(soft_matching(states, r), states, sizes)
        states, sizes = merged.states, merged.sizes
        group = merged.group if group is None else xp.take(merged.group, group)
    place, counts = to_numpy(group), to_numpy(sizes)
    assert len(counts) == 17 - 4 - 3 - 2
    for token, state in enumerate(to_numpy(states)):
        np.testing.assert_allclose(state, x[place == token].mean(0), rtol=1e-12)
        assert counts[token] == (place == token).sum()


def test_nothing_to_merge_leaves_everything_in_place(to_xp, to_numpy):
    x = to_xp(np.random.default_rng(0).normal(size=(3, 1, 4)))
    for matching in (soft_matching(x, 5), kth_matching(x, 2)):
        merged = merge(matching, x)
        np.testing.assert_array_equal(to_numpy(merged.states), to_numpy(x))
        assert to_numpy(merged.group).tolist() == [[0]] * 3


def test_zeros_and_duplicates_are_ordinary(to_xp, to_numpy):
    x = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    merged = merge(soft_matching(to_xp(x), 2), to_xp(x))
    # 0 and 2 are exactly like 3; the zero vector is like nothing.
    assert to_numpy(merged.group).tolist() == [2, 1, 2, 2, 0, 3]
    assert np.isfinite(to_numpy(merged.states)).all()


def test_every_kth_lets_the_tail_merge_too(to_xp, to_numpy):
    x = np.random.default_rng(3).normal(size=(11, 4))
    merged = merge(kth_matching(to_xp(x), 4), to_xp(x))
    cosine = hat(x) @ hat(x[[3, 7]]).T
    expected = cosine.argmax(1)
    expected[[3, 7]] = [0, 1]
    assert to_numpy(merged.group).tolist() == expected.tolist()
    assert to_numpy(merged.sizes).sum() == 11


def test_proportional_attention_is_attention_to_the_unmerged(to_xp, to_numpy, xp):
    """A key of size s weighs as much as s equal keys."""
    logits, sizes = np.array([0.3, -1.0, 2.0]), np.array([1.0, 3.0, 2.0])
    shares = to_numpy(xp.exp(to_xp(logits) + log_sizes(to_xp(sizes))))
    several = np.exp(np.repeat(logits, sizes.astype(int)))
    np.testing.assert_allclose(shares / shares.sum(), np.exp(logits) * sizes / several.sum())


def test_half_precision_merges_in_single(to_xp, to_numpy, xp):
    x = np.random.default_rng(1).normal(size=(10, 4)).astype("float32")
    merged = merge(soft_matching(to_xp(x), 4), to_xp(x))
    assert str(merged.states.dtype).endswith("float32")
    assert str(merged.sizes.dtype).endswith("float32")


@pytest.mark.parametrize("inflect", [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize(("size", "keep"), [(576, 64), (576, 0.25), (256, 1), (10, 10), (1, 1)])
def test_a_plan_ends_at_what_is_kept(size, keep, inflect):
    removed = ToMe(keep=keep, inflect=inflect).removed(layers=24, size=size)
    left = size
    for gone in removed:
        assert 0 <= gone <= left // 2
        left -= gone
    assert left == ToMe(keep=keep).budget(size)


def test_few_layers_halve_as_far_as_they_can():
    assert ToMe(keep=1).removed(layers=3, size=64) == (32, 16, 8)
    assert ToMe(keep=1, r=5).removed(layers=4, size=64) == (5, 5, 5, 5)
    assert merging_schedule(1, 7) == (7,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soft_matching(np.ones((3, 2)), -1), "r: expected a whole number"),
        (lambda: soft_matching(np.ones(3), 1), "metric: expected shape"),
        (lambda: kth_matching(np.ones((3, 2)), 1), "every: expected a whole number"),
        (lambda: merge(soft_matching(np.ones((4, 2)), 1), np.ones((5, 2))), "states: expected"),
        (
            lambda: merge(soft_matching(np.eye(4), 1), np.eye(4), np.ones(3)),
            "sizes: expected shape",
        ),
        (lambda: merging_schedule(0, 3), "layers: expected a whole number"),
        (lambda: ToMe(inflect=2.0), "inflect: expected a number"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
