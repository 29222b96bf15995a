"""What a GPU has to do for each operation, counted: ``python benchmarks/paper.py [--write]``.

No GPU is needed. The PyTorch driver runs its steps for a CUDA device on tensors without memory,
and every kernel it would launch is written down: PyTorch's own ones by the operations it asks for,
Triton's by their launches. Bytes are those of what a kernel is given and gives, each once; whatever
is read twice is meant to come from the cache. Multiply-adds are those of matrix products. A step
that asked the device for a number would end with an error here, as such a tensor has none.

``benchmarks/gpu.py`` prints what it measures beside these counts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from machine import DOCS, described, spelled
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import secateur as sc
from secateur.backends.torch import driver, spectrum
from secateur.backends.torch import greedy as plain

Tensor = Any

BANDWIDTH, LAUNCH = 4.8e12, 2.5e-6
"""Bytes a second that an H200's memory is sold with, and seconds of a launch."""
SIZES = ((576, 64, 1024, 1), (576, 64, 1024, 64), (2880, 320, 1024, 1))
"""Tokens, budget, channels, images."""
RATES = {torch.float32: 67e12, torch.float64: 67e12}
"""Its operations a second: float32 outside, float64 inside the tensor cores."""


class Work(NamedTuple):
    """Kernels by name, bytes read and written once, and operations of products by dtype."""

    kernels: collections.Counter[str]
    bytes: int
    operations: collections.Counter[torch.dtype]

    @property
    def launches(self) -> int:
        return self.kernels.total()

    def floor(self, bandwidth: float = BANDWIDTH, launch: float = LAUNCH) -> float:
        """Seconds that the bytes, the products and the launches take, one after the other."""
        products = sum(count / RATES[dtype] for dtype, count in self.operations.items())
        return self.bytes / bandwidth + products + self.launches * launch


def _size(tensors: Any) -> int:
    """Bytes of some tensors, one that is only repeated along an axis no more than it holds."""
    found = {
        id(each): min(each.numel() * each.element_size(), each.untyped_storage().nbytes())
        for each in torch.utils._pytree.tree_leaves(tensors)
        if isinstance(each, torch.Tensor)
    }
    return sum(found.values())


BARE = ("empty", "new_empty", "detach", "_unsafe_view", "pin_memory")
"""Operations that launch nothing though they are no views."""


class _Counting(TorchDispatchMode):
    """Writes down what PyTorch is asked for; views and bare memory launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work(collections.Counter(), 0, collections.Counter())

    def add(self, name: str, size: int) -> None:
        self.work.kernels[name] += 1
        self.work = self.work._replace(bytes=self.work.bytes + size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and not name.startswith(BARE):
            # What only lends its shape is not read.
            self.add(name, _size(out if "_like" in name or "new_" in name else (args, kwargs, out)))
            # In place it is the same product.
            count = flop_registry.get(getattr(torch.ops.aten, name.removesuffix("_"), None))
            if count is not None:
                self.work.operations[out.dtype] += count(*args, **kwargs, out_val=out)
        return out


class _Launches:
    """In place of Triton's kernels: a launch is written down and does nothing."""

    def __init__(self, counting: _Counting) -> None:
        self.counting = counting

    def __getattr__(self, name: str) -> Any:
        counting = self.counting

        class Kernel:
            def __getitem__(self, grid: Any) -> Callable[..., None]:
                return lambda *args, **options: counting.add(name, _size(args))

        return Kernel()


@contextlib.contextmanager
def counting(solver: Any = None) -> Iterator[_Counting]:
    """The driver as on a CUDA device, with Triton's kernels (default) or the solver given."""
    counts = _Counting()
    with contextlib.ExitStack() as stack:
        if solver is None:
            from secateur.backends.torch import launch as solver

            stack.enter_context(mock.patch.object(solver, "kernels", _Launches(counts)))
            stack.enter_context(mock.patch.object(solver, "_on", contextlib.nullcontext))
        stack.enter_context(mock.patch.object(driver, "_cuda", return_value=True))
        stack.enter_context(mock.patch.object(driver, "kernels", return_value=solver))
        stack.enter_context(counts)
        yield counts


def nowhere(x: Any) -> Tensor:
    """A tensor of that shape and dtype without memory."""
    return torch.as_tensor(x).to("meta")


