"""Whose threads work on lent memory, and warming up before the first request."""

from __future__ import annotations

import threading
from types import ModuleType

import numpy as np
import pytest

import secateur as sc
from secateur.backends import lending


def test_large_products_on_tensors_are_taken_by_the_library_that_lent_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    from secateur.backends.torch import driver

    taken: list[str] = []
    own = driver.POOL
    pool = lending.Pool(
        lambda x, y: taken.append("product") or own.product(x, y),
        lambda x: taken.append("eigenvalues") or own.eigenvalues(x),
        lambda: threads,
    )
    threads = 2
    monkeypatch.setattr(driver, "POOL", pool)
    monkeypatch.setattr(lending, "SMALL", 0)
    if lending._one.possible:
        # Threads that meet at every step of it wait for each other beside other work.
        sc.effective_rank(torch.from_numpy(np.random.default_rng(0).random((576, 600))).float())
        assert "eigenvalues" not in taken
        taken.clear()
    monkeypatch.setattr(lending, "LINKED", 0)
    x = np.random.default_rng(0).standard_normal((40, 12))
    wanted = sc.maximize(sc.Dispersion.from_features(x), 9).indices
    assert taken == []
    found = sc.maximize(sc.Dispersion.from_features(torch.from_numpy(x)), 9).indices
    assert found.tolist() == wanted.tolist()
    assert "product" in taken
    sc.effective_rank(torch.from_numpy(x).float())
    assert "eigenvalues" in taken
    if lending._one.possible:
        threads = 1  # a pool of the calling thread alone, which NumPy's product leaves alone too
        taken.clear()
        sc.maximize(sc.Dispersion.from_features(torch.from_numpy(x)), 9)
        sc.effective_rank(torch.from_numpy(x).float())
        assert taken == []


class _Library:
    num_threads = 2

    def set_num_threads(self, count: int) -> None:
        self.num_threads = count


def test_one_thread_is_for_those_within_and_restored_by_the_last() -> None:
    one, library = lending._OneThread(), _Library()
    one.__dict__["_libraries"] = [library]
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one:
            inside.set()
            leave.wait(10)

    with one:
        worker = threading.Thread(target=other)
        worker.start()
        inside.wait(10)
        assert library.num_threads == 1
    assert library.num_threads == 1
    leave.set()
    worker.join()
    assert library.num_threads == 2


def _compiled(kernels: ModuleType) -> dict[str, int]:
    named = vars(kernels).items()
    return {name: len(f.signatures) for name, f in named if hasattr(f, "signatures")}


def test_warming_up_leaves_nothing_to_compile() -> None:
    pytest.importorskip("numba")
    from secateur.backends.host import kernels

    sc.warm_up("numba", [(20, 6)])
    before = _compiled(kernels)
    x = np.random.default_rng(1).standard_normal((33, 5))
    sc.maximize(sc.FacilityLocation.from_features(x, np.ones(33)), 5)
    sc.maximize(sc.Dispersion.from_features(x), 5)
    sc.greedy_threshold(x, np.ones(33), 5)
    after = _compiled(kernels)
    assert after == before
    with pytest.raises(ValueError, match="backend: expected one of"):
        sc.warm_up("abacus")
    with pytest.raises(ValueError, match="shapes: expected"):
        sc.warm_up("numpy", [(0, 4)])
