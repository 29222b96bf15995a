"""Drivers: what a library can do better than the array API standard allows.

A driver is a module with functions named like the core's operations. It is imported when an
array of its library first arrives. This file is the registry; a new backend is one line here.
"""

# What a driver offers is checked against the operations known by then: those that nothing else
# brings along are brought here.
import secateur.core.attention  # noqa: F401
from secateur.core.dispatch import register_driver

for _name, _module, _library in (
    ("numba", "host.compiled", "numpy"),
    ("numpy", "host.driver", "numpy"),
    ("torch", "torch.driver", "torch"),
    ("cupy", "cupy.driver", "cupy"),
):
    register_driver(_name, f"secateur.backends.{_module}", _library)
