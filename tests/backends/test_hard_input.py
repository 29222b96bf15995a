"""Numbers that overflow and numbers that are none: a valid choice or a sentence, never a hang.

What used to crash, or to loop without end, runs in a child process with a time limit.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

import secateur as sc
from secateur.core.maximize import Picks, determinant, facility_location, farthest_first
from secateur.core.threshold import threshold_scan

NAN, HUGE = math.nan, 1e308


def child(script: str) -> Any:
    """What a script prints last, as JSON; it may take two minutes, compiling included."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


OVERFLOW = """
    import json, numpy as np, secateur as sc
    many = np.full(8, 1e308)
    objectives = {
        "similarity full": sc.FacilityLocation(np.full((8, 8), 1e308)),
        "similarity diagonal": sc.FacilityLocation(np.eye(8) * 1e308),
        "weights heavy": sc.FacilityLocation(np.ones((8, 8)), many),
        "weights heavy features": sc.FacilityLocation.from_features(np.eye(8), many),
        "similarity both": sc.FacilityLocation(np.full((8, 8), 1e200), np.full(8, 1e200)),
    }
    said = {}
    for name, f in objectives.items():
        for backend in ("auto", "numba", "numpy", "reference"):
            for algorithm in ("auto", "naive", "lazy", "stochastic"):
                try:
                    picks = sc.maximize(f, 3, algorithm, seed=0, backend=backend)
                    said[f"{name} {backend} {algorithm}"] = picks.indices.tolist()
                except ValueError as error:
                    said[f"{name} {backend} {algorithm}"] = str(error)
    print(json.dumps(said))
"""


def test_sums_that_overflow_are_refused() -> None:
    said = child(OVERFLOW)
    assert len(said) == 80
    for asked, answer in said.items():
        assert isinstance(answer, str), (asked, answer)
        argument = asked.partition(" ")[0]
        assert answer.startswith(f"{argument}: sums of similarities times weights leave"), asked


def test_large_numbers_whose_sums_fit_are_welcome() -> None:
    for backend in ("numba", "numpy", "reference"):
        kept = sc.maximize(sc.FacilityLocation(np.eye(8) * 1e300), 3, backend=backend)
        assert kept.indices.tolist() == [0, 1, 2]
        assert float(kept.guarantee) == pytest.approx(1.0)
        # The weights add up to more than float64 holds, what they are worth does not.
        light = sc.FacilityLocation(np.eye(8) * 1e-10, np.full(8, HUGE))
        kept = sc.maximize(light, 3, backend=backend)
        assert kept.indices.tolist() == [0, 1, 2]
        assert float(kept.guarantee) == pytest.approx(1.0)


LOST = """
    import json, numpy as np, secateur as sc
    from secateur.backends.host import driver
    driver.MATRIX = 0  # so that narrow features meet the rows one by one
    n, d, k = 40, 6, 12
    dice = np.random.default_rng(0)
    said = {}
    for bad in (np.nan, np.inf, -np.inf):
        x = dice.standard_normal((n, d))
        x[7] = bad
        wide = dice.standard_normal((n, 3))
        wide[7] = bad
        s = np.abs(dice.standard_normal((n, n)))
        s[7] = bad
        a = dice.random(n)
        a[3] = bad
        clean = dice.random(n)
        ways = {
            "facility": lambda b: sc.maximize(sc.FacilityLocation(
                s, check_finite=False), k, backend=b),
            "facility features": lambda b: sc.maximize(sc.FacilityLocation.from_features(
                x, check_finite=False), k, backend=b),
            "facility wide": lambda b: sc.maximize(sc.FacilityLocation.from_features(
                wide, check_finite=False), k, backend=b),
            "facility weights": lambda b: sc.maximize(sc.FacilityLocation(
                np.eye(n), np.abs(a), check_finite=False), k, backend=b),
            "determinant": lambda b: sc.maximize(sc.LogDeterminant(
                s @ s.T, check_finite=False), k, backend=b),
            "determinant row": lambda b: sc.maximize(sc.LogDeterminant(
                np.where(np.arange(n)[:, None] == 7, bad, np.eye(n)), check_finite=False), k,
                backend=b),
            "farthest": lambda b: sc.maximize(sc.Dispersion(
                np.abs(s), check_finite=False), k, backend=b),
            "farthest features": lambda b: sc.maximize(sc.Dispersion.from_features(
                x, check_finite=False), k, backend=b),
            "scan": lambda b: sc.greedy_threshold(
                x, clean, k, 0.02, check_finite=False, backend=b),
            "scan attention": lambda b: sc.greedy_threshold(
                np.ones((n, d)), a, k, 0.02, check_finite=False, backend=b),
        }
        for name, run in ways.items():
            for backend in ("numba", "numpy", "reference"):
                try:
                    with np.errstate(all="ignore"):
                        kept = run(backend)
                except ValueError as error:
                    said[f"{name} {bad} {backend}"] = str(error)
                    continue
                picks = kept.indices.tolist()
                assert len(set(picks)) == k and set(picks) <= set(range(n)), (name, backend, picks)
                if kept.guarantee is not None:
                    assert not np.isnan(kept.guarantee), (name, backend)
                said[f"{name} {bad} {backend}"] = picks
    print(json.dumps(said))
"""


