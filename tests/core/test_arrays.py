"""The door, the drivers, and what arrays of different libraries have in common."""

import math
import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

import secateur as sc
from secateur.core import dispatch
from secateur.core.arrays import (
    check_lengths,
    checked,
    constant,
    descending,
    each_row,
    index_dtype,
    is_sparse,
    library,
    like,
    namespace,
    resolve_budget,
    resolve_keep,
    spell,
    top,
    whole,
    wide,
    widened,
)
from secateur.core.arrays import to_numpy as on_host
from secateur.core.dispatch import candidates, drivers, operation, register_driver
from secateur.core.similarity import unit


def half_dtypes(xp):
    return [name for name in ("float16", "bfloat16") if hasattr(xp, name)]


def test_checked_lets_arrays_of_any_library_pass_as_they_are(to_xp):
    x = to_xp(np.ones((2, 3)))
    assert checked(x, "x", "(..., N)") is x


def test_checked_widens_half_and_whole_numbers(xp, to_xp, to_numpy):
    for name in half_dtypes(xp):
        x = checked(xp.asarray([1.5, 2.0], dtype=getattr(xp, name)), "x")
        assert str(x.dtype).endswith("float32")
        assert to_numpy(x).tolist() == [1.5, 2.0]
    assert checked(to_xp([1, 2]), "x").dtype == wide(xp)
    assert to_numpy(checked(to_xp(np.array([True, False])), "x")).tolist() == [1.0, 0.0]
    assert checked(to_xp([1.0], "float32"), "x").dtype == xp.float32


def test_checked_makes_arrays_of_numbers(xp, to_xp):
    x = checked([[1, 2], (3, 4.5)], "x", "(N, D)")
    assert isinstance(x, np.ndarray)
    assert x.tolist() == [[1, 2], [3, 4.5]]
    beside = checked([1.0, 2.0], "x", "(N,)", beside=to_xp([0.0]))
    assert type(beside) is type(to_xp([0.0]))


def test_checked_takes_a_batch_of_nothing_but_no_image_without_tokens(to_xp):
    assert checked(to_xp(np.ones((0, 3, 2))), "x", "(..., N, D)").shape == (0, 3, 2)
    with pytest.raises(ValueError, match=r"x: .* without empty axes, got \(3, 0, 2\)"):
        checked(to_xp(np.ones((3, 0, 2))), "x", "(..., N, D)")


def test_checked_refuses_the_wrong_rank(to_xp):
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., N, D\), got \(3,\)"):
        checked(to_xp(np.ones(3)), "x", "(..., N, D)")
    with pytest.raises(ValueError, match=r"x: expected shape \(N,\), got \(3, 1\)"):
        checked(to_xp(np.ones((3, 1))), "x", "(N,)")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_checked_refuses_what_is_not_finite(to_xp, bad):
    x = to_xp([1.0, bad])
    with pytest.raises(ValueError, match=r"x: contains NaN or infinity \(check_finite=False"):
        checked(x, "x")
    assert checked(x, "x", check_finite=False) is x


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("seen", ["as it is", "turned", "in steps"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_checked_sees_every_number(dtype, seen, bad):
    view = {"as it is": np.s_[:, :], "turned": np.s_[::-1, :], "in steps": np.s_[::2, 1:]}[seen]
    for place in (1, 500, 1319):
        whole = np.zeros(33 * 40, dtype=dtype)
        whole[place] = bad
        for x in (whole.reshape(33, 40)[view], np.asfortranarray(whole.reshape(33, 40))[view]):
            for each in (x, x.T):
                if np.isfinite(x).all():
                    assert checked(each, "x") is each
                else:
                    with pytest.raises(ValueError, match=r"x: contains NaN or infinity"):
                        checked(each, "x")


def test_checked_knows_an_overflowing_sum_from_infinity(to_xp):
    x = to_xp(np.full(4, 3e38, dtype=np.float32))
    assert checked(x, "x") is x


def test_checked_refuses_negative_numbers(to_xp):
    with pytest.raises(ValueError, match=r"x: expected no negative numbers, smallest is -2\.5"):
        checked(to_xp([1.0, -2.5]), "x", non_negative=True)
    assert checked(to_xp([-0.0]), "x", non_negative=True).shape == (1,)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (None, r"x: expected an array of shape \(\.\.\., N\), got NoneType"),
        ("abc", "got str"),
        ([[1], [2, 3]], "got a list that is no array of real numbers"),
        (["a"], "got a list that is no array of real numbers"),
        ((1j,), "got a tuple that is no array of real numbers"),
        (np.array(["a"]), "x: expected real numbers, got dtype <U1"),
        (np.array([1j]), "x: expected real numbers, got dtype complex128"),
    ],
)
def test_checked_refuses_what_is_no_array_of_numbers(x, words):
    with pytest.raises(ValueError, match=words):
        checked(x, "x", "(..., N)")


