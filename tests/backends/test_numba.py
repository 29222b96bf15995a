"""What is Numba's own: the kernels' shortcuts, threads, and life without it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import secateur as sc
from secateur.backends.host import compiled as driver
from secateur.backends.host import driver as plain
from secateur.core.dispatch import candidates
from secateur.core.maximize import facility_location
from secateur.core.similarity import cosine_similarity
from secateur.core.threshold import threshold_scan

pytest.importorskip("numba")

from secateur.backends.host import kernels


def _similar(n: int, seed: int = 0) -> np.ndarray:
    return cosine_similarity.reference(np.random.default_rng(seed).standard_normal((n, 8)) + 0.5)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 64, 151])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_first_gains_and_symmetry(n: int, dtype: str) -> None:
    s, w, g = _similar(n).astype(dtype), np.random.default_rng(1).random(n), np.empty(n)
    s = (s + s.T) / 2
    assert kernels.first_gains(s, w, g)
    np.testing.assert_allclose(g, w @ s.astype(np.float64), rtol=1e-14)
    if n > 1:
        # One entry in n squared, off by the last bit that counts.
        s[0, n - 1] *= 1 + 1e-6
        assert not kernels.first_gains(s, w, g)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (7, 4), (4, 9), (10, 64)])
def test_first_gains_of_what_is_no_square(shape: tuple[int, int]) -> None:
    s, g = np.random.default_rng(0).standard_normal(shape), np.empty(shape[1])
    w = np.random.default_rng(1).random(shape[0])
    assert not kernels.first_gains(s, w, g)
    np.testing.assert_allclose(g, w @ np.maximum(s, 0.0), rtol=1e-14)


def test_matrices_symmetric_but_for_rounding_count_as_symmetric() -> None:
    x = np.random.default_rng(0).standard_normal((300, 16))
    s = x @ x.T.copy() / 100.0
    s[np.triu_indices(300)] *= 1 + 2.0**-52
    assert kernels.first_gains(s, np.ones(300), np.empty(300))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", range(20))
def test_rows_are_lowered_in_eights_and_ones(count: int, dtype: str) -> None:
    dice = np.random.default_rng(2)
    s, w = dice.random((24, 33)).astype(dtype), dice.random(count)
    rows = dice.permutation(24)[:count]
    low = dice.random(count).astype(dtype)
    high = low + dice.random(count).astype(dtype)
    g = np.full(33, 5.0)
    wide = s[rows].astype(np.float64)
    expected = g - w @ (np.clip(wide, low[:, None], high[:, None]) - low[:, None].astype(float))
    kernels.lower_dense(s, rows, low, high, w, g)
    np.testing.assert_allclose(g, expected, rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-44, 1e-36, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("heavy", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_gains_are_those_of_the_definition_whatever_their_size(
    scale: float, heavy: float, backend: str
) -> None:
    dice = np.random.default_rng(4)
    x = dice.random((70, 70))
    s = (np.maximum(x, x.T) * scale).astype(np.float32)
    wide = s.astype(np.float64)
    for w in (dice.random(70), 10.0 ** dice.uniform(-40, 0, 70), dice.integers(0, 2, 70)):
        chosen = sc.maximize(sc.FacilityLocation(s, w * heavy), 60, backend=backend)
        m, opened = np.zeros(70), np.ones(70, dtype=bool)
        for pick, gain in zip(chosen.indices, chosen.gains, strict=True):
            # By hand, from the rows, one pick after the other.
            gains = np.where(opened, (w * heavy) @ np.maximum(wide - m[:, None], 0.0), -1.0)
            assert gains[pick] >= gains.max() * (1 - 1e-12)
            assert abs(gain - gains[pick]) <= 1e-12 * gains[pick]
            opened[pick] = False
            m = np.maximum(m, wide[:, pick])
        bound = sc.maximize(sc.FacilityLocation(wide, w * heavy), 60, backend="numpy").upper_bound
        np.testing.assert_allclose(chosen.upper_bound, bound, rtol=1e-9)


def test_gains_that_single_precision_cannot_tell_apart_are_worked_out_again() -> None:
    # Columns that differ by less than what float32 knows of their gains.
    dice = np.random.default_rng(5)
    near = 1.0 - dice.integers(0, 8, (600, 60)) * 2.0**-24
    s = np.hstack([np.full((600, 1), 0.5), near]).astype(np.float32)
    s[:200, 0] = 1.0
    s[dice.random((600, 61)) < 0.7] = 0.0
    f = sc.FacilityLocation(s, dice.random(600))
    single = sc.maximize(f, 30, backend="numba")
    double = sc.maximize(f, 30, backend="numpy")
    np.testing.assert_array_equal(single.indices, double.indices)
    np.testing.assert_allclose(single.gains, double.gains, rtol=1e-13)


def test_top_sum_follows_gains_that_shrink() -> None:
    dice = np.random.default_rng(3)
    places = np.empty(401, dtype=np.int64)
    for n, k in ((1, 1), (5, 5), (400, 37), (400, 400), (50, 1)):
        for ties in (False, True):
            g = dice.integers(0, 9, n).astype(float) if ties else dice.random(n)
            level = float(g.max())
            for _ in range(30):
                total, level = kernels.top_sum(g, k, level, np.empty(n), places)
                largest = np.sort(np.maximum(g, 0.0))[::-1][:k]
                np.testing.assert_allclose(total, largest.sum(), rtol=1e-13, atol=1e-13)
                assert np.count_nonzero(g > level) <= k
                g = np.where(dice.random(n) < 0.3, g * (0.1 + 0.9 * dice.random(n)), g)
                g[dice.integers(n)] = -np.inf


def test_top_sum_goes_down_to_the_smallest_numbers() -> None:
    g = np.asarray([1.0, 1e-3, 1e-300, 5e-324])
    for k in (1, 2, 3, 4):
        level = 1.0
        for _ in range(3):
            total, level = kernels.top_sum(g, k, level, np.empty(4), np.empty(5, dtype=np.int64))
            assert total == g[:k].sum()


def test_top_sum_of_nothing() -> None:
    for g, level in ((np.zeros(6), 0.0), (np.full(6, -np.inf), 1.0)):
        work, places = np.empty(6), np.empty(7, dtype=np.int64)
        assert kernels.top_sum(g, 3, level, work, places)[0] == 0.0


@pytest.mark.parametrize("n", [1, 63, 64, 65, 300])
def test_places_found_stretch_by_stretch(n: int) -> None:
    dice = np.random.default_rng(n)
    x, y, found = dice.random(n), dice.random(n) + 0.4, np.empty(n + 1, dtype=np.int64)
    count = kernels.within(x, 0.2, 0.3, found)
    np.testing.assert_array_equal(found[:count], np.flatnonzero((x > 0.2) & (x <= 0.3)))
    count = kernels.exceeding(x, y, found)
    np.testing.assert_array_equal(found[:count], np.flatnonzero(x > y))
    assert kernels.within(np.full(n, -np.inf), 0.0, np.inf, found) == 0
    assert kernels.leaders(x, x[n // 2]) == (
        np.count_nonzero(x >= x[n // 2]),
        np.flatnonzero(x >= x[n // 2]).sum(),
    )
    assert kernels.best_of(x) == x.max()
    assert kernels.best_of(np.full(n, -np.inf)) == -np.inf


def test_threads_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    s = np.stack([_similar(120, seed) for seed in range(9)])
    k = np.arange(1, 10) * 7
    alone = driver.facility_location(sc.FacilityLocation(s), k)
    monkeypatch.setattr(driver, "ALONE", 0)
    assert driver._workers(s) >= 1
    monkeypatch.setattr(driver, "_workers", lambda _: 4)
    for _ in range(3):
        together = driver.facility_location(sc.FacilityLocation(s), k)
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_tie_of_thousands_is_looked_at_once() -> None:
    # Every gain equal at every pick: looking at all leaders anew each time would take minutes.
    n = 3000
    picks = driver.facility_location(sc.FacilityLocation(np.eye(n)), n)
    np.testing.assert_array_equal(picks.indices, np.arange(n))
    np.testing.assert_array_equal(picks.gains, 1.0)
    nothing = driver.facility_location(sc.FacilityLocation(np.zeros((n, n))), n)
    np.testing.assert_array_equal(nothing.indices, np.arange(n))


def test_numba_comes_first() -> None:
    assert [each.__name__ for each in candidates(np.ones(1))] == [
        "secateur.backends.host.compiled",
        "secateur.backends.host.driver",
    ]


PROBE = """
import json, sys, time
import numpy as np, secateur as sc
x = np.random.default_rng(0).standard_normal((576, 384)).astype(np.float32)
tokens = sc.Tokens(features=x, attention=x[:, 0] ** 2, embeds=x, text=x[:32] + 1)
known, start = set(sys.modules), time.process_time()
sc.maximize(sc.FacilityLocation(np.ones((3, 2))), 1)
for method in (sc.EADP(64), sc.DivPrune(64), sc.AgilePruner(64, mean_erank=100.0)):
    method.select(tokens)
