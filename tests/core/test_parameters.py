from contextlib import suppress
from dataclasses import fields

import pytest

import secateur as sc
from secateur.core.parameters import spelt


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("alpha", "hello"),
        ("smoothing", "foo"),
        ("layout", 5),
        ("layout", [1, 2, 3]),
        ("layout", "ab"),
        ("temperature", None),
        ("keep_ratio", [1]),
        ("keep", None),
        ("keep", True),
        ("keep", "64"),
        ("beta", 10**400),
        ("sign", 1.5),
        ("sign", True),
        ("aggregate", []),
        ("crops", {}),
        ("rounding", 3),
        ("over", None),
        ("published", 1),
    ],
)
def test_a_parameter_of_another_type_is_refused_by_name(name, given):
    for make in (
        lambda: sc.EADP(**{name: given}),
        lambda: sc.Method.from_dict({"method": "eadp", name: given}),
    ):
        with pytest.raises(ValueError, match=f"^{name}: ") as told:
            make()
        assert "expected" in str(told.value)


@pytest.mark.parametrize("number", range(7))
def test_no_parameter_of_any_method_ends_in_another_error(number):
    given = [object(), [[]], {}, "x", 10**400, b"x", ["a", None]][number]
    for kind in sc.methods().values():
        for parameter in (item.name for item in fields(kind)):
            with suppress(ValueError):
                kind(**{parameter: given})


@pytest.mark.parametrize("stored", [{"method": ["eadp"]}, {"method": None}, [], "eadp", None])
def test_what_is_no_stored_method_is_said(stored):
    with pytest.raises(ValueError, match="method: expected"):
        sc.Method.from_dict(stored)


def test_numbers_of_any_kind_are_numbers():
    import numpy as np

    assert sc.EADP(alpha=np.float32(0.5), beta=1, layout=(2, np.int64(2))).beta == 1
    assert sc.Method.from_dict({"method": "eadp", "layout": [2, 2]}).layout == (2, 2)


def test_types_in_words():
    assert spelt(tuple[int, int] | None) == "2 whole numbers or None"
    assert spelt(tuple[float, ...]) == "a list, each a number"
