"""Drivers: what a library can do better than the array API standard allows.

A driver is a module with functions named like the core's operations. It is imported when an
array of its library first arrives. This file is the registry; a new backend is one line here.
"""

from secateur.core.arrays import register_driver

for _name, _library in (
    ("numba", "numpy"),
    ("numpy", "numpy"),
    ("torch", "torch"),
    ("cupy", "cupy"),
):
    register_driver(_name, f"secateur.backends.{_name}", _library)
