"""What the PyTorch driver does on a CUDA device: first whether it is right, then how fast.

    python benchmarks/gpu.py              # where there is a GPU; under four minutes
    python benchmarks/gpu.py --sweep      # also: how many programs should share an image
    python benchmarks/gpu.py --interpret  # the checks alone, kernels run by Triton's interpreter

Picks are compared with those of float64 on the CPU. Times are medians between device events:
of calls, as a program feels them, and of the same call replayed from a CUDA graph, where the
host does not count. The floor is the time to read the matrix once and to launch the kernels,
both measured here. Dense greedy is what the papers' programs do, without their waiting for the
device at each pick; triton-submodular takes part where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--interpret", action="store_true", help="check the kernels on the host")
parser.add_argument("--sweep", action="store_true", help="time 1 to 32 programs an image")
options = parser.parse_args()
if options.interpret:
    # Read by Triton when it is imported.
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np  # noqa: E402
import paper  # noqa: E402
import torch  # noqa: E402
from machine import described, spelled  # noqa: E402
from suite.images import photo_like, relevance_like  # noqa: E402

import secateur as sc  # noqa: E402
from secateur.backends.torch import driver  # noqa: E402
from secateur.backends.torch import greedy as plain  # noqa: E402
from secateur.core.attention import attention_received  # noqa: E402
from secateur.core.maximize import determinant, facility_location, farthest_first  # noqa: E402
from secateur.core.measures import patch_entropy  # noqa: E402
from secateur.core.threshold import threshold_scan  # noqa: E402

LAUNCHES = 4
"""Kernels of one call of facility location."""
TARGETS = {(576, 64, 1): 0.3e-3, (576, 64, 64): 1e-3, (2880, 320, 1): 3e-3}
"""Seconds for N, k and images on a GPU like the H200."""
SIZES = (*TARGETS, (2304, 320, 1), (4096, 512, 1), (4096, 512, 8))

Tensor = Any


def kernels() -> Any:
    from secateur.backends.torch import launch

    return launch


def photographs(n: int, images: int, device: str) -> tuple[Tensor, Tensor]:
    """Similarities (images, n, n) in float32 and weights (images, n) on the device."""
    x = torch.from_numpy(np.stack([photo_like(n, 256, seed) for seed in range(images)]))
    w = torch.from_numpy(np.stack([relevance_like(n, seed) for seed in range(images)]))
    return driver.cosine_similarity(x.to(device)), w.float().to(device)


def expect(name: str, answer: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Stop unless the answer is the expected one; picks to the index, numbers to `rtol`."""
    for x, y in zip(answer, expected, strict=True):
        x = np.asarray(x.cpu() if isinstance(x, torch.Tensor) else x)
        y = np.asarray(y)
        if y.dtype.kind in "iu" and not np.array_equal(x, y):
            raise SystemExit(f"{name}: {np.sum(x != y)} of {y.size} picks differ")
        if y.dtype.kind == "f" and not np.allclose(x, y, rtol=rtol, atol=1e-9):
            raise SystemExit(f"{name}: off by up to {np.max(np.abs(x - y)):.1e}")
    print(f"  {name}: right")


