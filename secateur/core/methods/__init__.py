"""The methods, one file each, and how to find them by name.

A method of this library is one file and one line below; a method of another package registers
its class under the entry-point group ``secateur.methods``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, NamedTuple

from secateur.core.acts import Cut, Cuts, Shrinks
from secateur.core.methods.agile import AgilePruner
from secateur.core.methods.apet import ApET
from secateur.core.methods.base import InsideMethod, Method
from secateur.core.methods.cdpruner import CDPruner
from secateur.core.methods.dart import DART
from secateur.core.methods.divprune import DivPrune
from secateur.core.methods.downsample import Downsample
from secateur.core.methods.duet import DUET
from secateur.core.methods.dycoke import DyCoke
from secateur.core.methods.eadp import EADP
from secateur.core.methods.erase import ERASE
from secateur.core.methods.evs import EVS
from secateur.core.methods.fastv import FastV
from secateur.core.methods.fastvid import FastVID
from secateur.core.methods.flashvid import FlashVID
from secateur.core.methods.floc import FLoC
from secateur.core.methods.fps import FPS
from secateur.core.methods.hiprune import HiPrune
from secateur.core.methods.holitom import HoliTom
from secateur.core.methods.idpruner import IDPruner
from secateur.core.methods.ivcprune import IVCPrune
from secateur.core.methods.mixture import Mixture
from secateur.core.methods.mmtok import MMTok
from secateur.core.methods.otprune import OTPrune
from secateur.core.methods.pixelprune import PixelPrune
from secateur.core.methods.pool import Pool
from secateur.core.methods.prumerge import PruMerge, PruMergePlus
from secateur.core.methods.prunesid import PruneSID
from secateur.core.methods.pyramiddrop import PyramidDrop
from secateur.core.methods.random import Random
from secateur.core.methods.scope import SCOPE
from secateur.core.methods.sparsevlm import SparseVLM
from secateur.core.methods.topk import TopK
from secateur.core.methods.uniform import UniformGrid
from secateur.core.methods.vidcom2 import VidCom2
from secateur.core.methods.visionselector import VisionSelector
from secateur.core.methods.visionzip import VisionZip
from secateur.core.methods.vispruner import VisPruner
from secateur.core.methods.vitcop import ViTCoP
from secateur.core.methods.vscan import VScan

GROUP = "secateur.methods"
"""The entry-point group of methods that other packages bring."""

_OWN: tuple[type[Method], ...] = (
    EADP,
    AgilePruner,
    ERASE,
    Random,
    UniformGrid,
    Pool,
    Downsample,
    TopK,
    FPS,
    DivPrune,
    CDPruner,
    MMTok,
    OTPrune,
    SCOPE,
    IDPruner,
    HiPrune,
    VisPruner,
    VisionZip,
    PruMerge,
    PruMergePlus,
    DART,
    ApET,
    VScan,
    PixelPrune,
    PruneSID,
    VisionSelector,
    DUET,
    ViTCoP,
    FLoC,
    Mixture,
    EVS,
    VidCom2,
    DyCoke,
    FastVID,
    HoliTom,
    FlashVID,
    FastV,
    PyramidDrop,
    SparseVLM,
    IVCPrune,
)


def methods() -> dict[str, type[Method]]:
    """All methods by name: this library's, then those that installed packages register.

    >>> import secateur as sc
    >>> sc.methods()["eadp"]
    <class 'secateur.core.methods.eadp.EADP'>
    """
    known = {each.name: each for each in _OWN}
    for point in entry_points(group=GROUP):
        if point.name in known:
            continue
        found = point.load()
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise ValueError(
                f"{point.value}, registered as the method {point.name!r}, is no Method"
            )
        known[point.name] = found
    return known


def method(name: str, **parameters: Any) -> Method:
    """A method by name, with its parameters.

    >>> import secateur as sc
    >>> sc.method("eadp", keep=32).keep
    32
    """
    known = methods()
    if name not in known:
        raise ValueError(f"method: expected one of {', '.join(sorted(known))}; got {name!r}")
    return known[name](**parameters)


def published(name: str, **settings: Any) -> Method:
    """A method as its authors' program has it: every setting, observation, budget and position.

    On arrays and attached to a model it does what that program does, where the program's faults
    can be said as a selection at all; a method's page tells which cannot.

    Parameters
    ----------
    name
        One of `methods`.
    settings
        Parameters of the method, such as `keep`, for what the program leaves open.

    Examples
    --------
    >>> import secateur as sc
    >>> sc.published("divprune", keep=64)
    DivPrune(keep=64, published=True)
    """
    known = methods()
    if name not in known:
        raise ValueError(f"name: expected one of {', '.join(sorted(known))}; got {name!r}")
    kind = known[name]
    return kind(**{**kind.as_published, **settings, "published": True})


class Row(NamedTuple):
    """What the table of methods says about one."""

    name: str
    title: str
    paper: str
    needs: str
    acts: str
    complexity: str
    guarantee: str
    parity: str


def table() -> list[Row]:
    """One row for each of this library's methods, for documents and the command line.

    >>> from secateur.core.methods import table
    >>> table()[0].name, table()[0].needs
    ('eadp', 'features, text')
    """
    rows = []
    for kind in _OWN:
        inside = issubclass(kind, Cuts)
        stages = ["before the encoder"] * issubclass(kind, Shrinks)
        stages += ["before the language model"] * kind.prunes_before + ["inside it"] * inside
        rows.append(
            Row(
                kind.name,
                kind.__name__,
                kind.reference,
                ", ".join(sorted(kind().needs)) or "queries and keys",
                " and ".join(stages),
                kind.complexity,
                kind.guarantee,
                kind.parity,
            )
        )
    return rows


__all__ = [
    "DART",
    "DUET",
    "EADP",
    "ERASE",
    "EVS",
    "FPS",
    "SCOPE",
    "AgilePruner",
    "ApET",
    "CDPruner",
    "Cut",
    "DivPrune",
    "Downsample",
    "DyCoke",
    "FLoC",
    "FastV",
    "FastVID",
    "FlashVID",
    "HiPrune",
    "HoliTom",
    "IDPruner",
    "IVCPrune",
    "InsideMethod",
    "MMTok",
    "Method",
    "Mixture",
    "OTPrune",
    "PixelPrune",
    "Pool",
    "PruMerge",
    "PruMergePlus",
    "PruneSID",
    "PyramidDrop",
    "Random",
    "Row",
    "SparseVLM",
    "TopK",
    "UniformGrid",
    "VScan",
    "ViTCoP",
    "VidCom2",
    "VisPruner",
    "VisionSelector",
    "VisionZip",
    "method",
    "methods",
    "published",
    "table",
]