seconds, loaded = time.process_time() - start, len(set(sys.modules) - known)
seen = ["numba" in sys.modules]
ASKED
seen.append("numba" in sys.modules)
print(json.dumps([seconds, loaded, seen]))
"""


def _first_choices(asked: str) -> list[Any]:
    script = PROBE.replace("ASKED", asked)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize(
    "asked",
    [
        "for _ in range(20): sc.EADP(64).select(tokens)",
        "sc.maximize(sc.FacilityLocation(np.ones((3, 2))), 1, backend='numba')",
        "sc.maximize(sc.FacilityLocation(np.eye(3000)), 1)",
        "sc.warm_up(shapes=[(8, 4)])",
    ],
)
def test_the_first_small_choices_do_not_wait_for_numba(asked: str) -> None:
    """Loading it takes 450 ms and 600 modules; three choices take 60 ms and 30 modules."""
    seconds, loaded, seen = _first_choices(asked)
    assert seen == [False, True]
    assert loaded < 100
    assert seconds < 0.3


@pytest.mark.parametrize("seed", range(6))
def test_float32_picks_do_not_depend_on_who_is_loaded(seed: int) -> None:
    dice = np.random.default_rng(seed)
    x = (
        dice.standard_normal((300, 96))
        + 2.0 * dice.standard_normal((30, 96))[dice.integers(0, 30, 300)]
    )
    x[7], x[8] = x[6], 0.0
    x = x.astype(np.float32)
    tokens = sc.Tokens(
        features=x, attention=dice.random(300).astype(np.float32), embeds=x, text=x[:9] + 1
    )
    np.testing.assert_array_equal(plain.rounded_once(x), driver._unit(x))
    numpy, numba = (cosine_similarity(x, backend=name) for name in ("numpy", "numba"))
    np.testing.assert_array_equal(numpy, numba)
    for method in (
        sc.EADP(60),
        sc.DivPrune(60),
        sc.FPS(60),
        sc.AgilePruner(60, mean_erank=60.0, step=0.02),
        sc.Mixture(60, mean_erank=60.0),
    ):
        numpy, numba = (method.select(tokens, backend=name) for name in ("numpy", "numba"))
        np.testing.assert_array_equal(numpy.indices, numba.indices)


def test_thresholds_within_the_rounding_of_float32_are_decided_in_float64() -> None:
    """Tokens at the very distance of the threshold, but for some 1e-8."""
    dice = np.random.default_rng(0)
    limit = 0.25 - 8 * float(np.finfo(np.float32).eps)
    angle = np.arccos(1.0 - limit - 3e-8 * dice.standard_normal(400))
    x = np.zeros((401, 64))
    x[0, 0] = 1.0
    x[1:, 0] = np.cos(angle)
    around = dice.standard_normal((400, 63))
    x[1:, 1:] = np.sin(angle)[:, None] * around / np.linalg.norm(around, axis=1, keepdims=True)
    x = (x @ np.linalg.qr(dice.standard_normal((64, 64)))[0]).astype(np.float32)
    rows = plain.rounded_once(x).astype(np.float64)
    apart = np.flatnonzero(1.0 - rows[1:] @ rows[0] >= limit) + 1
    assert 20 < len(apart) < 380
    for _ in range(20):
        attention = np.concatenate([[2.0], dice.random(400)]).astype(np.float32)
        second = apart[np.argmax(attention[apart])]
        for name in ("numpy", "numba"):
            picks, filled = threshold_scan(x, attention, 2, np.asarray(0.25), 0.25, backend=name)
            assert picks.tolist() == [0, second]
            assert int(filled) == 0


def test_methods_of_matrix_products_do_not_import_numba() -> None:
    # It takes a hundred megabytes of a server, whose tokens are tensors.
    script = (
        "import sys, torch, secateur as sc\n"
        "tokens = sc.Tokens(features=torch.eye(9), grid=(3, 3), attention=torch.arange(9.0))\n"
        "for method in (sc.TopK(keep=4), sc.DivPrune(keep=4), sc.FPS(keep=4)):\n"
        "    method.select(tokens)\n"
        "print('numba' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False"]


def test_without_numba_numpy_serves() -> None:
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'numba' else find(name, *a)\n"
        "sys.modules['numba'] = None\n"
        "import numpy as np, secateur as sc\n"
        "from secateur.core.dispatch import candidates\n"
        "print([m.__name__ for m in candidates(np.ones(1))])\n"
        "f = sc.FacilityLocation(np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]]))\n"
        "print(sc.maximize(f, 2).indices)\n"
        "print(sc.patch_entropy(np.zeros((4, 4, 3), dtype=np.uint8), 2))\n"
        "try:\n"
        "    sc.maximize(f, 2, backend='numba')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "['secateur.backends.host.driver']",
        "[0 2]",
        "[0. 0. 0. 0.]",
        "backend: 'numba' is not installed: pip install 'secateur[numba]'",
    ]


def test_the_default_for_numpy_arrays_is_exact() -> None:
    s = _similar(80).astype(np.float32)
    expected = facility_location.reference(sc.FacilityLocation(s), 40)
    np.testing.assert_array_equal(
        facility_location(sc.FacilityLocation(s), 40).indices, expected.indices
    )


def test_numba_starts_no_threads_of_its_own() -> None:
    code = (
        "import numpy as np, secateur as sc\n"
        "s = np.random.default_rng(0).random((4, 600, 600))\n"
        "sc.maximize(sc.FacilityLocation(s), 9)\n"
        "import numba\n"
        "try:\n    print(numba.threading_layer())\n"
        "except ValueError as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "Threading layer is not initialized."