def check(device: str, solver: Any, sizes: tuple[tuple[int, int, int], ...]) -> None:
    """Every operation against the CPU in float64, on photographs and on ties."""
    print(f"Checks on {device}:")
    for n, k, images in sizes:
        s, w = photographs(n, images, device)
        budget = np.maximum(1, k - np.arange(images) % 3)
        slow = facility_location(
            sc.FacilityLocation(s.cpu().double().numpy(), w.cpu().double().numpy()), budget
        )
        name = f"facility location, N = {n}, k = {k}, {images} images"
        expect(name, solver.facility_location(s, w, budget, 0.0), slow)
    n, k, _ = sizes[0]
    x = torch.from_numpy(photo_like(n, 16)).double()
    x[n // 3 :: 5] = x[0]
    s = driver.cosine_similarity(x)
    tied = torch.round(3 * s)
    expect(
        "facility location, ties",
        solver.facility_location(tied.to(device), None, k, 0.0),
        facility_location.reference(sc.FacilityLocation(tied.numpy()), k),
    )
    kernel = s + 0.1 * torch.eye(n).double()
    expect(
        "determinant",
        solver.determinant(kernel.to(device), k),
        determinant.reference(sc.LogDeterminant(kernel.numpy()), k),
    )
    d = (1.0 - s).clamp(min=0)
    expect(
        "farthest-first",
        solver.farthest_first(d.to(device), k, None),
        farthest_first.reference(sc.Dispersion(d.numpy()), k),
    )
    a, step = torch.from_numpy(relevance_like(n)), np.asarray(0.02)
    expect(
        "threshold scan",
        solver.threshold_scan(driver.unit(x.to(device)), a.to(device), k, step, 0.5),
        threshold_scan.reference(x.numpy(), a.numpy(), k, step, 0.5),
    )


def check_the_rest(device: str) -> None:
    """What runs without kernels of its own."""
    x = torch.from_numpy(photo_like(300, 64))
    for half in (torch.bfloat16, torch.float16):
        f = sc.FacilityLocation.from_features(x.to(device, half))
        g = sc.FacilityLocation.from_features(x.to(half).double().numpy())
        expect(f"{half} features", [sc.maximize(f, 40).indices], [sc.maximize(g, 40).indices])
    few = x.double()
    expect(
        "determinant of a span",
        [sc.maximize(sc.LogDeterminant.from_span(few.to(device)), 40).indices],
        [sc.maximize(sc.LogDeterminant.from_span(few.numpy()), 40).indices],
    )
    rank = sc.effective_rank(x.to(device))
    expect("effective rank", [rank], [sc.effective_rank(x.double().numpy())], rtol=1e-5)
    image = np.random.default_rng(0).integers(0, 256, (280, 420, 3), dtype=np.uint8)
    entropies = patch_entropy(torch.from_numpy(image).to(device), 28)
    expect("patch entropy", [entropies], [patch_entropy.reference(image, 28)], rtol=1e-12)
    dice = np.random.default_rng(1)
    q, keys = dice.standard_normal((16, 300, 64)), dice.standard_normal((16, 300, 64))
    received = attention_received(torch.from_numpy(q).to(device), torch.from_numpy(keys).to(device))
    expect("attention received", [received], [attention_received.reference(q, keys)])


def seconds(run: Callable[[], Any], rounds: int = 20) -> float:
    """Median time of a call between device events, after three that do not count."""
    times = []
    for turn in range(rounds + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def replayed(run: Callable[[], Any]) -> float:
    """Median time of the same call replayed from a CUDA graph, NaN where it cannot be recorded."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        print(f"no CUDA graph: {error}")
        return math.nan
    return seconds(graph.replay)


def ceilings() -> tuple[float, float]:
    """Bytes a second that this device reads at best, and the seconds of an empty launch."""
    x = torch.empty(1 << 28, device="cuda")
    bandwidth = x.numel() * x.element_size() / seconds(lambda: x.sum())
    one = torch.zeros(1, device="cuda")

    def many() -> None:
        for _ in range(100):
            one.add_(1.0)

    return bandwidth, replayed(many) / 100


def dense_greedy(s: Tensor, w: Tensor, k: int) -> Tensor:
    """All gains from the whole matrices at every pick, in float32."""
    m, places = torch.zeros_like(w), []
    taken = torch.zeros_like(w, dtype=torch.bool)
    for _ in range(k):
        gains = (w[:, :, None] * (s - m[:, :, None]).clamp(min=0)).sum(1)
        place = gains.masked_fill(taken, -torch.inf).argmax(-1, keepdim=True)
        taken.scatter_(1, place, True)
        m = torch.maximum(m, s.gather(2, place[:, None].expand(-1, s.shape[1], -1))[..., 0])
        places.append(place)
    return torch.cat(places, 1)


def triton_submodular(s: Tensor, w: Tensor, k: int) -> float | None:
    """Its fastest optimizer on one image, or None where it is not installed or fails."""
    if importlib.util.find_spec("triton_submodular") is None or len(s) > 1:
        return None
    from triton_submodular.functions import FacilityLocation

    # Rows are its candidates, and it has no weights: scaled columns are the same function.
    f = FacilityLocation((w[0, :, None] * s[0]).T.contiguous(), metric=None)
    times = []
    for optimizer in ("NaiveGreedyTriton", "LazyGreedyTriton"):
        try:
            times.append(seconds(lambda name=optimizer: f.maximize(k, name), rounds=5))
        except Exception as error:
            print(f"triton-submodular, {optimizer}: {type(error).__name__}: {error}")
    return min(times, default=None)


def race(solver: Any) -> None:
    """The table of facility location."""
    bandwidth, launch = ceilings()
    print(f"\nReads {bandwidth / 1e12:.2f} TB/s at best; a launch takes {spelled(launch)}.\n")
    print(
        "| N, k, images | call | in a graph | floor | target | dense greedy | times faster | "
        "triton-submodular |"
    )
    print("| --- |" + " ---: |" * 7)
    for n, k, images in SIZES:
        s, w = photographs(n, images, "cuda")
        call = seconds(lambda s=s, w=w, k=k: solver.facility_location(s, w, k, 0.0))
        graph = replayed(lambda s=s, w=w, k=k: solver.facility_location(s, w, k, 0.0))
        floor = s.numel() * s.element_size() / bandwidth + LAUNCHES * launch
        dense = seconds(lambda s=s, w=w, k=k: dense_greedy(s, w, k), rounds=3)
        other = triton_submodular(s, w, k)
        target = TARGETS.get((n, k, images))
        met = "-" if target is None else f"{spelled(target)} {'met' if call < target else 'missed'}"
        cells = [
            f"{n}, {k}, {images}",
            spelled(call),
            "-" if math.isnan(graph) else spelled(graph),
            spelled(floor),
            met,
            spelled(dense),
            f"{dense / call:.0f}",
            "-" if other is None else spelled(other),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def the_others(solver: Any) -> None:
    """The table of the other operations, beside the same in whole-tensor steps and on paper."""
    n, k, d_model, images = 576, 64, 1024, 8
    x = torch.from_numpy(np.stack([photo_like(n, d_model, seed) for seed in range(images)])).cuda()
    s, a = driver.cosine_similarity(x), x[..., 0].abs().contiguous()
    d, step = 1.0 - s, np.full(images, 0.01)
    image = torch.randint(0, 256, (2160, 3840, 3), dtype=torch.uint8, device="cuda")
    q, keys = torch.randn(2, images, 16, n + 1, 64, device="cuda")
    unit = driver.unit(x)
    covered, spread = sc.FacilityLocation.from_features(x, a), sc.Dispersion.from_features(x)
    slower: dict[str, Callable[[], Any]] = {
        "facility location": lambda: plain.facility_location(s, a, k, 0.0),
        "determinant": lambda: plain.determinant(s, k),
        "farthest-first": lambda: plain.farthest_first(d, k, None),
        "threshold scan": lambda: plain.threshold_scan(unit, a, k, step, 0.5),
    }
    rows: dict[str, Callable[[], Any]] = {
        "facility location": lambda: solver.facility_location(s, a, k, 0.0),
        "facility location from features": lambda: driver.facility_location_features(covered, k),
        "determinant": lambda: solver.determinant(s, k),
        "farthest-first": lambda: solver.farthest_first(d, k, None),
        "farthest-first from features": lambda: driver.farthest_first_features(spread, k),
        "threshold scan": lambda: driver.threshold_scan(x, a, k, step, 0.5),
        "cosine similarity": lambda: driver.cosine_similarity(x),
        "attention received, 16 heads": lambda: driver.attention_received(q, keys),
        "singular values": lambda: driver.singular_values(x),
        "entropy of singular values": lambda: driver.singular_entropy(x),
        "patch entropy, 3840 x 2160, one image": lambda: driver.patch_entropy(image, 28),
    }
    bandwidth, launch = ceilings()
    expected = paper.operations(n, k, d_model, images)
    print(
        f"\n| N = {n}, k = {k}, D = {d_model}, {images} images | call | kernels | least time | "
        "whole-tensor steps |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, run in rows.items():
        work = paper.counted(expected[name], None if solver is not plain else plain)
        slow = spelled(seconds(slower[name], rounds=5)) if name in slower else "-"
        cells = (spelled(seconds(run)), work.launches, spelled(work.floor(bandwidth, launch)), slow)
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |", flush=True)


def sweep() -> None:
    """Facility location with several programs an image."""
    print("\n| N, k | programs an image | call |\n| --- | ---: | ---: |")
    for n, k in ((576, 64), (1152, 128), (2880, 320), (4096, 512)):
        s, w = photographs(n, 1, "cuda")
        for parts in (1, 2, 4, 8, 16, 32):
            call = seconds(
                lambda s=s, w=w, k=k, p=parts: kernels().facility_location(s, w, k, 0.0, p)
            )
            print(f"| {n}, {k} | {parts} | {spelled(call)} |", flush=True)


def main() -> None:
    if options.interpret:
        check("cpu", kernels(), ((24, 6, 2),))
        return
    if not torch.cuda.is_available():
        print("No CUDA device here: nothing was measured. --interpret checks the kernels.")
        return
    installed = [p for p in ("torch", "triton") if importlib.util.find_spec(p)]
    print(f"{torch.cuda.get_device_name()}. {described(*installed)}")
    solver = driver.kernels(torch.device("cuda", torch.cuda.current_device()))
    if solver is None:
        print("The Triton kernels are not used here; whole-tensor steps take their place.")
        solver = plain
    check("cuda", solver, ((150, 40, 3), (576, 64, 4), (2880, 320, 1)))
    check_the_rest("cuda")
    race(solver)
    the_others(solver)
    if options.sweep and solver is not plain:
        sweep()


if __name__ == "__main__":
    sys.exit(main())
