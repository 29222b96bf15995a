"""Whose threads work on lent memory, and warming up before the first request."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

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
    threads = 1  # a pool of the calling thread alone, which NumPy's product leaves alone too
    taken.clear()
    sc.maximize(sc.Dispersion.from_features(torch.from_numpy(x)), 9)
    sc.effective_rank(torch.from_numpy(x).float())
    assert taken == []


def test_a_product_of_tokens_with_themselves_counts_half(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []
    pool = lending.Pool(lambda x, y: taken.append(x.shape) or x @ y, np.linalg.eigvalsh, lambda: 2)
    x = np.random.default_rng(0).standard_normal((3, 40, 12))
    monkeypatch.setattr(lending, "SMALL", 3 * 40 * 40 * 12 // 2)
    with lending.worked_on_by(pool):
        found = lending.product(x, np.swapaxes(x, -1, -2))
        np.testing.assert_allclose(found, x @ np.swapaxes(x, -1, -2))
        lending.product(x[::-1], np.swapaxes(x[::-1], -1, -2))
        assert taken == []
        for other in (x.copy(), x[::-1], x[:, ::-1]):
            lending.product(x, np.swapaxes(other, -1, -2))
        assert taken == 3 * [x.shape]
        lending.product(x, x.copy().reshape(3, 12, 40))
        monkeypatch.setattr(lending, "SMALL", 40 * 12)
        lending.product(x[0], x[0, 0])
        assert len(taken) == 4


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_images_with_themselves_are_shared_by_threads_that_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    taken: list[tuple[int, ...]] = []
    pool = lending.Pool(
        lambda x, y: taken.append(x.shape) or x @ y, np.linalg.eigvalsh, lambda: threads
    )
    x = np.random.default_rng(0).standard_normal((3, 2, 40, 12)).astype(np.float32)
    alone = np.stack([[image @ image.T for image in row] for row in x])
    at_work: set[int] = set()
    shared = lending._of_images

    def seen(*args: Any) -> Any:
        at_work.add(args[-1])
        return shared(*args)

    monkeypatch.setattr(lending, "_of_images", seen)
    for limit in ("PART", "EACH", "SMALL"):
        monkeypatch.setattr(lending, limit, 100)
    room = np.empty_like(alone)
    with lending.worked_on_by(pool):
        for out in (None, room):
            found = lending.product(x, np.swapaxes(x, -1, -2), out)
            np.testing.assert_array_equal(found, alone)
            assert found.dtype == np.float32
        assert found is room
        assert (at_work, taken) == ({threads}, [])
        lending.product(x[0, :1], np.swapaxes(x[0, :1], -1, -2))  # no image for each of them
        lending.product(x, np.swapaxes(x.copy(), -1, -2))
        with lending.alone(0):
            lending.product(x, np.swapaxes(x, -1, -2))
        assert at_work == {threads}
        assert len(taken) == (0 if threads == 1 else 3)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", [(41, 12), (7, 30), (1, 41, 12), (1, 1, 33, 12)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_large_images_with_themselves_are_taken_in_blocks(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: str, threads: int
) -> None:
    taken: list[tuple[int, ...]] = []
    pool = lending.Pool(
        lambda x, y: taken.append(x.shape) or x @ y, np.linalg.eigvalsh, lambda: threads
    )
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    y = np.swapaxes(x, -1, -2)
    wanted = x.astype(np.float64) @ y
    for limit in ("PART", "EACH", "SMALL", "WHOLE"):
        monkeypatch.setattr(lending, limit, 100)
    room = np.empty(wanted.shape, dtype=dtype)
    with lending.worked_on_by(pool):
        for out in (None, room):
            found = lending.product(x, y, out)
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(found, np.swapaxes(found, -1, -2))
            assert found.dtype == dtype
        assert found is room
        with lending.alone(0):
            np.testing.assert_array_equal(lending.product(x, y), found)
        assert taken == []
        across = lending.product(y, x)  # channels with themselves
        np.testing.assert_allclose(across, y.astype(np.float64) @ x, rtol=1e-4, atol=1e-4)
        monkeypatch.setattr(lending, "WHOLE", 1 << 40)
        lending.product(x, y)
        assert len(taken) == 1


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(("height", "width"), [(5, 90), (90, 5), (1, 90), (40, 40)])
def test_few_of_many_lent_vectors_with_all_are_taken_in_strips(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, threads: int
) -> None:
    taken: list[tuple[int, ...]] = []
    pool = lending.Pool(
        lambda x, y: taken.append(x.shape) or x @ y, np.linalg.eigvalsh, lambda: threads
    )
    dice = np.random.default_rng(0)
    x, y = dice.standard_normal((height, 12)), dice.standard_normal((12, width))
    at_work: list[int] = []
    for limit in ("PART", "SMALL", "WHOLE", "MANY"):
        monkeypatch.setattr(lending, limit, 10)
    beside = lending.side_by_side

    def seen(run: Any, jobs: Any, work: int) -> Any:
        at_work.append(len(jobs))
        return beside(run, jobs, work)

    monkeypatch.setattr(lending, "side_by_side", seen)
    room = np.empty((height, width))
    with lending.worked_on_by(pool):
        for out in (None, room):
            found = lending.product(x, y, out)
            np.testing.assert_allclose(found, x @ y, rtol=1e-13)
        assert found is room
        assert lending.product(x.astype(np.float32), y).dtype == np.float64
        assert (at_work, taken) == (3 * [4 * threads], [])
        lending.product(x, y[:, 0])
        assert len(taken) == 1
    lending.product(x, y)  # of arrays BLAS's threads take it
    assert len(at_work) == 3


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_take_jobs_in_turn_and_the_caller_is_one_of_them(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(lending, "hands", lambda work: threads)
    meet = threading.Barrier(threads)
    by: list[threading.Thread] = []

    def run(number: int) -> Any:
        by.append(threading.current_thread())
        if number < threads:  # the first ones at the same time, each by another thread
            meet.wait(10)
        if number == 7:
            raise ArithmeticError("seven")
        return np.asarray(number)

    found = lending.side_by_side(run, [(i,) for i in range(7)], 1)
    assert [int(each) for each in found] == [*range(7)]
    assert len({each.ident for each in by[:threads]}) == threads
    assert threading.current_thread() in by[:threads]
    assert lending.side_by_side(run, [], 1) == []
    jobs = [(i,) for i in range(20)]
    with pytest.raises(ArithmeticError, match="seven"):
        lending.side_by_side(run, jobs, 1)
    assert not lending._one.within


@pytest.fixture
def two_threads() -> Iterator[list[Any]]:
    """What does linear algebra here, with two threads each, however many cores there are."""
    blas = lending._libraries("torch" in sys.modules, "scipy.linalg" in sys.modules)[0]
    before = [lending._set(each, 2) for each in blas]
    assert [each.num_threads for each in blas] == [2] * len(blas) != []
    yield blas
    for each, count in zip(blas, before, strict=True):
        lending._set(each, count)


def test_of_whoever_shares_work_each_is_one_thread(
    monkeypatch: pytest.MonkeyPatch, two_threads: list[Any]
) -> None:
    taken: list[str] = []
    pool = lending.Pool(lambda x, y: taken.append("pool") or x @ y, np.linalg.eigvalsh, lambda: 2)
    monkeypatch.setattr(lending, "SMALL", 10)
    x, y = np.ones((20, 30)), np.ones((30, 20))

    def run() -> Any:
        found = lending.product(x, y)
        with lending._one.left():
            taken.extend("more" for each in two_threads if each.num_threads > 1)
        return found

    with lending.worked_on_by(pool):
        monkeypatch.setattr(lending, "hands", lambda work: 2)
        for found in lending.side_by_side(run, [()] * 6, 1):
            np.testing.assert_array_equal(found, x @ y)
        assert taken == []
        lending.product(x, y)
        assert taken == ["pool"]


def test_a_video_of_tensors_wakes_no_second_pool_between_its_products(
    monkeypatch: pytest.MonkeyPatch, two_threads: list[Any]
) -> None:
    torch = pytest.importorskip("torch")
    seen: list[int] = []
    factored = np.linalg.qr

    def looked(x: Any) -> Any:
        seen.extend(each.num_threads for each in two_threads)
        return factored(x)

    monkeypatch.setattr(np.linalg, "qr", looked)
    monkeypatch.setattr(lending, "WHOLE", 2000)  # as a choice that all threads may work on
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 12)))
    sc.maximize(sc.LogDeterminant.from_span(x), 9)
    assert seen
    assert set(seen) == {1}


class _Library:
    num_threads = 2

    def set_num_threads(self, count: int) -> None:
        self.num_threads = count


class _PerThread(threading.local):
    """As OpenMP, which every thread sets for itself."""

    num_threads = 2

    def set_num_threads(self, count: int) -> None:
        self.num_threads = count


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> tuple[_Library, _PerThread]:
    blas, openmp = _Library(), _PerThread()
    monkeypatch.setattr(lending, "_libraries", lambda *loaded: ([blas], [openmp]))
    return blas, openmp


def test_one_thread_is_for_those_within_and_restored_by_the_last(
    libraries: tuple[_Library, _PerThread],
) -> None:
    one, (blas, openmp) = lending._OneThread(), libraries
    inside, leave = threading.Event(), threading.Event()
    found: list[int] = []

    def other() -> None:
        with one:
            inside.set()
            leave.wait(10)
        found.append(openmp.num_threads)

    with one:
        worker = threading.Thread(target=other)
        worker.start()
        inside.wait(10)
        with one:
            assert (blas.num_threads, openmp.num_threads) == (1, 1)
        assert (blas.num_threads, openmp.num_threads) == (1, 1)
    # The other is within still: what is the process's stays, what is this thread's is restored.
    assert (blas.num_threads, openmp.num_threads) == (1, 2)
    leave.set()
    worker.join()
    assert (blas.num_threads, found) == (2, [2])


def test_large_products_of_a_choice_on_one_thread_are_taken_by_all(
    libraries: tuple[_Library, _PerThread],
) -> None:
    one, (blas, openmp) = lending._OneThread(), libraries
    with one, one:
        with one.left():
            assert (blas.num_threads, openmp.num_threads) == (2, 2)
            with one:
                assert (blas.num_threads, openmp.num_threads) == (1, 1)
            assert (blas.num_threads, openmp.num_threads) == (2, 2)
        assert (blas.num_threads, openmp.num_threads) == (1, 1)
    with one.left():
        assert (blas.num_threads, openmp.num_threads) == (2, 2)
    assert (blas.num_threads, openmp.num_threads) == (2, 2)


def test_parts_of_large_products_are_taken_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    pool = lending.Pool(np.matmul, np.linalg.eigvalsh, lambda: 2)
    shared = lending._of_strips
    monkeypatch.setattr(
        lending, "_of_strips", lambda *args: taken.append(args[0].size) or shared(*args)
    )
    few, many = np.ones((80, 64), np.float32), np.ones((20_000, 64), np.float32)
    small = np.ones((576, 1024), np.float32)
    with lending.worked_on_by(pool):
        lending.product(small, small.T)
        lending.product(many, many[0])
        assert taken == []
        # A few tokens with all: one of the many products of facility location from features.
        lending.product(few, many.T)
        assert taken == [few.size]
        with lending.alone(1):
            lending.product(few, many.T)
        assert taken == [few.size]


def test_a_choice_among_few_tokens_is_one_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's threads would meet at each of its hundreds of steps, late beside other work."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    seen: list[int] = []
    kind = sc.methods()["fps"]
    plain = kind.choose

    def choose(self: sc.Method, tokens: sc.Tokens, k: int) -> sc.Selection:
        seen.append(torch.get_num_threads())
        return plain(self, tokens, k)

    monkeypatch.setattr(kind, "choose", choose)
    method, x = kind(keep=4), torch.randn(40, 12)
    torch.set_num_threads(2)
    try:
        method.select(sc.Tokens(features=x))
        assert (seen.pop(), torch.get_num_threads()) == (1, 2)
        with pytest.raises(ValueError, match="NaN"):
            method.select(sc.Tokens(features=x * torch.nan))
        assert torch.get_num_threads() == 2
        with sc.backend("reference"):
            method.select(sc.Tokens(features=x))
        assert seen.pop() == 2
        monkeypatch.setattr(lending, "WHOLE", 0)
        method.select(sc.Tokens(features=x))
        assert (seen.pop(), torch.get_num_threads()) == (2, 2)
    finally:
        torch.set_num_threads(before)


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


@pytest.mark.parametrize("name", ["SalientCoverage", "MarginalRelevance"])
def test_gains_of_tensors_are_kept_on_lent_memory(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pick takes a dozen steps on N numbers, each of which costs PyTorch several times more."""
    torch = pytest.importorskip("torch")
    kind = getattr(sc, name)
    seen: list[type] = []
    plain = kind.tracker
    monkeypatch.setattr(kind, "tracker", lambda f: seen.append(type(f.sample)) or plain(f))
    dice = np.random.default_rng(3)
    matrix, salient = dice.random((2, 90, 90)).astype(np.float32), dice.random((2, 90))
    wanted = sc.maximize(kind(matrix, salient), [7, 30])
    found = sc.maximize(kind(torch.from_numpy(matrix), torch.from_numpy(salient)), [7, 30])
    # Of salient coverage NumPy's driver keeps the gains itself.
    assert set(seen) == ({np.ndarray} if name == "MarginalRelevance" else set())
    assert isinstance(found.indices, torch.Tensor)
    assert found.indices.tolist() == wanted.indices.tolist()
    assert found.gains.tolist() == wanted.gains.tolist()


