"""What a shared budget obeys, whatever the scores."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

import secateur as sc
from secateur.testing import SCALES

seeds = st.integers(0, 2**32 - 1)


@st.composite
def households(draw):
    """Scores with floors and ceilings, and a total between their sums."""
    n = draw(st.integers(1, 8))
    dice = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["plain", "zeros", "equal", "whole", "extreme"]))
    scores = dice.random(n)
    if kind == "zeros":
        scores *= dice.random(n) < 0.5
    elif kind == "equal":
        scores = np.full(n, scores[0])
    elif kind == "whole":
        scores = dice.integers(0, 4, n).astype(float)
    elif kind == "extreme":
        scores *= dice.choice([*SCALES, 1e-200, 1e-310], size=n)
    low = dice.integers(0, 4, n)
    high = low + dice.integers(0, 30, n)
    assume(high.sum() >= 1)
    total = draw(st.integers(max(1, int(low.sum())), int(high.sum())))
    return scores, total, low, high


@given(households())
def test_the_whole_budget_is_spent_within_floors_and_ceilings(household):
    scores, total, low, high = household
    counts = sc.allocate(scores, total, minimum=low, maximum=high)
    assert counts.sum() == total
    assert (counts >= low).all()
    assert (counts <= high).all()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.integers(1, 500), st.data())
def test_larger_scores_never_get_less(scores, total, data):
    floor = data.draw(st.integers(0, total // len(scores)))
    ceiling = data.draw(st.one_of(st.none(), st.integers(-(-total // len(scores)), total)))
    counts = sc.allocate(np.array(scores), total, minimum=floor, maximum=ceiling)
    order = np.argsort(scores, kind="stable")
    larger = np.diff(np.array(scores)[order]) > 0
    assert (np.diff(counts[order])[larger] >= 0).all()
    assert abs(counts[np.array(scores) == max(scores)] - counts.max()).max() <= 1


@given(households(), st.floats(1.0, 100.0), st.data())
def test_a_part_whose_score_rises_never_gets_less(household, factor, data):
    scores, total, low, high = household
    part = data.draw(st.integers(0, len(scores) - 1))
    raised = scores.copy()
    raised[part] = raised[part] * factor + 1e-3 * scores.max()
    before = sc.allocate(scores, total, minimum=low, maximum=high)
    after = sc.allocate(raised, total, minimum=low, maximum=high)
    assert after[part] >= before[part]


@given(st.integers(1, 8), seeds, st.integers(1, 2000))
def test_shares_are_within_a_token_of_proportional(n, seed, total):
    scores = np.random.default_rng(seed).random(n) + 1e-3
    counts = sc.allocate(scores, total, minimum=0)
    assert (abs(counts - total * scores / scores.sum()) < 1 + 1e-6).all()


@given(st.integers(1, 8), seeds, st.integers(8, 2000))
def test_the_published_rule_loses_less_than_a_token_a_part(n, seed, total):
    scores = np.random.default_rng(seed).random(n) + 1e-2
    counts = sc.allocate(scores, total, rounding="floor")
    assert (counts >= 1).all()
    assert total - n - 1 < counts.sum() <= total + n
