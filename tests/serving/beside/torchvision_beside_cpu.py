"""Lets torchvision be imported beside a torch without CUDA.

PyPI's torchvision is built for CUDA: its own operators do not load, and on import it gives
torch the shapes of what they would return, which torch refuses for operators it does not know.
Declaring their names is enough, because nothing here calls them. Done when torchvision is first
looked for: most processes that multiprocessing starts need neither it nor torch.
"""

import sys


def _declare():
    import importlib.util
    import re
    from pathlib import Path

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    import torch

    if torch.version.cuda:
        return
    told = Path(found.origin).with_name("_meta_registrations.py").read_text("utf-8")
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(re.findall(r'register_meta\("(\w+)"', told)) | {"nms", "qnms"}):
        library.define(f"{name}(Tensor x) -> Tensor")
    _declare.library = library


class _Before:
    """Declares them before torchvision is found, once."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare()


sys.meta_path.insert(0, _Before())
