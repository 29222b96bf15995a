"""What a method may be given, and what it says when something is amiss."""

import dataclasses
import pickle

import numpy as np
import pytest

import secateur as sc
from secateur.core.inputs import SOURCES


def test_tokens_know_their_size_and_batch(to_xp):
    tokens = sc.Tokens(features=to_xp(np.ones((2, 6, 4))), grid=(2, 3))
    assert (tokens.size, tokens.batch_shape, tokens.grid) == (6, (2,), (2, 3))
    assert tokens.space is tokens.features
    embeds = to_xp(np.ones((2, 6, 9)))
    assert tokens.with_(embeds=embeds).space is embeds
    assert tokens.embeds is None


def test_lists_become_arrays():
    tokens = sc.Tokens(features=[[1.0, 2.0], [3.0, 4.0]], attention=[0.5, 0.25])
    assert tokens.features.shape == (2, 2)
    assert tokens.attention.tolist() == [0.5, 0.25]


def test_tokens_print_their_shapes():
    tokens = sc.Tokens(
        features=np.ones((6, 4)), grid=(2, 3), text=[np.ones((3, 4)), np.ones((2, 4))]
    )
    assert repr(tokens) == "Tokens(features=(6, 4), grid=(2, 3), text=[(3, 4), (2, 4)])"


def test_tokens_are_frozen_and_pickle():
    tokens = sc.Tokens(features=np.ones((2, 2)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokens.grid = (1, 2)
    assert pickle.loads(pickle.dumps(tokens)).size == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"features": None},
            r"features: expected an array of shape \(\.\.\., N, D\), got NoneType",
        ),
        ({"features": np.ones(3)}, r"features: expected an array of shape .* got \(3,\)"),
        (
            {"features": np.ones((0, 3))},
            r"features: expected at least one token, got shape \(0, 3\)",
        ),
        (
            {"attention": np.ones(5)},
            r"attention: expected shape \(6\) beside features \(6, 4\), got \(5,\)",
        ),
        ({"attention": 0.5}, r"attention: expected an array of shape \(\.\.\., N\), got float"),
        (
            {"embeds": np.ones((2, 6, 4))},
            r"embeds: expected shape \(6, D\) beside features \(6, 4\), got \(2, 6, 4\)",
        ),
        ({"keys": np.ones((7, 4))}, r"keys: expected shape \(6, D\) beside .* got \(7, 4\)"),
        ({"attention_shallow": np.ones((1, 6))}, r"attention_shallow: expected shape \(6\)"),
        ({"grid": (2, 4)}, "grid: 2 x 4 = 8 places for 6 tokens"),
        ({"grid": (6,)}, r"grid: expected \(h, w\), two positive whole numbers, got \(6,\)"),
    ],
)
def test_tokens_refuse(given, words):
    with pytest.raises(ValueError, match=words):
        sc.Tokens(**({"features": np.ones((6, 4))} | given))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_what_is_missing_is_named_with_where_it_comes_from(name):
    tokens = sc.Tokens(features=np.ones((2, 2)))
    if name == "features":
        object.__setattr__(tokens, "features", None)
    with pytest.raises(sc.MissingInputError, match=rf"EADP needs tokens\.{name}: ") as caught:
        tokens.require("EADP", name)
    assert (caught.value.method, caught.value.missing) == ("EADP", name)
    assert SOURCES[name] in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_require_passes_what_is_there():
    sc.Tokens(features=np.ones((2, 2)), grid=(1, 2)).require("EADP", "features", "grid")


def test_every_input_has_a_source():
    assert {field.name for field in dataclasses.fields(sc.Tokens)} == set(SOURCES)