def test_lengths_that_disagree_are_told():
    check_lengths(features=3, attention=3)
    with pytest.raises(ValueError, match="lengths disagree: features has 3, attention has 4"):
        check_lengths(features=3, attention=4)


def test_libraries_do_not_mix():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="one library are expected in one call, got numpy and tor"):
        namespace(np.ones(2), torch.ones(2))


def test_libraries_go_by_their_own_names(request, to_xp):
    assert library(to_xp([1.0])) == request.node.callspec.params["xp"]


@pytest.mark.parametrize(
    ("keep", "n", "expected"),
    [
        (64, 576, 64),
        (0.25, 576, 144),
        (1000, 576, 576),
        (1.0, 7, 7),
        (1, 7, 1),
        (0.01, 7, 1),
        (0.7, 10, 7),
        (0.29, 100, 29),
        (np.int32(3), 7, 3),
        (np.float32(0.5), 8, 4),
    ],
)
def test_keep_is_a_count_or_a_share(keep, n, expected):
    assert resolve_keep(keep, n) == expected


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (0, "keep: a count is at least 1, got 0"),
        (-3, "keep: a count is at least 1, got -3"),
        (0.0, r"keep: a share lies in \(0, 1\], got 0\.0"),
        (1.5, r"keep: a share lies in \(0, 1\], got 1\.5"),
        (math.nan, r"keep: a share lies in \(0, 1\], got nan"),
        (True, r"keep: expected a count \(int\) or a share \(float\), got True"),
        ("8", "keep: expected a count"),
        (None, "keep: expected a count"),
    ],
)
def test_keep_refuses(keep, words):
    with pytest.raises(ValueError, match=words):
        resolve_keep(keep, 10)


def test_budgets_for_all_rows_or_one_a_row(to_xp):
    assert resolve_budget(3, 10, (2,)) == 3
    assert resolve_budget(to_xp(3), 10, (2,)) == 3
    for k in ([3, 12], to_xp([3, 12])):
        assert resolve_budget(k, 10, (2,)).tolist() == [3, 10]


@pytest.mark.parametrize(
    ("k", "words"),
    [
        ([1, 2, 3], r"k: expected one budget for each of the rows \(2,\), got \(3,\)"),
        ([[1, 2]], r"k: expected one budget for each of the rows \(2,\), got \(1, 2\)"),
        ([1, 0], "k: a count is at least 1, got 0"),
        ([0.5, 0.5], r"k: expected whole numbers, got \[0\.5, 0\.5\]"),
    ],
)
def test_budgets_refuse(k, words):
    with pytest.raises(ValueError, match=words):
        resolve_budget(k, 10, (2,))


def test_whole_numbers():
    numbers = [3, np.int8(3), 3.0, "3", True, None]
    assert [whole(x) for x in numbers] == [3, 3, -1, -1, -1, -1]


def test_host_round_trip_keeps_values_and_place(xp, to_xp):
    x = to_xp([[1.5, -2.0]])
    np.testing.assert_array_equal(on_host(x), [[1.5, -2.0]])
    back = like(on_host(x), x)
    assert type(back) is type(x)
    assert bool(xp.all(back == x))
    for name in half_dtypes(xp):
        half = xp.asarray([1.5], dtype=getattr(xp, name))
        assert float(on_host(half)[0]) == 1.5
        assert library(like(2.0, half)) == library(half)
    assert on_host([1, 2]).tolist() == [1, 2]


