"""Time this commit with asv and keep the results: ``python benchmarks/record.py``.

Runs `asv run` in the environment at hand, as asv's "existing" environments are, and then names
the environment in the results by its Python version instead of its path, so that results from
different checkouts make one series. Options are passed on to asv, for instance
``--bench FacilityLocation``.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    asv = [sys.executable, "-m", "asv"]
    if not (Path.home() / ".asv-machine.json").exists():
        subprocess.run([*asv, "machine", "--yes"], cwd=ROOT, check=True)
    run = subprocess.run(
        [*asv, "run", "-E", "existing", "--set-commit-hash", commit, *sys.argv[1:]],
        cwd=ROOT,
    )
    version = ".".join(platform.python_version_tuple()[:2])
    for path in (ROOT / "benchmarks" / "results").glob("*/*-existing-*.json"):
        stored = json.loads(path.read_text())
        if "python" not in stored.get("params", {}):
            continue
        stored["params"]["python"] = version
        stored["python"] = version
        stored["env_name"] = f"existing-py{version}"
        path.with_name(f"{commit[:8]}-existing-py{version}.json").write_text(json.dumps(stored))
        if path.name != f"{commit[:8]}-existing-py{version}.json":
            path.unlink()
    return run.returncode


if __name__ == "__main__":
    raise SystemExit(main())
