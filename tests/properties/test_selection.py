"""A selection says the same thing in each of its forms."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.selection import from_mask, stack
from secateur.testing import assert_selection


@st.composite
def masks(draw):
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    n = draw(st.integers(1, 9))
    dice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return dice.random((*batch, n)) < draw(st.sampled_from([0.0, 0.3, 1.0])), dice


@given(masks())
def test_masks_indices_and_rows_agree(drawn):
    mask, dice = drawn
    n, batch = mask.shape[-1], mask.shape[:-1]
    chosen = from_mask(mask, dice.random(mask.shape))
    assert_selection(chosen, mask.sum(-1))
    np.testing.assert_array_equal(chosen.mask(), mask)
    x = dice.normal(size=(*mask.shape, 2))
    gathered, ordered = chosen.gather(x), chosen.gather(x, ordered=True)
    for b in np.ndindex(*batch):
        row = chosen.row(*b)
        assert row.sorted().tolist() == np.nonzero(mask[b])[0].tolist()
        np.testing.assert_array_equal(gathered[b][: mask[b].sum()], x[b][mask[b]])
        np.testing.assert_array_equal(ordered[b][: mask[b].sum()], x[b][row.indices])
        assert not gathered[b][mask[b].sum() :].any()
        assert (chosen.sorted()[b][mask[b].sum() :] == -1).all()
    assert chosen.mask(n + 2)[..., n:].any() == np.False_


@given(masks())
def test_stacked_rows_are_the_batch(drawn):
    mask, dice = drawn
    chosen = from_mask(mask, dice.random(mask.shape), scores=dice.random(mask.shape))
    again = stack([chosen.row(*b) for b in np.ndindex(*mask.shape[:-1])], mask.shape[:-1])
    for name in ("indices", "count", "scores"):
        np.testing.assert_array_equal(getattr(again, name), getattr(chosen, name))