def test_read_only_numpy_arrays_pass_to_any_library(to_xp):
    values = np.arange(3)
    values.setflags(write=False)
    assert on_host(like(values, to_xp([0.0]))).tolist() == [0, 1, 2]


def test_dtypes_of_sums_and_indices(xp):
    assert wide(xp) == xp.float64
    assert index_dtype(xp) == xp.int64


def test_widened_refuses_complex_numbers(xp):
    with pytest.raises(ValueError, match=r"expected real numbers, got dtype .*complex64"):
        widened(xp.asarray([1j], dtype=xp.complex64))


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1.0, 1e30, 1e37])
def test_unit_vectors_of_float32_at_any_scale(to_xp, to_numpy, scale):
    x = (np.array([[1.0, 1.0], [0.0, 0.0], [-1.0, 0.0]]) * scale).astype(np.float32)
    side = math.sqrt(0.5)
    np.testing.assert_allclose(to_numpy(unit(to_xp(x))), [[side, side], [0, 0], [-1, 0]], rtol=1e-6)


def test_order_is_stable(to_xp, to_numpy):
    x = to_xp([[1.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, -1.0]])
    assert to_numpy(descending(x)).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]
    assert to_numpy(top(x, 2)).tolist() == [[1, 3], [0, 1]]


def test_shapes_are_spelt_as_people_write_them():
    assert [spell(s) for s in ((), (3,), (2, 3))] == ["()", "(3,)", "(2, 3)"]
    assert list(each_row(())) == [()]
    assert list(each_row((2, 1))) == [(0, 0), (1, 0)]


def test_sparse_matrices_are_known_without_importing_scipy():
    sparse = pytest.importorskip("scipy.sparse")
    assert is_sparse(sparse.csr_array(np.eye(2)))
    assert not is_sparse(np.eye(2))


def test_constant_drops_gradients_and_nothing_else(to_xp):
    torch = pytest.importorskip("torch")
    x = torch.ones(2, requires_grad=True)
    assert not constant(x).requires_grad
    assert constant(x).data_ptr() == x.data_ptr()
    y = np.ones(2)
    assert constant(y) is y


@pytest.fixture
def own_driver(monkeypatch):
    """A driver as another package would register it, and an operation that it serves."""
    monkeypatch.setattr(dispatch, "_drivers", dict(dispatch._drivers))
    monkeypatch.setattr(dispatch, "_modules", dict(dispatch._modules))
    module = ModuleType("fast_doubling")
    module.asked = []

    def doubled(x, *, times=2):
        module.asked.append(times)
        return NotImplemented if times > 2 else ("fast", times)

    module.doubled = doubled
    monkeypatch.setitem(sys.modules, "fast_doubling", module)
    register_driver("doubling", "fast_doubling", "array_api_strict")
    yield module
    dispatch._load.cache_clear()


@operation
def doubled(x, *, times=2):
    """The reference."""
    return "reference", times


@operation
def tripled(x):
    """An operation no driver offers."""
    return 3 * x


def test_a_driver_of_another_package_is_asked(own_driver):
    strict = pytest.importorskip("array_api_strict")
    x = strict.asarray([1.0])
    assert drivers()["array_api_strict"] == ("doubling",)
    assert candidates(x) == (own_driver,)
    assert doubled(x) == ("fast", 2)
    assert doubled(x=x, times=1) == ("fast", 1)
    assert doubled(x, times=3) == ("reference", 3)
    assert doubled(x[:0]) == ("reference", 2)
    assert own_driver.asked == [2, 1, 3]
    assert float(tripled(x)[0]) == 3.0
    assert doubled.reference(x) == doubled(x, backend="reference") == ("reference", 2)
    with sc.backend("reference"):
        assert doubled(x) == ("reference", 2)
        assert doubled(x, backend="doubling") == ("fast", 2)
    assert doubled(x, backend="doubling") == ("fast", 2)
    assert doubled(np.ones(1)) == ("reference", 2)
    assert doubled.__doc__ == "The reference."