def operations(n: int, k: int, d: int, images: int) -> dict[str, Callable[[], Any]]:
    """Every operation of the driver on tensors that have no memory."""
    x = torch.zeros(images, n, d)
    s, a = torch.zeros(images, n, n), torch.zeros(images, n)
    budget = np.asarray(k)
    given = {
        "facility": sc.FacilityLocation(s, a),
        "covered": sc.FacilityLocation.from_features(x, a),
        "determinant": sc.LogDeterminant(s),
        "apart": sc.Dispersion(s),
        "spread": sc.Dispersion.from_features(x),
    }
    for name, f in given.items():
        given[name] = f.with_arrays(nowhere)
    features, attention = nowhere(x), nowhere(a)
    q, keys = nowhere(torch.zeros(2, images, 16, n + 1, 64))
    image = torch.zeros(2160, 3840, 3, dtype=torch.uint8, device="meta")
    return {
        "facility location": lambda: driver.facility_location(given["facility"], budget),
        "facility location from features": lambda: driver.facility_location_features(
            given["covered"], budget
        ),
        "determinant": lambda: driver.determinant(given["determinant"], budget),
        "farthest-first": lambda: driver.farthest_first(given["apart"], budget),
        "farthest-first from features": lambda: driver.farthest_first_features(
            given["spread"], budget
        ),
        "threshold scan": lambda: driver.threshold_scan(
            features, attention, budget, np.full(images, 0.01), 0.5
        ),
        "cosine similarity": lambda: driver.cosine_similarity(features),
        "attention received, 16 heads": lambda: driver.attention_received(q, keys),
        "singular values": lambda: driver.singular_values(features),
        "entropy of singular values": lambda: driver.singular_entropy(features),
        "patch entropy, 3840 x 2160, one image": lambda: driver._patch_entropy(image, 28, 77, 137),
    }


def counted(run: Callable[[], Any], solver: Any = None) -> Work:
    """What an operation would have a device do."""
    with counting(solver) as counts:
        run()
    return counts.work


def table(n: int, k: int, d: int, images: int) -> list[str]:
    """A row for every operation."""
    size = f"N = {n}, k = {k}, D = {d}, images: {images}"
    rows = [
        f"| {size} | kernels | in whole-tensor steps | MB | GFLOP | least time |",
        "| --- |" + " ---: |" * 5,
    ]
    for name, run in operations(n, k, d, images).items():
        work = counted(run)
        products = sum(work.operations.values()) / 1e9
        cells = [
            name,
            str(work.launches),
            str(counted(run, plain).launches),
            f"{work.bytes / 1e6:.1f}",
            f"{products:.2f}" if products else "-",
            spelled(work.floor()),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


PAGE = """# What a GPU has to do

No GPU was at hand yet: these are counts, not measurements.
Made by `python benchmarks/paper.py --write`: {machine}

The PyTorch driver runs its steps for a CUDA device on tensors that have a shape and no memory, and
every kernel that it would launch is written down. A step that asked the device for a number would
fail, since there is none: no operation below waits for the device, however many tokens are picked.
Inputs are checked beforehand, which waits once, unless `check_finite=False`, as in attached models.

- *Kernels*: launches of one call, with ours in Triton. Those of greedy make all picks in one.
  Of images of more than 1,024 tokens one program makes them here; on a device several share an
  image, for one kernel more.
- *In whole-tensor steps*: where Triton is missing or its kernels are not trusted.
- *MB*: what kernels are given and give, each once; what is read again comes from the cache.
- *GFLOP*: of matrix products; those from features are in float64, by which ties are settled. Of
  the singular values the products only, not the eigensolver behind them. Their entropy, by which
  AgilePruner knows an effective rank, needs none: it takes the determinants of {shifts} matrices.
- *Least time*: at an H200's {bandwidth:.1f} TB/s, {rate:.0f} TFLOP/s and {launch} a launch, one
  after the other. The picks of greedy follow each other and take longer than their bytes do; how
  long, `python benchmarks/gpu.py` measures, which prints these counts beside its times.
{tables}
"""


def main() -> None:
    """Print the tables, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the page")
    given = parser.parse_args()
    tables = "\n".join(line for size in SIZES for line in ("", *table(*size)))
    if not given.write:
        print(tables.strip())
        return
    page = PAGE.format(
        machine=described("secateur", "torch", "triton"),
        bandwidth=BANDWIDTH / 1e12,
        rate=RATES[torch.float64] / 1e12,
        launch=spelled(LAUNCH),
        shifts=len(spectrum.weights().s),
        tables=tables,
    )
    (DOCS / "benchmarks" / "paper.md").write_text(page)


if __name__ == "__main__":
    main()
