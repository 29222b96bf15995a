"""What limits each operation: ``python benchmarks/limits.py [--write]``.

Measures how fast this machine copies memory and multiplies matrices, then every operation of the
drivers for NumPy arrays against the bytes it must move or the products it must take at those
rates; how facility location grows with N at k = N / 8; and what it takes from features, without
the matrix, at N = 16,384. With ``--write`` the page and its picture are written.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import matplotlib as mpl
import numpy as np
from machine import DOCS, described, interleaved, medians, spelled
from suite.images import photo_like, relevance_like

import secateur as sc
from secateur.backends.host import compiled, kernels, sources
from secateur.backends.host import driver as plain
from secateur.backends.host import greedy as greedy_numpy

mpl.use("agg")
import matplotlib.pyplot as plt


class Row(NamedTuple):
    name: str
    seconds: float
    bytes: float
    products: float
    limit: str


def median(run: Callable[[], object], rounds: int = 5) -> float:
    run()
    times = []
    for _ in range(rounds):
        time.sleep(0.01)
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def copy_rate() -> float:
    """Bytes read and written a second, by one thread, beyond any cache."""
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    return 2 * source.nbytes / median(lambda: np.copyto(target, source))


def product_rate(dtype: str) -> float:
    """Multiplications and additions a second of a matrix product, by all threads."""
    x = np.ones((2048, 2048), dtype=dtype)
    y = np.ones((2048, 2048), dtype=dtype)
    return 2 * 2048**3 / median(lambda: x @ y)


def touched(s: np.ndarray, w: np.ndarray, k: int) -> int:
    """Rows that k picks improve, summed over the picks."""
    state = greedy_numpy.Served(sources.Dense(s), w)
    before = state._terms
    greedy_numpy.greedy(state, k)
    return state._terms - before


def operations() -> list[Row]:
    n, k, d = 2304, 320, 1024
    x, w = photo_like(n, d), relevance_like(n)
    s = plain.cosine_similarity(x)
    rows = n + touched(s, w, k)
    q = np.random.default_rng(0).standard_normal((16, 577, 64)).astype(np.float32)
    picture = np.random.default_rng(0).integers(0, 200, (2160, 3840, 3), dtype=np.uint8)
    words = plain.unit(photo_like(77, d, seed=3))
    unit = plain.unit(x)
    asked = (unit, words, words[0], np.ones(77, dtype=bool), 100.0, 0.2, 0.01, 0.5, "entropy", -1)
    step, distance = np.asarray(0.01), 1.0 - s
    matrix = n * n * 4.0
    once = f"rows read: {rows / n:.1f} times the matrix, and vector arithmetic on them"
    gram = 2.0 * n * n * d
    return [
        Row(
            "facility_location, numba",
            median(lambda: compiled.facility_location(sc.FacilityLocation(s, w), k), 9),
            rows * n * 4.0,
            0,
            once,
        ),
        Row(
            "facility_location, numpy",
            median(lambda: plain.facility_location(sc.FacilityLocation(s, w), k)),
            rows * n * 4.0,
            0,
            "the same rows, four passes over each block",
        ),
        Row(
            "determinant, numba",
            median(lambda: compiled.determinant(sc.LogDeterminant(s), k)),
            0,
            2.0 * k * k * n,
            "products with what earlier picks explain, in float64, and a loop for each pick",
        ),
        Row(
            "determinant, numpy",
            median(lambda: plain.determinant(sc.LogDeterminant(s), k)),
            0,
            2.0 * k * k * n,
            "the same products, and some calls on short arrays for each pick",
        ),
        Row(
            "farthest_first, numba",
            median(lambda: compiled.farthest_first(sc.Dispersion(distance), k)),
            matrix,
            0,
            "columns of the matrix, one cache line an entry",
        ),
        Row(
            "farthest_first_features, numba",
            median(lambda: compiled.farthest_first_features(sc.Dispersion.from_features(x), k), 3),
            0,
            gram,
            "the matrix product, of which symmetry saves nearly half",
        ),
        Row(
            "cosine_similarity, numba",
            median(lambda: compiled.cosine_similarity(x)),
            2 * matrix,
            gram,
            "the matrix product, of which symmetry saves nearly half",
        ),
        Row(
            "singular_values",
            median(lambda: plain.singular_values(x), 3),
            0,
            2.0 * d * d * n * 2,
            "reduction to a tridiagonal matrix, in float64",
        ),
        Row(
            "text_relevance",
            median(lambda: plain.text_relevance(*asked)),
            0,
            2.0 * n * 77 * d,
            "the matrix product, 77 columns wide",
        ),
        Row(
            "threshold_scan, numba",
            median(lambda: compiled.threshold_scan(x, w, k, step, 1.0)),
            0,
            k * k * d * 1.0,
            "inner products one by one",
        ),
        Row(
            "attention_received, 16 x 577 x 577",
            median(lambda: plain.attention_received(q, q)),
            0,
            2.0 * 16 * 577 * 577 * 64,
            "exponentials, and small matrix products",
        ),
        Row(
            "patch_entropy 3840 x 2160, numba",
            median(lambda: compiled.patch_entropy(picture, 28)),
            picture.nbytes * 1.0,
            0,
            "one histogram entry raised for each pixel",
        ),
        Row(
            "patch_entropy 3840 x 2160, numpy",
            median(lambda: plain.patch_entropy(picture, 28)),
            picture.nbytes * 1.0,
            0,
            "about ten passes over each row of patches",
        ),
    ]


def growth() -> tuple[dict[str, list[tuple[int, float]]], list[tuple[int, float]]]:
    """Seconds of facility location at k = N / 8, by driver, and the matrix entries it reads."""
    times: dict[str, list[tuple[int, float]]] = {"numba": [], "numpy": []}
    entries = []
    for n in (1024, 2048, 4096, 8192):
        s, w = plain.cosine_similarity(photo_like(n, 128)), relevance_like(n)
        entries.append((n, float(n * (n + touched(s, w, n // 8)))))
        f = sc.FacilityLocation(s, w)
        for driver, found in times.items():
            run = lambda f=f, n=n, driver=driver: sc.maximize(f, n // 8, backend=driver)  # noqa: E731
            found.append((n, median(run, 3)))
    return times, entries


def exponent(points: list[tuple[int, float]]) -> float:
    """b of the fit seconds = a N^b."""
    n, seconds = np.log(np.asarray(points)).T
    return float(np.polyfit(n, seconds, 1)[0])


def products(run: Callable[[], object], size: int) -> float:
    """Multiply-adds of similarities that a call takes, in products of all tokens with all."""
    taken: list[int] = []

    def counted(take: Callable[..., Any], how_many: Callable[..., int]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            taken.append(how_many(*args))
            return take(*args)

        return call

    def of_product(a: Any, b: Any, *_: Any) -> int:
        return int(a.size * (b.shape[-1] if b.ndim > 1 else 1))

    with ExitStack() as stack:
        for module in (compiled, plain, greedy_numpy):
            patched = counted(module.product, of_product)
            stack.enter_context(mock.patch.object(module, "product", patched))
        for name, how_many in {
            "similarities_to": lambda x, *_: x.size,
            "similarities_at": lambda x, rows, *_: len(rows) * x.shape[1],
        }.items():
            patched = counted(getattr(kernels, name), how_many)
            stack.enter_context(mock.patch.object(kernels, name, patched))
        run()
    return sum(taken) / size


def from_features(n: int, d: int, k: int, rounds: int) -> list[str]:
    x, w = photo_like(n, d), relevance_like(n)
    unit = plain.unit(x)
    other = unit.copy()
    matrix = "-"
    once = float("nan")
    if n <= 16384:
        once = min(median(lambda: unit @ unit.T, 3), median(lambda: unit @ other.T, 3))
        matrix = spelled(once)
    lines = []
    for name, driver in (("numba", compiled), ("numpy", plain)):

        def run(driver: Any = driver) -> object:
            return driver.facility_location_features(sc.FacilityLocation.from_features(x, w), k)

        seconds, count = median(run, rounds), products(run, n * n * d)
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        ratio = f"{seconds / once:.1f}" if n <= 16384 else "-"
        lines.append(
            f"| {n}, {d}, {k} | {name} | {spelled(seconds)} | {matrix} | {ratio} | {count:.2f} "
            f"| {peak:.0f} MiB |"
        )
    return lines


def row_by_row(x: np.ndarray, k: int, start: int | None) -> list[int]:
    """Farthest-first with a row of cosines for each pick, in single precision."""
    u = plain.unit(x)
    if start is None:
        nearest = np.full(len(u), -math.inf, dtype=u.dtype)
        for i in range(0, len(u), 1024):
            s = u[i : i + 1024] @ u[i:].T
            np.fill_diagonal(s, -math.inf)
            np.maximum(nearest[i : i + len(s)], s.max(axis=1), out=nearest[i : i + len(s)])
            np.maximum(nearest[i:], s.max(axis=0), out=nearest[i:])
        start = int(nearest.argmin())
    picks, nearest = [start], u @ u[start]
    while len(picks) < k:
        nearest[picks[-1]] = math.inf
        picks.append(int(nearest.argmin()))
        np.maximum(nearest, u @ u[picks[-1]], out=nearest)
    return picks


def farthest_of_many() -> list[str]:
    """Lines of farthest-first beside a row for each pick, in turns."""
    lines = []
    for n, d, k in ((4096, 1024, 410), (16384, 256, 1024), (16384, 1024, 1024), (50000, 64, 100)):
        x = photo_like(n, d)
        f = sc.Dispersion.from_features(x)
        for name, start in (("token 0", 0), ("the most isolated (`DivPrune`)", None)):
            runs = {
                "rows": lambda x=x, k=k, start=start: row_by_row(x, k, start),
                "numpy": lambda f=f, k=k, start=start: plain.farthest_first_features(f, k, start),
                "numba": lambda f=f, k=k, start=start: compiled.farthest_first_features(
                    f, k, start
                ),
            }
            times = medians(interleaved(runs, 3))
            lines.append(
                f"| {n}, {d}, {k} | {name} | {spelled(times['rows'])} "
                f"| {spelled(times['numpy'])} | {spelled(times['numba'])} "
                f"| {times['rows'] / times['numba']:.1f} |"
            )
    return lines


def table(rows: list[Row], copying: float, multiplying: float) -> list[str]:
    lines = [
        "| operation | time | at copy rate | at product rate | reached | limited by |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        moving, taking = row.bytes / copying, row.products / multiplying
        cells = [spelled(each) if each else "-" for each in (moving, taking)]
        share = max(moving, taking) / row.seconds
        lines.append(
            f"| {row.name} | {spelled(row.seconds)} | {cells[0]} | {cells[1]} "
            f"| {share:.0%} | {row.limit} |"
        )
    return lines


def plot(times: dict[str, list[tuple[int, float]]]) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for (name, points), colour in zip(times.items(), ("#d84315", "#607d8b"), strict=True):
        n, seconds = np.asarray(points).T
        axes.loglog(n, 1e3 * seconds, "o", color=colour)
        b = exponent(points)
        a = np.exp(np.mean(np.log(seconds) - b * np.log(n)))
        axes.loglog(n, 1e3 * a * n**b, color=colour, label=f"{name}: time ~ N^{b:.2f}")
    axes.set_xticks([n for n, _ in points], [str(n) for n, _ in points])
    axes.minorticks_off()
    axes.set_xlabel("tokens N, k = N / 8")
    axes.set_ylabel("milliseconds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title("Facility location from a matrix, float32", fontsize=10)
    figure.savefig(DOCS / "images" / "growth.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the page and the picture")
    given = parser.parse_args()
    compiled.wake()
    copying, multiplying = copy_rate(), product_rate("float32")
    rates = [
        f"Copying: {copying / 1e9:.1f} GB/s read and written, one thread, 256 MiB arrays.",
        (
            f"Matrix product: {multiplying / 1e9:.0f} GFLOP/s in float32, "
            f"{product_rate('float64') / 1e9:.0f} in float64, all threads, 2048 x 2048."
        ),
    ]
    print("\n".join(rates))
    lines = table(operations(), copying, multiplying)
    print("\n".join(lines))
    times, entries = growth()
    fits = [f"{name}: N^{exponent(points):.2f}" for name, points in times.items()]
    late = [f"{name}: N^{exponent(points[-2:]):.2f}" for name, points in times.items()]
    print("entries read:", f"N^{exponent(entries):.2f}", "time:", fits, "from 4096 on:", late)
    features = [
        "| N, D, k | driver | time | matrix once | ratio | products | memory above the inputs |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *from_features(16384, 256, 1024, 3),
        *from_features(50000, 64, 100, 1),
    ]
    print("\n".join(features))
    many = [
        "| N, D, k | from | a row a pick | numpy | numba | times faster |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *farthest_of_many(),
    ]
    print("\n".join(many))
    if given.write:
        plot(times)
        page = [
            "# What limits each operation",
            "",
            "Measured by `python benchmarks/limits.py --write`:",
            described("secateur", "numpy", "numba", "scipy"),
            "",
            *[f"- {rate}" for rate in rates],
            "",
            "N = 2304, D = 1024, k = 320, float32, where nothing else is said; medians. Beside the",
            "time stands what the bytes that must be moved, or the products that must be taken,",
            "would take at those rates. More than 100 % means that the data came from cache, which",
            "is faster than memory, or that symmetry halved the products.",
            "",
            *lines,
            "",
            "## Growth",
            "",
            "At k = N / 8 the entries of the matrix that facility location reads grow as",
            f"N^{exponent(entries):.2f}. Its time, fitted over N = 1024 to 8192, grows as",
            f"{fits[0].split(': ')[1]} (numba) and {fits[1].split(': ')[1]} (numpy): between",
            "N = 2048 and N = 4096 the matrix leaves the cache, which costs once; from 4096 on",
            f"it grows as {late[0].split(': ')[1]} (numba) and {late[1].split(': ')[1]} (numpy).",
            "",
            "![Time against N for both drivers, with fits](../images/growth.png)",
            "",
            "## From features, without the matrix",
            "",
            "The matrix is never built. Its single computation is timed beside, for measure, by",
            "whichever of the two products NumPy offers for it is faster. Memory is the peak that",
            "`tracemalloc` saw. Products are the multiply-adds of similarities that were taken, in",
            "those of all tokens with all, counted.",
            "",
            *features,
            "",
            "The first pick touches every row, and half of the similarities will do for it. A row",
            "that is touched again is computed once more, and the candidates that could serve it",
            "better yet are listed, in 6 kB a token: then it is never computed again. Threads",
            "share the rows of a pick.",
            "",
            "## Farthest-first of many tokens",
            "",
            "From features, beside a NumPy loop that takes a row of cosines for each pick in",
            "single precision (and half of all cosines where it begins with the most isolated",
            "token) and tells no near ties apart, in turns. Few tokens are looked at for most",
            "picks: see [farthest-first](../algorithms/farthest-first.md).",
            "",
            *many,
            "",
        ]
        (DOCS / "benchmarks" / "limits.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
