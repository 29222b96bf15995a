"""Greedy on a CUDA device by the Triton kernels: their launches, and what they are checked by."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
import triton

from secateur.backends.lending import answer, blank, flat
from secateur.backends.torch import greedy as plain
from secateur.backends.torch import kernels
from secateur.core.maximize import Picks

Tensor = Any

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Whether Triton runs the kernels on the host, one program after the other."""
SHARED = 128
"""Columns of a large image that one program looks after."""
ALONE = 1024
"""Tokens up to which one program looks after a whole image."""
HISTORY = 1 << 30
"""Bytes that the gains noted down for the certificate may take."""
PATIENCE = 1 << 24
"""How often a program asks whether the others have come: seconds, where that takes microseconds."""


class _Problem(NamedTuple):
    """What facility location is asked about (B images of n tokens), and how it is cut up."""

    s: Tensor
    w: Tensor
    budget: Tensor
    n: int
    longest: int
    parts: int
    weighted: bool
    rounding: int
    block: int
    tall: int
    across: int

    @property
    def constants(self) -> dict[str, Any]:
        return {"WEIGHTED": self.weighted, "ROUNDING": self.rounding}


class _State(NamedTuple):
    """What the kernels of facility location know between launches."""

    history: Tensor
    m: Tensor
    low: Tensor
    high: Tensor
    heavy: Tensor
    known: Tensor
    exact: Tensor
    listed: Tensor
    terms: Tensor
    largest: Tensor
    sums: Tensor
    indices: Tensor
    gains: Tensor