def test_our_methods_choose_from_tensors_on_lent_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another one wrote may call his library by its name, half precision has no NumPy."""
    torch = pytest.importorskip("torch")
    kind, seen = sc.methods()["topk"], []

    def choose(self: sc.Method, tokens: sc.Tokens, k: int) -> sc.Selection:
        seen.append(type(tokens.attention))
        return sc.Selection.of(
            tokens.attention.argsort()[:k], tokens.size, scores=tokens.attention[::-1]
            if isinstance(tokens.attention, np.ndarray) else tokens.attention,
            info={"told": tokens.attention.max(), "name": "topk"},
        )  # fmt: skip

    monkeypatch.setattr(kind, "choose", choose)
    attention = torch.rand(20)
    given = sc.Tokens(features=torch.randn(20, 4), attention=attention)
    found = kind(keep=3).select(given)
    assert seen.pop() is np.ndarray
    assert found.indices.tolist() == attention.argsort()[:3].tolist()
    assert found.scores.tolist() == attention.flip(0).tolist()
    assert isinstance(found.info["told"], torch.Tensor)
    assert found.info["name"] == "topk"

    class Theirs(kind):  # type: ignore[misc, valid-type]
        pass

    half = given.with_(features=given.features.half(), attention=attention.half())
    sparse = given.with_(text=torch.eye(4).to_sparse())  # which it does not look at
    for method, tokens in ((Theirs(keep=3), given), (kind(keep=3), half), (kind(keep=3), sparse)):
        method.select(tokens)
        assert seen.pop() is torch.Tensor
    with sc.backend("torch"):
        kind(keep=3).select(given)
    assert seen.pop() is torch.Tensor


def test_theirs_within_ours_is_given_tensors() -> None:
    torch = pytest.importorskip("torch")
    seen: list[type] = []

    class Theirs(sc.DivPrune):
        def choose(self, tokens: sc.Tokens, k: int) -> sc.Selection:
            seen.append(type(tokens.features))
            return super().choose(tokens, k)

    method = sc.Mixture(keep=8, diversity=Theirs(keep=8), mean_erank=5.0)
    method.select(sc.Tokens(features=torch.randn(40, 6), attention=torch.rand(40)))
    assert seen == [torch.Tensor]
