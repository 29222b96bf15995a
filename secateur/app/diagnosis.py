"""What is installed, and whether it works."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import numpy as np
from rich.console import Console

import secateur as sc
from secateur.app.command import AsJson, app
from secateur.app.progress import saying
from secateur.core.dispatch import candidates, drivers

OPTIONAL = ("numba", "torch", "cupy", "jax", "transformers", "triton", "optuna", "ray", "vllm")

CHECKED = {
    "numpy": "2.4",
    "scipy": "1.17",
    "numba": "0.68",
    "torch": "2.13",
    "transformers": "5.24",
    "vllm": "0.32",
}
"""The newest version that the tests ran with."""


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, which drivers are active and choose, and which GPU is there."""
    saying("trying every driver")
    installed = {
        name: _installed(name) for name in ("numpy", "scipy", "array-api-compat", *OPTIONAL)
    }
    gpu = None
    arrays: dict[str, Any] = {"numpy": np.zeros(1)}
    if installed["torch"]:
        import torch

        arrays["torch"] = torch.zeros(1)
        if torch.cuda.is_available():
            gpu = torch.cuda.get_device_name()
            arrays["torch on the GPU"] = torch.zeros(1, device="cuda")
    active = {
        library: [module.__name__ for module in candidates(sample)]
        for library, sample in arrays.items()
    }
    report: dict[str, Any] = {
        "secateur": sc.__version__,
        "python": sys.version.split()[0],
        "installed": installed,
        "newer_than_checked": [
            name for name, newest in CHECKED.items() if _newer(installed[name], newest)
        ],
        "extras": _extras(),
        "registered": {library: list(names) for library, names in drivers().items()},
        "active": active,
        "choices": {library: _choice(sample) for library, sample in arrays.items()},
        "gpu": gpu,
    }
    if as_json:
        _echo(json.dumps(report, indent=1))
    else:
        _say(report)


def _echo(text: str) -> None:
    import typer

    typer.echo(text)


def _say(report: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"secateur {report['secateur']}, Python {report['python']}")
    for name, found in report["installed"].items():
        newer = name in report["newer_than_checked"]
        note = f", newer than checked ({CHECKED[name]})" if newer else ""
        console.print(f"  {name:18} {found or 'not installed'}{note}")
    for name, lacks in report["extras"].items():
        console.print(f"extra {name}: {'all there' if not lacks else 'lacks ' + ', '.join(lacks)}")
    for library in report["active"]:
        console.print(f"arrays of {library}:")
        for driver, outcome in report["choices"][library].items():
            console.print(f"  {driver} {outcome}")
    console.print(f"GPU: {report['gpu'] or 'none that torch sees'}")


def _installed(name: str) -> str | None:
    for each in ("cupy-cuda13x", "cupy-cuda12x") if name == "cupy" else (name,):
        try:
            return version(each)
        except PackageNotFoundError:
            continue
    return None


def _numbers(told: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", told)[:2])


def _newer(found: str | None, newest: str) -> bool:
    return found is not None and _numbers(found) > _numbers(newest)


def _extras() -> dict[str, list[str]]:
    """What is missing for each extra of this package; those it names itself are its own."""
    found: dict[str, list[str]] = {}
    try:
        told = requires("secateur") or []
    except PackageNotFoundError:
        return {}
    for line in told:
        named = re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
        package = re.match(r"[\w.-]+", line)
        if named is None or package is None:
            continue
        lacks = found.setdefault(named[1], [])
        if package[0] != "secateur" and _installed(package[0]) is None:
            lacks.append(package[0])
    return found


def _choice(sample: Any) -> dict[str, str]:
    """One choice by each driver of an array's library, held against the reference."""
    x = np.random.default_rng(0).normal(size=(24, 8))
    if hasattr(sample, "new_tensor"):
        x = sample.new_tensor(x)
    objective = sc.FacilityLocation.from_features(x)

    def picks(driver: str) -> list[int]:
        return [int(each) for each in sc.maximize(objective, 4, backend=driver).indices]

    expected = picks("reference")
    library = "torch" if hasattr(sample, "new_tensor") else "numpy"
    told = {"reference": f"chooses {expected}"}
    for driver in drivers().get(library, {}):
        if driver in OPTIONAL and _installed(driver) is None:
            told[driver] = f"is not installed: pip install 'secateur[{driver}]'"
            continue
        try:
            same = picks(driver) == expected
            told[driver] = "chooses the same" if same else f"chooses {picks(driver)}"
        except Exception as error:  # whatever is wrong with a driver is the answer here
            told[driver] = f"does not run: {type(error).__name__}: {error}".splitlines()[0]
    return told