def facility_location(
    similarity: Tensor,
    weights: Tensor | None,
    k: Any,
    rounding: float,
    parts: int | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Picks:
    """Greedy facility location from matrices (..., N, N), as `greedy.facility_location`.

    Parameters
    ----------
    parts
        Programs that share an image; chosen by its size when absent.
    shape
        Sizes (BLOCK, ROWS, COLUMNS) of the kernels' tiles; chosen when absent.
    """
    batch, n = tuple(similarity.shape[:-2]), int(similarity.shape[-1])
    s = flat(similarity, 2).contiguous()
    images, device = len(s), s.device
    w = s
    if weights is not None:
        w = flat(weights.detach().expand(*batch, n), 1).contiguous()
    budget, longest = plain.budgets(k, batch, device)
    if not images * longest:
        nothing = torch.zeros(images, dtype=torch.float64, device=device)
        return answer(batch, *blank(images, longest, s), nothing, nothing)
    parts = _parts(images, n, device) if parts is None else parts
    tiles = _tiles(n, parts, s.element_size()) if shape is None else shape
    weighted = weights is not None
    ties = round(rounding / plain.EPSILON)
    problem = _Problem(s, w, budget, n, longest, parts, weighted, ties, *tiles)
    state = _blank_state(problem)
    value, bound = torch.empty(2, images, dtype=torch.float64, device=device)
    with _on(device):
        _pick_all(problem, state)
        kernels.certify[(images,)](
            w,
            state.m,
            budget,
            state.gains,
            state.terms,
            state.largest,
            state.sums,
            value,
            bound,
            n,
            longest,
            parts,
            **problem.constants,
            BLOCK=min(problem.block, 1024),
            **_launch(4),
        )
    return answer(batch, state.indices, state.gains, value, bound)


def _blank_state(problem: _Problem) -> _State:
    s, n, longest, parts = problem.s, problem.n, problem.longest, problem.parts
    images, device = len(s), s.device
    wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
    whole: dict[str, Any] = {"dtype": torch.int64, "device": device}
    room = max(2, min(HISTORY, 4 * images * n * n) // (8 * images * n))
    m, low, high = torch.empty(3, images, parts, n, dtype=s.dtype, device=device)
    heavy, known, exact = torch.empty(3, images, parts, n, **wide)
    return _State(
        history=torch.empty(images, min(longest + 1, room), n, **wide),
        m=m,
        low=low,
        high=high,
        heavy=heavy,
        known=known,
        exact=exact,
        listed=torch.empty(images, parts, n, dtype=torch.int32, device=device),
        terms=torch.empty(images, longest + 1, **whole),
        largest=torch.empty(images, **wide),
        sums=torch.empty(images, longest + 1, **wide),
        indices=torch.empty(images, longest, **whole),
        gains=torch.empty(images, longest, **wide),
    )


def _pick_all(problem: _Problem, state: _State) -> None:
    """All picks, as many in a launch as the history has rows for."""
    s, w, budget, n, longest = problem.s, problem.w, problem.budget, problem.n, problem.longest
    images, rows = len(s), int(state.history.shape[1])
    grid = (images, triton.cdiv(n, 32))
    kernels.first_gains[grid](
        s, w, state.history, n, rows, WEIGHTED=problem.weighted, ROWS=64, COLUMNS=32
    )
    # At most `longest` launches: rows is 2 or more.
    for origin in range(0, longest, rows - 1):
        end = min(longest, origin + rows - 1)
        if origin:
            state.history[:, 0] = state.history[:, rows - 1]
        _pick(problem, state, origin, end)
        kernels.largest_sums[(images, end - origin + 1)](
            state.history,
            budget,
            state.sums,
            n,
            longest,
            rows,
            origin,
            BLOCK=triton.next_power_of_2(n),
            **_launch(4 if n <= 4096 else 16),
        )


def _pick(problem: _Problem, state: _State, origin: int, end: int) -> None:
    """Picks `origin` .. `end` - 1, together where programs can wait for each other."""
    n, parts, device = problem.n, problem.parts, problem.s.device
    images, rows = len(problem.s), int(state.history.shape[1])
    wait = parts > 1 and not INTERPRETED
    counters = state.listed
    if wait:
        counters = torch.zeros(images, dtype=torch.int32, device=device)
    # Programs that cannot wait for each other make one pick a launch.
    stride = end - origin if wait or parts == 1 else 1
    for begin in range(origin, end, stride):
        kernels.greedy_steps[(images, parts)](
            problem.s,
            problem.w,
            problem.budget,
            state.history,
            state.m,
            state.low,
            state.high,
            state.heavy,
            state.known,
            state.exact,
            state.listed,
            state.terms,
            state.largest,
            state.indices,
            state.gains,
            counters,
            n,
            problem.longest,
            rows,
            origin,
            begin,
            begin + stride,
            triton.cdiv(triton.cdiv(n, parts), 16) * 16,
            PATIENCE,
            **problem.constants,
            PARTS=parts,
            WAIT=wait,
            BLOCK=problem.block,
            ROWS=problem.tall,
            COLUMNS=problem.across,
            CACHE=".cg" if parts > 1 else "",
            **_launch(8, wait),
        )


def farthest_first(distance: Tensor, k: Any, start: int | None, rounding: float = 0.0) -> Picks:
    """Farthest-first over distances (..., N, N), as `greedy.farthest_first`."""
    batch, n = tuple(distance.shape[:-2]), int(distance.shape[-1])
    d = flat(distance, 2).contiguous()
    budget, longest = plain.budgets(k, batch, d.device)
    indices, gains = blank(len(d), longest, d)
    value = torch.full((len(d),), math.inf, dtype=torch.float64, device=d.device)
    if len(d) and longest:
        nearest = torch.empty(len(d), n, dtype=d.dtype, device=d.device)
        with _on(d.device):
            kernels.nearest_other[(len(d), triton.cdiv(n, 32))](d, nearest, n, ROWS=64, COLUMNS=32)
            kernels.farthest_steps[(len(d),)](
                d,
                nearest,
                budget,
                indices,
                gains,
                value,
                n,
                longest,
                -1 if start is None else start,
                ROUNDING=round(rounding / plain.EPSILON),
                BLOCK=_block(n),
                **_launch(8),
            )
    return answer(batch, indices, gains, value)


def determinant(kernel: Tensor, k: Any) -> Picks:
    """Greedy log-determinant of kernels (..., N, N), as `greedy.determinant`."""
    batch, n = tuple(kernel.shape[:-2]), int(kernel.shape[-1])
    x = flat(kernel, 2).contiguous()
    budget, longest = plain.budgets(k, batch, x.device)
    indices, gains = blank(len(x), longest, x)
    if len(x) and longest:
        left = x.diagonal(dim1=-2, dim2=-1).double().contiguous()
        noise = 128 * torch.finfo(x.dtype).eps * left
        opened = torch.ones(len(x), n, dtype=torch.int8, device=x.device)
        factor = torch.empty(len(x), longest, n, dtype=torch.float64, device=x.device)
        with _on(x.device):
            kernels.cholesky_steps[(len(x),)](
                x,
                left,
                noise,
                opened,
                factor,
                budget,
                indices,
                gains,
                n,
                longest,
                BLOCK=_block(n),
                ROWS=8,
                COLUMNS=min(_block(n), 1024),
                **_launch(8),
            )
    return answer(batch, indices, gains, gains.sum(-1))


def threshold_scan(
    directions: Tensor, scores: Tensor, k: Any, step: np.ndarray[Any, Any], tau_max: float
) -> tuple[Tensor, Tensor]:
    """AgilePruner's scan on unit vectors (..., N, D), as `greedy.threshold_scan`."""
    batch, n = tuple(directions.shape[:-2]), int(directions.shape[-2])
    x, order = plain.by_score(directions, scores)
    budget, longest = plain.budgets(k, batch, x.device)
    indices = torch.full((len(x), longest), -1, device=x.device)
    filled = torch.zeros_like(budget)
    if len(x) and longest:
        limits = np.asarray([tau_max, 8 * torch.finfo(x.dtype).eps])
        with _on(x.device):
            kernels.scan_steps[(len(x),)](
                x @ x.mT,
                plain.on_device(step, x.device),
                plain.on_device(limits, x.device),
                torch.ones(len(x), n, dtype=torch.int8, device=x.device),
                order,
                budget,
                indices,
                filled,
                n,
                longest,
                BLOCK=_block(n),
                **_launch(8),
            )
    return indices.view(*batch, longest), filled.view(batch)


def _block(n: int) -> int:
    """Numbers of a row that a program holds at once."""
    return max(32, min(4096, int(triton.next_power_of_2(n))))


def _tiles(n: int, parts: int, width: int) -> tuple[int, int, int]:
    """BLOCK, ROWS and COLUMNS of `greedy_steps` for entries of `width` bytes, in eight warps."""
    if parts == 1:
        # As many rows in flight as registers hold.
        return _block(n), 64 // width, min(_block(n), 1024)
    return _block(n), 32, SHARED


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _launch(warps: int, together: bool = False) -> dict[str, Any]:
    """Options of a launch; `together` asks the device to run all its programs at once."""
    options: dict[str, Any] = {"num_warps": warps}
    if together:
        options["launch_cooperative_grid"] = True
    return options


def _parts(images: int, n: int, device: torch.device) -> int:
    """How many programs share an image: several where images are large and few."""
    if device.type != "cuda" or n <= ALONE:
        return 1
    parts = min(triton.cdiv(n, SHARED), _processors(device) // images)
    return int(parts) if parts > 1 and _share(device) else 1


@functools.cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _share(device: torch.device) -> bool:
    """Whether programs that wait for each other at every pick give the right answer here."""
    try:
        return _wrong_facility(device, 5) is None
    except Exception as error:
        warnings.warn(
            f"one program looks after each image, however large: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


def _wrong_facility(device: torch.device, parts: int) -> str | None:
    """What is wrong with facility location on a small problem full of ties, if anything is."""
    i = torch.arange(4 * 97 * 97, device=device, dtype=torch.float64)
    s = (1.0 + torch.sin(i * i).view(4, 97, 97)) / 2.0
    s[1] = torch.round(3.0 * s[1])
    s[2, 50:] = s[2, :47]
    s[3] = 0.7
    w = (i[: 4 * 97].view(4, 97) % 5.0) / 4.0
    k = np.asarray([40, 97, 33, 5])
    for matrix in (s, s.float()):
        fast = facility_location(matrix, w, k, 0.0, parts)
        slow = plain.facility_location(matrix, w, k, 0.0)
        for name, x, y in zip(Picks._fields, fast, slow, strict=True):
            if not torch.allclose(x.double(), y.double(), rtol=1e-9, atol=1e-9):
                return f"facility location with {parts} programs an image: wrong {name}"
    return None


def disagreement(device: torch.device) -> str | None:
    """What the kernels get wrong on small problems on this device; None if nothing."""
    wrong = _wrong_facility(device, 1)
    if wrong is not None:
        return wrong
    i = torch.arange(2 * 61 * 5, device=device, dtype=torch.float64)
    x = torch.nn.functional.normalize(torch.sin(i * i).view(2, 61, 5), dim=-1)
    x[1, 40:50] = x[1, 3]
    k = np.asarray([61, 20])
    both = (sys.modules[__name__], plain)
    cosine = x @ x.mT
    # Far from singular: nothing hangs on how an error of rounding falls.
    kernel = cosine + 0.1 * torch.eye(61, dtype=torch.float64, device=device)
    step = np.asarray([0.01, 0.05])
    pairs = {
        "farthest-first": [each.farthest_first(1.0 - cosine, k, None) for each in both],
        "determinant": [each.determinant(kernel, k) for each in both],
        "threshold scan": [
            each.threshold_scan(x, i[: 2 * 61].view(2, 61) % 7.0, k, step, 0.5) for each in both
        ],
    }
    for name, (fast, slow) in pairs.items():
        for a, b in zip(fast, slow, strict=True):
            if not torch.allclose(a.double(), b.double(), rtol=1e-9, atol=1e-9):
                return f"wrong picks of {name}"
    return None
