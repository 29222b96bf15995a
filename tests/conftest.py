"""One body for every array library, one place that knows whether there is a GPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if not os.path.exists("/dev/nvidiactl"):
    # Triton asks when it is imported: without a GPU its kernels run on the host.
    os.environ.setdefault("TRITON_INTERPRET", "1")

NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "array_api_strict": "array_api_strict",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
    "cupy": "array_api_compat.cupy",
}

settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "dev", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


@functools.cache
def why_no_gpu() -> str | None:
    """The reason that tests marked gpu cannot run here, None where they can."""
    if importlib.util.find_spec("torch") is None:
        return "needs a CUDA device, and PyTorch to find it"
    import torch

    return None if torch.cuda.is_available() else "needs a CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is none; look for one only if something is."""
    for item in items:
        if item.get_closest_marker("gpu"):
            reason = why_no_gpu()
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many tests were skipped for which reason, one line a reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(scope="session", autouse=True)
def awake() -> None:
    """Numba is loaded, so that no test is the one that loads it and all meet the same driver."""
    compiled = importlib.import_module("secateur.backends.host.compiled")
    if compiled.available:
        compiled.wake()


MARKS = {
    "jax": [pytest.mark.slow],  # compiles every operation for every shape: minutes in all
    "cupy": [pytest.mark.gpu],
}


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=MARKS.get(name, [])) for name in NAMESPACES],
)
def xp(request: pytest.FixtureRequest) -> Any:
    """The array API namespace of each array library in turn."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return importlib.import_module(NAMESPACES[request.param])


@pytest.fixture(scope="session")
def to_xp(xp: Any) -> Callable[..., Any]:
    """Turn numbers or a NumPy array into an array of `xp`, of the same dtype unless named."""

    def convert(values: Any, dtype: str | None = None) -> Any:
        host = np.asarray(values)
        return xp.asarray(host.copy(), dtype=getattr(xp, dtype or host.dtype.name))

    return convert


@pytest.fixture(scope="session")
def to_numpy() -> Callable[[Any], np.ndarray]:
    """Turn an array of any library into one of NumPy; 16-bit floats NumPy lacks come as float32."""

    def convert(x: Any) -> np.ndarray:
        if hasattr(x, "detach"):
            x = x.detach().cpu()
            return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
        if hasattr(x, "get"):
            return np.asarray(x.get())
        return np.asarray(x)

    return convert
