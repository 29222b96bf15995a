"""Selections of rows of different lengths, and what one does with them."""

import dataclasses
import math
import pickle

import numpy as np
import pytest

from secateur.core.selection import Selection, from_mask, stack
from secateur.testing import assert_selection


@pytest.fixture
def ragged(to_xp):
    """Two rows of five tokens: 4, 0, 2 kept in one, 3 in the other."""
    return Selection(
        to_xp(np.array([[4, 0, 2], [3, -1, -1]])),
        to_xp(np.array([3, 1])),
        5,
        gains=to_xp([[3.0, 2.0, 1.0], [5.0, 0.0, 0.0]]),
        value=to_xp([6.0, 5.0]),
        upper_bound=to_xp([8.0, 0.0]),
        scores=to_xp(np.arange(10.0).reshape(2, 5)),
        info={"filled": to_xp(np.array([1, 0])), "name": "x"},
    )


def test_shapes_and_order(ragged, to_numpy):
    assert_selection(ragged, [3, 1])
    assert ragged.batch_shape == (2,)
    assert to_numpy(ragged.sorted()).tolist() == [[0, 2, 4], [3, -1, -1]]
    assert to_numpy(ragged.mask()).astype(int).tolist() == [[1, 0, 1, 0, 1], [0, 0, 0, 1, 0]]
    assert to_numpy(ragged.mask(7)).shape == (2, 7)
    assert to_numpy(ragged.mask(7)).sum() == 4


def test_guarantee_is_a_share_and_one_where_the_bound_is_zero(ragged, to_numpy):
    assert to_numpy(ragged.guarantee).tolist() == [0.75, 1.0]
    above = dataclasses.replace(ragged, value=ragged.value * 2)
    assert to_numpy(above.guarantee).tolist() == [1.0, 1.0]
    assert dataclasses.replace(ragged, upper_bound=None).guarantee is None
    assert dataclasses.replace(ragged, value=None).guarantee is None


def test_gather_takes_kept_tokens_in_ascending_order(ragged, to_xp, to_numpy):
    x = np.arange(30.0).reshape(2, 5, 3)
    got = to_numpy(ragged.gather(to_xp(x)))
    np.testing.assert_array_equal(got[0], x[0, [0, 2, 4]])
    np.testing.assert_array_equal(got[1, 0], x[1, 3])
    assert not got[1, 1:].any()
    ordered = to_numpy(ragged.gather(to_xp(x), ordered=True))
    np.testing.assert_array_equal(ordered[0], x[0, [4, 0, 2]])
    scores = to_numpy(ragged.gather(to_xp(x[..., 0]), axis=-1))
    assert scores.tolist() == [[0.0, 6.0, 12.0], [24.0, 0.0, 0.0]]
    deep = to_numpy(ragged.gather(to_xp(x.reshape(2, 5, 3, 1)), axis=1))
    np.testing.assert_array_equal(deep[..., 0], got)


def test_gather_without_a_batch(to_xp, to_numpy):
    one = Selection.of(to_xp(np.array([2, 0])), 3)
    assert to_numpy(one.gather(to_xp([[1.0], [2.0], [3.0]]))).tolist() == [[1.0], [3.0]]


def test_gather_across_libraries(to_xp, to_numpy):
    torch = pytest.importorskip("torch")
    one = Selection.of(to_xp(np.array([2, 0])), 3)
    x = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    got = one.gather(x)
    assert got.tolist() == [[1.0], [3.0]]
    got.sum().backward()
    assert x.grad.tolist() == [[1.0], [0.0], [1.0]]


def test_gather_refuses_what_does_not_fit(ragged, to_xp):
    with pytest.raises(ValueError, match=r"x: expected 5 tokens along axis 1, got shape \(2, 4, 3"):
        ragged.gather(to_xp(np.ones((2, 4, 3))))
    with pytest.raises(ValueError, match=r"x: expected leading axes \(2,\) before the tokens, got"):
        ragged.gather(to_xp(np.ones((5, 3))))
    with pytest.raises(ValueError, match=r"x: expected leading axes \(2,\)"):
        ragged.gather(to_xp(np.ones((3, 5, 3))))


def test_mask_refuses_fewer_places_than_tokens(ragged):
    with pytest.raises(ValueError, match="n: expected at least the 5 tokens chosen from, got 4"):
        ragged.mask(4)


def test_masks_of_many_picks_are_made_in_slices(to_xp, to_numpy):
    picks = np.random.default_rng(0).permutation(3000)[:2500]
    mask = to_numpy(Selection.of(to_xp(picks), 3000).mask())
    assert mask.sum() == 2500
    assert mask[picks].all()


def test_rows_are_without_padding(ragged, to_numpy):
    row = ragged.row(1)
    assert to_numpy(row.indices).tolist() == [3]
    assert to_numpy(row.gains).tolist() == [5.0]
    assert float(row.value) == 5.0
    assert to_numpy(row.scores).tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
    assert int(row.info["filled"]) == 0
    assert row.info["name"] == "x"
    assert_selection(row, 1)
    alone = row.row()
    assert to_numpy(alone.indices).tolist() == [3]
    with pytest.raises(ValueError, match=r"position: expected one index for each of \(2,\), got"):
        ragged.row()


