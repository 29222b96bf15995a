"""CUDA C on this machine's processor: a block's threads are threads, its barrier a barrier.

`host_cupy` is NumPy under CuPy's name, with a `RawModule` that compiles the very same source.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

WORDS = """
#include <barrier>
#include <math.h>
#include <thread>
#include <vector>
struct Place { int x, y; };
static thread_local Place threadIdx;
static Place blockIdx, blockDim;
static std::barrier<>* everyone;
#define __global__
#define __device__ static
#define __shared__ static
#define __syncthreads() everyone->arrive_and_wait()
#define __fmul_rn(x, y) ((x) * (y))
#define __fadd_rn(x, y) ((x) + (y))
#define atomicAdd(p, x) __atomic_fetch_add(p, x, __ATOMIC_RELAXED)
"""
KERNEL = re.compile(r"__global__ void (\w+)\(([^)]*)\)")


def _runner(name: str, parameters: str) -> str:
    names = ", ".join(each.split()[-1].strip("*") for each in parameters.split(","))
    return f"""
extern "C" void run_{name}(int across, int down, int threads, {parameters}) {{
    blockDim = {{threads, 1}};
    for (int x = 0; x < across; x++) for (int y = 0; y < down; y++) {{
        blockIdx = {{x, y}};
        std::barrier<> meeting(threads);
        everyone = &meeting;
        std::vector<std::thread> all;
        for (int t = 0; t < threads; t++) all.emplace_back([=] {{
            threadIdx = {{t, 0}};
            {name}({names});
            everyone->arrive_and_drop();
        }});
        for (auto& each : all) each.join();
    }}
}}"""


def host_cupy(folder: Path, compiler: str) -> ModuleType:
    """A stand-in for CuPy whose arrays are NumPy's and whose kernels run here."""

    class RawModule:
        def __init__(self, code: str, options: tuple[str, ...]) -> None:
            stem = folder / re.sub(r"\W", "", code[8:30])
            runners = "".join(_runner(*found) for found in KERNEL.findall(code))
            stem.with_suffix(".cpp").write_text(WORDS + code + runners)
            target = stem.with_suffix(".so")
            command = [compiler, "-std=c++20", "-O1", "-ffp-contract=off", "-shared", "-fPIC"]
            command += ["-pthread", str(stem.with_suffix(".cpp")), "-o", str(target)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            self.library = ctypes.CDLL(str(target))
            self.parameters = dict(KERNEL.findall(code))

        def get_function(self, name: str) -> Any:
            wanted = [each.split() for each in self.parameters[name].split(",")]

            def run(grid: tuple[int, ...], block: tuple[int], args: tuple[Any, ...]) -> None:
                assert block == (256,)
                assert len(args) == len(wanted)
                for x, words in zip(args, wanted, strict=True):
                    _check(x, " ".join(words[:-1]).removeprefix("const "))
                down = grid[1] if len(grid) > 1 else 1
                # Few threads when tiles allow: a barrier of 256 is slow on two cores.
                threads = 256 if name in ("first_gains", "nearest_other") else 4
                given = [
                    x.ctypes.data_as(ctypes.c_void_p)
                    if isinstance(x, np.ndarray)
                    else (ctypes.c_int(x) if isinstance(x, np.int32) else ctypes.c_double(x))
                    for x in args
                ]
                self.library[f"run_{name}"](grid[0], down, threads, *given)

            return run

    module = ModuleType("cupy")
    module.__dict__.update({k: v for k, v in vars(np).items() if not k.startswith("__")})
    module.__dict__["RawModule"] = RawModule
    return module


TYPES = {
    "double*": "f8",
    "Index*": "i8",
    "int*": "i4",
    "unsigned char*": "u1",
    "Entry*": "f4 f8 u1",
}


def _check(x: Any, declared: str) -> None:
    """The dtype and layout that the kernel declares: a device would not say that they differ."""
    if declared in TYPES:
        assert isinstance(x, np.ndarray), declared
        assert x.flags.c_contiguous, declared
        assert x.dtype.str[1:] in TYPES[declared], (declared, x.dtype)
    else:
        assert isinstance(x, {"int": np.int32, "double": np.float64}[declared]), declared