def test_numbers_that_are_none_never_hang_crash_or_repeat_tokens() -> None:
    said = child(LOST)
    assert len(said) == 90
    refused = {asked.rsplit(" ", 1)[0] for asked, answer in said.items() if isinstance(answer, str)}
    for asked in refused:
        # What one backend refuses none chooses from, and each names the argument.
        for backend in ("numba", "numpy", "reference"):
            answer = said[f"{asked} {backend}"]
            assert isinstance(answer, str), (asked, backend, answer)
            name = answer.partition(":")[0]
            assert name in ("similarity", "features", "weights", "distance", "f"), answer
    assert "facility nan" in refused
    assert "facility features nan" in refused
    assert "farthest features nan" in refused
    assert "scan nan" not in refused


def test_a_sparse_matrix_put_together_wrongly_is_refused() -> None:
    said = child(
        """
        import json, numpy as np, scipy.sparse, secateur as sc
        rows = scipy.sparse.csr_matrix(np.eye(4))
        rows.indices[2] = 1 << 30
        said = []
        for backend in ("numba", "numpy"):
            try:
                sc.maximize(sc.FacilityLocation(rows), 2, backend=backend)
            except ValueError as error:
                said.append(str(error))
        print(json.dumps(said))
        """
    )
    assert len(said) == 2
    assert all(each.startswith("similarity: ") for each in said)


def _hard(n: int) -> dict[str, np.ndarray]:
    dice = np.random.default_rng(n)
    s = np.abs(dice.standard_normal((n, n)))
    hard = {"all": np.full((n, n), NAN), "huge": np.full((n, n), HUGE)}
    for name, bad in (("nan", NAN), ("infinite", math.inf)):
        hard[f"{name} row"], hard[f"{name} column"], hard[f"{name} entry"] = s.copy(), s.copy(), s
        hard[f"{name} row"][2] = bad
        hard[f"{name} column"][:, 1] = bad
        hard[f"{name} entry"] = s.copy()
        hard[f"{name} entry"][3, 4] = bad
    return hard


def valid(found: Picks, n: int, k: int) -> None:
    """k distinct tokens, and certificates that are numbers."""
    picks = np.asarray(found.indices).tolist()
    assert len(set(picks)) == k, picks
    assert set(picks) <= set(range(n))
    assert not math.isnan(float(found.value))
    assert not math.isnan(float(found.bound))


def _solver(name: str) -> Any:
    """What works on a device, here on the host, where nobody asks for NaN before it starts."""
    torch = pytest.importorskip("torch")
    if name == "torch":
        from secateur.backends.torch import greedy

        return greedy, torch.asarray
    pytest.importorskip("triton", reason="triton is not installed")
    from secateur.backends.torch import launch

    if not launch.INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported")
    return launch, torch.asarray


@pytest.mark.parametrize("name", ["torch", "triton"])
@pytest.mark.parametrize("kind", list(_hard(9)))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_devices_choose_distinct_tokens_from_anything(name: str, kind: str) -> None:
    solver, tensor = _solver(name)
    n, k = 6, 4
    s = _hard(n)[kind]
    weights = [None, np.full(n, HUGE), np.where(np.arange(n) == 2, NAN, 1.0), np.zeros(n)]
    if name == "triton":  # Seconds a call in Triton's interpreter: each kind meets one of them.
        weights = [weights[list(_hard(n)).index(kind) % 4]]
    for w in weights:
        given = None if w is None else tensor(w)
        found = solver.facility_location(tensor(s), given, k, 2.0**-49 if w is None else 0.0)
        valid(found, n, k)
        assert math.isfinite(float(found.value))
    valid(solver.farthest_first(tensor(s), k, None), n, k)
    valid(solver.farthest_first(tensor(s), k, 2), n, k)
    picks = solver.determinant(tensor(s), k).indices.tolist()
    assert len(set(picks)) == k
    x = np.where(np.isfinite(s), s, NAN)
    indices, _ = solver.threshold_scan(tensor(x), tensor(s[2]), k, np.asarray([0.05]), 0.3)
    assert len(set(indices.tolist())) == k


def test_nan_serves_nobody_where_nobody_asks_for_it() -> None:
    s = np.random.default_rng(0).random((8, 8))
    holes = s.copy()
    holes[4, 5] = holes[6] = NAN
    filled = np.where(np.isnan(holes), 0.0, holes)
    for name in ("torch", "triton"):
        solver, tensor = _solver(name)
        found = solver.facility_location(tensor(holes), None, 3, 0.0)
        wanted = facility_location.reference(sc.FacilityLocation(filled), 3)
        assert found.indices.tolist() == wanted.indices.tolist()
        assert float(found.value) == pytest.approx(float(wanted.value))


def test_the_references_name_what_is_wrong() -> None:
    s = np.eye(5)
    s[2, 3] = NAN
    with pytest.raises(ValueError, match="similarity: contains NaN"):
        facility_location.reference(sc.FacilityLocation(s, check_finite=False), 2)
    with pytest.raises(ValueError, match="f: gains of its tokens are NaN"):
        farthest_first.reference(sc.Dispersion(s, check_finite=False), 2)
    assert determinant.reference(sc.LogDeterminant(s, check_finite=False), 5).indices.tolist()
    indices, _ = threshold_scan.reference(s, np.ones(5), 5, np.asarray(0.0), 0.3)
    assert sorted(indices.tolist()) == [0, 1, 2, 3, 4]
