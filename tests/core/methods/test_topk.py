"""Top-k by attention."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def test_the_highest_in_order_ties_to_the_lowest_index(to_xp, to_numpy):
    attention = np.array([[0.1, 0.4, 0.1, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    tokens = sc.Tokens(features=to_xp(np.ones((2, 5, 3))), attention=to_xp(attention))
    chosen = sc.TopK(keep=3).select(tokens)
    assert to_numpy(chosen.indices).tolist() == [[1, 3, 0], [0, 1, 2]]
    np.testing.assert_array_equal(to_numpy(chosen.scores), attention)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_it_keeps_the_largest_sum_of_attention(image, dtype):
    tokens = image(n=100)
    tokens = tokens.with_(attention=tokens.attention.astype(dtype))
    chosen = sc.TopK(keep=20).select(tokens)
    largest = np.sort(tokens.attention)[-20:]
    np.testing.assert_array_equal(np.sort(tokens.attention[chosen.indices]), largest)


def test_it_needs_attention_and_refuses_what_is_none():
    tokens = sc.Tokens(features=np.ones((4, 3)))
    with pytest.raises(sc.MissingInputError, match=r"TopK needs tokens\.attention"):
        sc.TopK(keep=2).select(tokens)
    with pytest.raises(ValueError, match="attention: expected no negative numbers"):
        sc.TopK(keep=2).select(tokens.with_(attention=np.array([0.1, -0.1, 0.5, 0.5])))