def test_rows_stack_to_what_they_were_taken_from(ragged, to_numpy):
    rows = [dataclasses.replace(ragged.row(b), info={"filled": 1 - b}) for b in range(2)]
    again = stack(rows, (2,))
    for name in ("indices", "count", "gains", "value", "upper_bound", "scores"):
        np.testing.assert_array_equal(
            to_numpy(getattr(again, name)), to_numpy(getattr(ragged, name))
        )
    assert to_numpy(again.info["filled"]).tolist() == [1, 0]
    assert again.size == 5
    assert stack(rows[:1], ()) is rows[0]
    square = stack(rows * 2, (2, 2))
    assert square.indices.shape == (2, 2, 3)


def test_stacking_leaves_out_what_some_rows_lack(ragged):
    rows = [ragged.row(0), dataclasses.replace(ragged.row(1), gains=None)]
    rows = [dataclasses.replace(row, info={}) for row in rows]
    assert stack(rows, (2,)).gains is None


def test_from_mask_lists_by_order_or_index(to_xp, to_numpy):
    mask = to_xp(np.array([[True, False, True, True], [False, False, True, False]]))
    plain = from_mask(mask)
    assert to_numpy(plain.indices).tolist() == [[0, 2, 3], [2, -1, -1]]
    assert to_numpy(plain.count).tolist() == [3, 1]
    for dtype in ("float32", "int64"):
        ordered = from_mask(mask, to_xp([[1, 9, 5, 7], [9, 9, 1, 9]], dtype), info={"a": 1})
        assert to_numpy(ordered.indices).tolist() == [[3, 2, 0], [2, -1, -1]]
        assert ordered.info == {"a": 1}
    assert from_mask(mask & (to_xp(np.zeros(4)) > 0)).indices.shape == (2, 0)
    assert from_mask(to_xp(np.zeros((0, 4), bool))).indices.shape == (0, 0)


def test_merge_adds_what_was_folded_in(to_xp, to_numpy):
    x = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [4.0, 0.0]])
    chosen = Selection(
        to_xp(np.array([2, 0])),
        to_xp(np.asarray(2)),
        4,
        folded=to_xp(np.array([0, 2, 2, -1])),
        fold_weights=to_xp([1.0, 0.5, 0.25, 9.0]),
    )
    assert to_numpy(chosen.merge(to_xp(x))).tolist() == [[1.0, 0.0], [0.5, 1.0]]
    single = chosen.merge(to_xp(x.astype(np.float32)))
    assert to_numpy(single).dtype == np.float32
    plain = dataclasses.replace(chosen, folded=None)
    assert to_numpy(plain.merge(to_xp(x))).tolist() == [[1.0, 0.0], [2.0, 2.0]]


def test_merge_of_padded_rows_gives_zeros_there(to_xp, to_numpy):
    chosen = Selection(
        to_xp(np.array([[0, 1], [1, -1]])),
        to_xp(np.array([2, 1])),
        2,
        folded=to_xp(np.array([[0, 1], [-1, 1]])),
        fold_weights=to_xp(np.ones((2, 2))),
    )
    x = np.arange(1.0, 9.0).reshape(2, 2, 2)
    assert to_numpy(chosen.merge(to_xp(x))).tolist() == [[[1, 2], [3, 4]], [[7, 8], [0, 0]]]


def test_merge_across_libraries(to_xp):
    torch = pytest.importorskip("torch")
    chosen = Selection(
        to_xp(np.array([1])),
        to_xp(np.asarray(1)),
        2,
        folded=to_xp(np.array([1, 1])),
        fold_weights=to_xp([0.5, 1.0]),
    )
    assert chosen.merge(torch.tensor([[2.0], [3.0]])).tolist() == [[4.0]]


def test_selections_print_what_they_are(ragged, to_xp):
    assert repr(ragged) == "Selection((2,) rows of 1 to 3 of 5 tokens, name=x)"
    row = dataclasses.replace(ragged.row(0), info={"filled": 1, "many": np.ones(3)})
    assert repr(row) == "Selection(3 of 5 tokens, value=6, guarantee=0.75, filled=1)"
    assert repr(Selection.of(to_xp(np.zeros((0, 2), int)), 5)) == (
        "Selection((0,) rows of 0 of 5 tokens)"
    )
    assert repr(Selection.of(to_xp(np.ones((3, 1), int)), 5)) == (
        "Selection((3,) rows of 1 of 5 tokens)"
    )


def test_selections_are_frozen_and_pickle():
    one = Selection.of(np.array([1, 0]), 3, value=np.float64(2.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.size = 4
    assert pickle.loads(pickle.dumps(one)).indices.tolist() == [1, 0]


def test_no_images(to_xp):
    none = Selection.of(to_xp(np.zeros((0, 2), dtype=np.int64)), 4)
    assert none.mask().shape == (0, 4)
    assert none.gather(to_xp(np.zeros((0, 4, 3)))).shape == (0, 2, 3)
    assert none.sorted().shape == (0, 2)


def test_an_unknown_bound_guarantees_nothing(to_xp):
    one = Selection.of(to_xp(np.array([0])), 1, value=to_xp(1.0), upper_bound=to_xp(math.inf))
    assert float(one.guarantee) == 0.0
