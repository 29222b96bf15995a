"""Marginal relevance of many features: the picks of the reference, however few are looked at."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import secateur as sc
from secateur.backends.host import marginal
from secateur.core.maximize import Picks, marginal_relevance

N = 60


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens count as many here."""
    monkeypatch.setattr(marginal, "MANY", 1)


@pytest.fixture(params=[1, 7, 500])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many tokens are brought up to date at once."""
    monkeypatch.setattr(marginal, "ROOM", request.param)


def vectors(kind: str) -> np.ndarray:
    dice = np.random.default_rng(2)
    x = dice.standard_normal((N, 12))
    if kind == "groups":
        x = x[dice.integers(0, 9, N)] + 0.05 * x
    elif kind == "twice":
        x = np.repeat(x[: N // 2], 2, axis=0)
    elif kind == "whole numbers":
        x = dice.integers(-1, 2, (N, 12)).astype(np.float64)
    elif kind == "opposite":
        x = x[:1] * np.where(np.arange(N) % 3, 1.0, -1.0)[:, None]
    x[5] = 0.0
    return x


KINDS = ("normal", "groups", "twice", "whole numbers", "opposite")
IMPORTANCE = {
    "random": np.random.default_rng(3).random(N),
    "equal": np.full(N, 0.3),
    "signed": np.random.default_rng(3).integers(-2, 3, N).astype(np.float64),
}


def same(found: Picks, wanted: Picks) -> None:
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.gains, wanted.gains, rtol=1e-12, atol=1e-12)
    for each in found[1:]:
        assert each.dtype == np.float64
    # Sets have no value, and nothing bounds one.
    assert np.isnan(found.value).all()
    assert np.isinf(found.bound).all()


@cache
def asked(
    kind: str, w: str, balance: float, step: int, dtype: str
) -> tuple[sc.MarginalRelevance, Picks]:
    """A question, and the reference's answer with all tokens picked."""
    x = vectors(kind).astype(dtype)
    f = sc.MarginalRelevance.from_features(x, IMPORTANCE[w], balance, step)
    return f, marginal_relevance.reference(f, N)


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("balance", "step"), [(0.5, 1), (0.9, 1), (0.0, 1), (1.0, 1), (0.4, 3), (1.0, 4), (0.5, 999)]
)
@pytest.mark.parametrize("w", IMPORTANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_of_features(kind: str, w: str, balance: float, step: int, dtype: str) -> None:
    f, wanted = asked(kind, w, balance, step, dtype)
    same(marginal.marginal_relevance(f, N), wanted)


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_mask(kind: str) -> None:
    some = np.arange(N) % 4 > 0
    f = sc.MarginalRelevance.from_features(
        vectors(kind), IMPORTANCE["random"], 0.6, 2, selectable=some
    )
    found = marginal.marginal_relevance(f, 40)
    assert some[found.indices].all()
    same(found, marginal_relevance.reference(f, 40))


@pytest.mark.usefixtures("room")
def test_images_with_budgets_of_their_own() -> None:
    x = np.stack([vectors(kind) for kind in KINDS[:4]]).reshape(2, 2, N, 12)
    w = np.stack([*IMPORTANCE.values(), IMPORTANCE["random"]]).reshape(2, 2, N)
    f = sc.MarginalRelevance.from_features(x, w)
    k = np.asarray([[50, 1], [N, 31]])
    same(marginal.marginal_relevance(f, k), marginal_relevance.reference(f, k))


def test_tensors_are_answered_as_arrays() -> None:
    torch = pytest.importorskip("torch")
    f = sc.MarginalRelevance.from_features(vectors("groups"), IMPORTANCE["random"])
    given = f.with_arrays(torch.tensor)
    here, there = marginal.marginal_relevance(f, 40), marginal_relevance(given, 40)
    for fast, slow in zip(there, here, strict=True):
        assert isinstance(fast, torch.Tensor)
        np.testing.assert_array_equal(fast, slow)


def test_few_tokens_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each pick would be 63 times all tokens."""
    dice = np.random.default_rng(0)
    x = (
        dice.standard_normal((2000, 64))
        + 2.0 * dice.standard_normal((30, 64))[np.arange(2000) % 30]
    )
    pairs: list[int] = []

    def counted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        pairs.append(len(x) * len(y))
        return x @ y.T

    monkeypatch.setattr(marginal, "between", counted)
    monkeypatch.setattr(marginal, "ROOM", 32)
    f = sc.MarginalRelevance.from_features(x, dice.random(2000))
    marginal.marginal_relevance(f, 64)
    assert sum(pairs) < 0.5 * 63 * 2000


@pytest.mark.parametrize("given", ["features", "importance"])
def test_what_is_no_number_is_left_to_the_definition(given: str) -> None:
    x, w = vectors("normal"), IMPORTANCE["random"].copy()
    (x if given == "features" else w)[7] = np.nan
    f = sc.MarginalRelevance.from_features(x, w, check_finite=False)
    assert marginal.marginal_relevance(f, 9) is NotImplemented
    with pytest.raises(ValueError, match="NaN"):
        marginal_relevance(f, 9)


def test_matrices_and_few_tokens_are_left_to_the_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, w = vectors("normal"), IMPORTANCE["random"]
    assert marginal.marginal_relevance(sc.MarginalRelevance(x @ x.T, w), 9) is NotImplemented
    monkeypatch.setattr(marginal, "MANY", N + 1)
    f = sc.MarginalRelevance.from_features(x, w)
    assert marginal.marginal_relevance(f, 9) is NotImplemented
