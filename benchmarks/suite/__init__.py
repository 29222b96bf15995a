"""Cases that asv and `against.py` time, of any commit.

Numba is loaded before any of them: a process that asks little has its answers from NumPy.
"""

import importlib

try:
    compiled = importlib.import_module("secateur.backends.host.compiled")
except ImportError:  # a commit that has it elsewhere
    compiled = None
if getattr(compiled, "available", False):
    getattr(compiled, "wake", lambda: None)()
