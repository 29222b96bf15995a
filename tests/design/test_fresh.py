"""In a process that has imported nothing else, drivers know every operation that they offer."""

import subprocess
import sys
from pathlib import Path

ASKED = """
import sys
import numpy as np
import secateur as sc
x = np.eye(4)
assert sc.DivPrune(keep=2).select(sc.Tokens(features=x)).indices.tolist() == [0, 1]
from secateur.core.dispatch import candidates
print(sorted(module.__name__.rpartition(".")[2] for module in candidates(x)))
assert "torch" not in sys.modules
"""


def test_the_first_choice_of_a_process():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", ASKED], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "'driver'" in done.stdout
