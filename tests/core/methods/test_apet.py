"""Errors of approximation, and what is merged into whom."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.apet import approximation_errors, farthest_tokens
from secateur.testing import assert_selection


def slow(x, k, b, first, ridge=1e-5):
    """Basis, errors, picks in order, and the merged tokens in that order."""
    basis = [first]
    while len(basis) < b:
        apart = [min(((x[i] - x[j]) ** 2).sum() for j in basis) for i in range(len(x))]
        basis.append(int(np.argmax(apart)))
    rows = x[basis]
    weights = np.linalg.inv(rows @ rows.T + ridge * np.eye(b)) @ rows @ x.T
    errors = np.linalg.norm(x - weights.T @ rows, axis=1)
    order = np.argsort(-errors, kind="stable")[:k]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    joined = {int(i): [i] for i in order}
    for i in set(range(len(x))) - set(order.tolist()):
        joined[int(order[np.argmax(unit[order] @ unit[i])])].append(i)
    merged = [x[joined[int(i)]].mean(axis=0) for i in order]
    return basis, errors, order, np.stack(merged)


@pytest.mark.parametrize("k", [1, 5, 20, 35])
def test_it_is_its_definition(image, to_xp, to_numpy, k):
    host = image(batch=(2,)).features
    x = to_xp(host)
    firsts = (4, 30)
    chosen = sc.ApET(keep=k, basis=4, first=firsts).select(sc.Tokens(features=x))
    merged = to_numpy(chosen.merge(x))
    assert_selection(chosen, k)
    for b, first in enumerate(firsts):
        basis, errors, order, means = slow(host[b], k, 4, first)
        assert to_numpy(farthest_tokens(x, 4, firsts))[b].tolist() == basis
        np.testing.assert_allclose(
            to_numpy(chosen.scores)[b], errors, rtol=0, atol=1e-9 * errors.max()
        )
        assert to_numpy(chosen.indices)[b].tolist() == order.tolist()
        np.testing.assert_allclose(merged[b], means[np.argsort(order)], rtol=1e-12, atol=1e-13)


def test_basis_tokens_stand_where_they_do_not_belong_in_the_programs_forms(image):
    x = image().features
    basis = farthest_tokens(x, 3, 0)
    plain = sc.ApET(keep=10, basis=3, first=0)
    order = plain.select(sc.Tokens(features=x)).indices
    for model, share in (("llava", 1.0), ("qwen", 0.5), ("inner", 1.0)):
        chosen = sc.published("apet", keep=10, basis=3, first=0, model=model)
        chosen = chosen.select(sc.Tokens(features=x))
        assert chosen.indices.tolist() == order.tolist()
        assert_selection(chosen, 10)
        merged = dict(zip(chosen.sorted().tolist(), chosen.merge(x), strict=True))
        places = order[7:] if model == "inner" else np.sort(order[7:])
        for place, token in zip(places, basis, strict=True):
            np.testing.assert_allclose(
                merged[place], share * x[token] + (1 - share) * x[place], rtol=1e-12
            )


@pytest.mark.parametrize("model", [None, "llava", "qwen", "inner", "video"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_budgets_no_larger_than_the_basis(image, model, k):
    tokens = image(batch=(2,))
    chosen = sc.published("apet", keep=k, model=model).select(tokens)
    assert_selection(chosen, k)
    assert chosen.merge(tokens.features).shape == (2, k, 8)


@pytest.mark.parametrize("model", [None, "llava", "video"])
def test_a_budget_of_all_changes_nothing(image, model):
    tokens = image()
    chosen = sc.published("apet", keep=36, model=model).select(tokens)
    np.testing.assert_array_equal(chosen.merge(tokens.features), tokens.features)


def test_duplicates_and_zeros_are_ordinary(to_xp, to_numpy):
    x = to_xp(np.repeat([[1.0, 2.0], [0.0, 0.0]], 4, axis=0))
    assert to_numpy(farthest_tokens(x, 8, 0)).tolist() == [0, 4, 1, 2, 3, 5, 6, 7]
    errors = to_numpy(approximation_errors(x, to_xp(np.array([0, 1, 2]))))
    np.testing.assert_allclose(errors, 0.0, atol=1e-5)
    chosen = sc.ApET(keep=3, first=0).select(sc.Tokens(features=x))
    assert to_numpy(chosen.indices).tolist() == [0, 1, 2]
    assert to_numpy(sc.ApET(keep=1).select(sc.Tokens(features=x[:1, :])).indices).tolist() == [0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"basis": 0}, "basis: expected a whole number of at least 1"),
        ({"ridge": 0.0}, "ridge: expected a finite number above 0"),
        ({"first": -1}, "first: expected a token's index"),
        ({"model": "clip"}, "model: expected one of llava, qwen, inner, video"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        sc.ApET(**settings)


def test_first_must_be_a_token_of_each_image(image):
    with pytest.raises(ValueError, match="first: expected one of 36 tokens"):
        sc.ApET(first=36).select(image())
    with pytest.raises(ValueError, match=r"first: expected one token for each of the rows \(2,\)"):
        sc.ApET(first=(1, 2, 3)).select(image(batch=(2,)))