def test_registering_twice_asks_once(own_driver):
    register_driver("doubling", "fast_doubling", "array_api_strict")
    assert drivers()["array_api_strict"] == ("doubling",)


def test_a_driver_that_is_not_available_is_passed_over(own_driver):
    strict = pytest.importorskip("array_api_strict")
    own_driver.available = False
    x = strict.asarray([1.0])
    assert doubled(x) == ("reference", 2)
    with pytest.raises(ValueError, match=r"backend: 'doubling' is not installed: pip install 'sec"):
        doubled(x, backend="doubling")


def test_backends_are_chosen_by_name_for_a_block_or_a_call():
    with pytest.raises(ValueError, match=r"backend: expected one of auto, reference, .*got 'fast'"):
        sc.backend("fast").__enter__()
    f = sc.FacilityLocation(np.eye(2))
    with pytest.raises(ValueError, match="backend: expected one of auto, reference"):
        sc.maximize(f, 1, "naive", backend="fast")
    with pytest.raises(ValueError, match=r"backend: 'torch' does not serve arrays of numpy \(dri"):
        sc.maximize(f, 1, backend="torch")
    with pytest.raises(ValueError, match="backend: 'torch' does not serve arrays of numpy"):
        sc.greedy_threshold(np.eye(2), np.ones(2), 1, backend="torch")
    assert sc.maximize(f, 1, backend="reference").indices.tolist() == [0]


def test_a_backend_block_ends_with_the_block(own_driver):
    strict = pytest.importorskip("array_api_strict")
    x = strict.asarray([1.0])
    with pytest.raises(RuntimeError), sc.backend("reference"):
        raise RuntimeError
    assert doubled(x) == ("fast", 2)


def test_testing_and_optional_libraries_load_only_on_demand():
    code = (
        "import sys, secateur; "
        "print([m for m in ('torch', 'cupy', 'numba', 'jax', 'scipy', 'transformers', 'hypothesis')"
        " if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


WITHOUT_64_BITS = """
import warnings
warnings.simplefilter("error")
import jax.numpy as jnp
import secateur as sc
from secateur.core.arrays import index_dtype, namespace, wide
x = jnp.asarray([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.0, 0.0]])
assert (wide(namespace(x)), index_dtype(namespace(x))) == (jnp.float32, jnp.int32)
for algorithm in ("naive", "lazy", "incremental", "stochastic"):
    picks = sc.maximize(sc.FacilityLocation.from_features(x), 2, algorithm, seed=0)
    assert picks.indices.dtype == jnp.int32 and picks.value.dtype == jnp.float32
    print(picks.indices.tolist())
print(sc.maximize(sc.LogDeterminant(x @ x.T + jnp.eye(4)), 2).indices.tolist())
print(sc.maximize(sc.Dispersion.from_features(jnp.stack([x, x])), [1, 2]).indices.tolist())
print(sc.greedy_threshold(x, jnp.arange(4.0), 2, step=0.1).indices.tolist())
print(sc.allocate(jnp.asarray([3.0, 2.0, 1.0]), 10).tolist())
print(round(float(sc.effective_rank(x)), 3), sc.dense_relevance(x, x[:2]).dtype)
"""


@pytest.mark.slow
def test_jax_without_64_bits_computes_in_32_and_does_not_complain():
    pytest.importorskip("jax")
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_64_BITS],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_ENABLE_X64": "0", "JAX_PLATFORMS": "cpu"},
    )
    assert answer.stderr == ""
    assert answer.stdout.split("\n")[:3] == ["[1, 2]"] * 3
    assert answer.stdout.split("\n")[4:] == [
        "[0, 2]",
        "[[3, -1], [3, 0]]",
        "[3, 2]",
        "[5, 3, 2]",
        "1.978 float32",
        "",
    ]
