"""The methods, one file each, and how to find them by name.

A method of this library is one file and a line in `OWN`, with its twin for type checkers; a method
of another package registers its class under the entry-point group ``secateur.methods``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from secateur.core.acts import Cut as Cut
from secateur.core.acts import Cuts, Folds, Forgets, Shrinks, Skips
from secateur.core.methods.base import Method as Method
from secateur.core.methods.inside import InsideMethod as InsideMethod
from secateur.core.parameters import typed

if TYPE_CHECKING:
    from secateur.core.methods.agile import AgilePruner as AgilePruner
    from secateur.core.methods.apet import ApET as ApET
    from secateur.core.methods.cdpruner import CDPruner as CDPruner
    from secateur.core.methods.dart import DART as DART
    from secateur.core.methods.divprune import DivPrune as DivPrune
    from secateur.core.methods.downsample import Downsample as Downsample
    from secateur.core.methods.duet import DUET as DUET
    from secateur.core.methods.dycoke import DyCoke as DyCoke
    from secateur.core.methods.eadp import EADP as EADP
    from secateur.core.methods.erase import ERASE as ERASE
    from secateur.core.methods.evs import EVS as EVS
    from secateur.core.methods.fastv import FastV as FastV
    from secateur.core.methods.fastvid import FastVID as FastVID
    from secateur.core.methods.flashvid import FlashVID as FlashVID
    from secateur.core.methods.floc import FLoC as FLoC
    from secateur.core.methods.fps import FPS as FPS
    from secateur.core.methods.hiprune import HiPrune as HiPrune
    from secateur.core.methods.holitom import HoliTom as HoliTom
    from secateur.core.methods.idpruner import IDPruner as IDPruner
    from secateur.core.methods.ivcprune import IVCPrune as IVCPrune
    from secateur.core.methods.mixture import Mixture as Mixture
    from secateur.core.methods.mmtok import MMTok as MMTok
    from secateur.core.methods.mustdrop import MustDrop as MustDrop
    from secateur.core.methods.otprune import OTPrune as OTPrune
    from secateur.core.methods.pixelprune import PixelPrune as PixelPrune
    from secateur.core.methods.pool import Pool as Pool
    from secateur.core.methods.prumerge import PruMerge as PruMerge
    from secateur.core.methods.prumerge import PruMergePlus as PruMergePlus
    from secateur.core.methods.prunesid import PruneSID as PruneSID
    from secateur.core.methods.pyramiddrop import PyramidDrop as PyramidDrop
    from secateur.core.methods.random import Random as Random
    from secateur.core.methods.scope import SCOPE as SCOPE
    from secateur.core.methods.sparsevlm import SparseVLM as SparseVLM
    from secateur.core.methods.tome import ToMe as ToMe
    from secateur.core.methods.topk import TopK as TopK
    from secateur.core.methods.uniform import UniformGrid as UniformGrid
    from secateur.core.methods.vidcom2 import VidCom2 as VidCom2
    from secateur.core.methods.visionselector import VisionSelector as VisionSelector
    from secateur.core.methods.visionzip import VisionZip as VisionZip
    from secateur.core.methods.vispruner import VisPruner as VisPruner
    from secateur.core.methods.vitcop import ViTCoP as ViTCoP
    from secateur.core.methods.vscan import VScan as VScan

GROUP = "secateur.methods"
"""The entry-point group of methods that other packages bring."""

OWN = {
    "EADP": "eadp",
    "AgilePruner": "agile",
    "ERASE": "erase",
    "Random": "random",
    "UniformGrid": "uniform",
    "Pool": "pool",
    "Downsample": "downsample",
    "TopK": "topk",
    "FPS": "fps",
    "DivPrune": "divprune",
    "CDPruner": "cdpruner",
    "MMTok": "mmtok",
    "OTPrune": "otprune",
    "SCOPE": "scope",
    "IDPruner": "idpruner",
    "HiPrune": "hiprune",
    "VisPruner": "vispruner",
    "VisionZip": "visionzip",
    "PruMerge": "prumerge",
    "PruMergePlus": "prumerge",
    "DART": "dart",
    "ApET": "apet",
    "VScan": "vscan",
    "PixelPrune": "pixelprune",
    "PruneSID": "prunesid",
    "VisionSelector": "visionselector",
    "ToMe": "tome",
    "DUET": "duet",
    "ViTCoP": "vitcop",
    "MustDrop": "mustdrop",
    "FLoC": "floc",
    "Mixture": "mixture",
    "EVS": "evs",
    "VidCom2": "vidcom2",
    "DyCoke": "dycoke",
    "FastVID": "fastvid",
    "HoliTom": "holitom",
    "FlashVID": "flashvid",
    "FastV": "fastv",
    "PyramidDrop": "pyramiddrop",
    "SparseVLM": "sparsevlm",
    "IVCPrune": "ivcprune",
}
"""This library's methods in the order of the table: the class, and the file here that has it.

A file is imported when its method is first asked for.
"""


def __getattr__(name: str) -> Any:
    if name in OWN:
        return getattr(import_module(f"{__name__}.{OWN[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def entry_points(group: str) -> Iterable[Any]:
    """What installed packages registered; the reader is imported when it is needed."""
    from importlib import metadata

    return metadata.entry_points(group=group)


@cache
def own() -> tuple[type[Method], ...]:
    """This library's methods."""
    here = sys.modules[__name__]
    kinds = {name: getattr(here, name) for name in OWN}
    # As if they had been imported from the start: those who look into the package find them.
    vars(sys.modules["secateur"]).update(kinds)
    return tuple(kinds.values())


def methods() -> dict[str, type[Method]]:
    """All methods by name: this library's, then those that installed packages register.

    >>> import secateur as sc
    >>> sc.methods()["eadp"]
    <class 'secateur.core.methods.eadp.EADP'>
    """
    known = {each.name: each for each in own()}
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


def kind_of(name: Any, argument: str = "method") -> type[Method]:
    """The method of a name that is given as `argument`, or refuse it.

    Whether another package brings it is asked only where it is none of ours: that takes as long
    as reading what every installed package says of itself.
    """
    ours = {each.name: each for each in own()}
    known = ours if isinstance(name, str) and name in ours else methods()
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{argument}: expected one of {', '.join(sorted(known))}; got {name!r}")
    return known[name]


@typed
def method(name: str, **parameters: Any) -> Method:
    """A method by name, with its parameters.

    >>> import secateur as sc
    >>> sc.method("eadp", keep=32).keep
    32
    """
    return kind_of(name)(**parameters)


@typed
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
    kind = kind_of(name, "name")
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
    for kind in own():
        inside = issubclass(kind, Cuts)
        skips = issubclass(kind, Skips)
        stages = ["before the encoder"] * (skips or issubclass(kind, Shrinks))
        stages += ["inside the encoder"] * issubclass(kind, Folds)
        stages += ["before the language model"] * (kind.prunes_before and not skips)
        stages += ["inside it"] * inside
        stages += ["while decoding"] * issubclass(kind, Forgets)
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
