import numpy as np
import pytest

import secateur as sc


@pytest.fixture
def three():
    rng = np.random.default_rng(0)
    tokens = sc.Tokens(features=rng.normal(size=(3, 5, 4)), attention=rng.random((3, 5)))
    return sc.TopK(keep=2).select(tokens)


def test_masks_in_a_list_are_printed_by_their_shape():
    tokens = sc.Tokens(features=np.eye(4), text_mask=[True, False, True])
    assert repr(tokens) == "Tokens(features=(4, 4), text_mask=(3,))"


@pytest.mark.parametrize("place", [7, -4, "a", 1.5])
def test_a_row_that_is_not_there_is_refused(three, place):
    with pytest.raises(ValueError, match="position: expected one of the rows"):
        three.row(place)


@pytest.mark.parametrize(("x", "axis"), [(np.array(1.0), -2), (np.eye(5), 9), (np.eye(5), "a")])
def test_an_axis_that_is_not_there_is_refused(three, x, axis):
    with pytest.raises(ValueError, match="axis: expected one that runs over the tokens"):
        three.gather(x, axis)


def test_budgets_may_be_a_range_and_are_refused_as_such():
    f = sc.FacilityLocation.from_features(np.eye(6))
    with pytest.raises(ValueError, match="k: expected one budget for each of the rows"):
        sc.maximize(f, range(1))


def test_the_smallest_epsilon_asks_all_tokens():
    rng = np.random.default_rng(0)
    f = sc.FacilityLocation.from_features(rng.normal(size=(6, 3)))
    chosen = sc.maximize(f, 2, "stochastic", epsilon=1e-320)
    assert chosen.indices.tolist() == sc.maximize(f, 2).indices.tolist()
