"""Importing secateur is cheap: it loads no optional library and hardly takes time."""

import json
import subprocess
import sys

OPTIONAL = ("cupy", "jax", "numba", "scipy", "torch", "transformers")

PROBE = """
import json, sys, time
import numpy
known = set(sys.modules)
start = time.process_time()
import secateur
seconds = time.process_time() - start
loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - known})
print(json.dumps({"seconds": seconds, "loaded": loaded}))
"""


def probe():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_loads_no_optional_library():
    loaded = probe()["loaded"]
    assert "secateur" in loaded
    assert [name for name in OPTIONAL if name in loaded] == []


def test_import_takes_under_150_ms_more_than_numpy():
    """In processor time, the best of several: other processes on the machine stretch neither."""
    best = min(probe()["seconds"] for _ in range(7))
    assert best < 0.150
