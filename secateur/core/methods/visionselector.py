"""VisionSelector: the tokens that a trained scorer ranks highest."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    device,
    like,
    namespace,
    shape_of,
    spell,
    to_numpy,
    top,
    wide,
    widened,
)
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method, Program
from secateur.core.order import settled
from secateur.core.selection import Selection

Numbers = np.ndarray[Any, np.dtype[Any]]

PREFIX = "importance_scorer."
"""What the scorer is called within the published checkpoints (there under ``visual.``)."""
_ROLE = re.compile(
    r"(?:^|[._])(?:w_?)?(?P<role>[qk])(?:uery|ey)?(?:_?proj|_?linear)?\.(?P<part>\w+)$"
)
_PARTS = ("q_weight", "q_bias", "k_weight", "k_bias")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, eq=False)
class Scorer:
    r"""Trained weights that score visual tokens by each other.

    .. math:: s_i = \frac{1}{N \sqrt h} \sum_j \langle W_q x_i + b_q, W_k x_j + b_k \rangle
        = \frac{1}{\sqrt h} \Big\langle W_q x_i + b_q, \frac 1 N \sum_j (W_k x_j + b_k) \Big\rangle

    Parameters
    ----------
    q_weight, k_weight
        :math:`W_q` and :math:`W_k`, (h, D).
    q_bias, k_bias
        :math:`b_q` and :math:`b_k`, (h,).
    source
        The file they came from, for `Method.to_dict`; None for arrays of one's own.

    Notes
    -----
    O(N D + h D) time by the second form: no N x N matrix, and no queries either.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.visionselector import Scorer
    >>> scorer = Scorer(np.eye(2), np.zeros(2), np.eye(2), np.zeros(2))
    >>> scorer.scores(np.array([[2.0, 0.0], [0.0, 1.0]])).round(4)
    array([1.4142, 0.3536])
    """

    q_weight: Array
    q_bias: Array
    k_weight: Array
    k_bias: Array
    source: str | None = field(default=None)

    def __post_init__(self) -> None:
        for name in _PARTS:
            layout = "(h, D)" if name.endswith("weight") else "(h,)"
            checked(getattr(self, name), name, layout)
        shapes = {name: shape_of(getattr(self, name)) for name in _PARTS}
        h, d = shapes["q_weight"]
        wanted = {"q_weight": (h, d), "q_bias": (h,), "k_weight": (h, d), "k_bias": (h,)}
        for name, shape in shapes.items():
            if shape != wanted[name]:
                raise ValueError(
                    f"{name}: expected shape {spell(wanted[name])} beside q_weight "
                    f"{spell(shapes['q_weight'])}, got {spell(shape)}"
                )

    @classmethod
    def load(cls, path: str | Path) -> Scorer:
        """The scorer of a published checkpoint.

        Parameters
        ----------
        path
            A safetensors file, or a folder with one or several. Only the scorer's tensors are
            read: those under ``importance_scorer``, or all of a file that holds nothing else,
            whose names end in ``q_proj.weight``, ``q_proj.bias``, ``k_proj.weight`` and
            ``k_proj.bias`` (also ``q.``, ``query.``, ``W_q.`` and the like).

        Notes
        -----
        That checkpoints hold the scorer under ``visual.importance_scorer`` is what a published
        loader says; how its four tensors are called there we have not seen, hence the patience
        with names.
        """
        place = Path(path)
        files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
        if not files or not files[0].is_file():
            raise ValueError(f"path: no safetensors file at {str(path)!r}")
        found: dict[str, Numbers] = {}
        for each in files:
            found |= _read(each)
        missing = sorted(set(_PARTS) - set(found))
        if missing:
            raise ValueError(
                f"path: {str(path)!r} holds no scorer of VisionSelector: no tensor for "
                f"{', '.join(missing)}"
            )
        return cls(**found, source=str(path))

    def save(self, path: str | Path) -> Scorer:
        """Write the weights as safetensors, in float32; the same scorer with that source."""
        arrays = {
            f"{PREFIX}{name[0]}_proj.{name[2:]}": to_numpy(getattr(self, name)).astype("<f4")
            for name in _PARTS
        }
        header, start = {}, 0
        for name, x in arrays.items():
            end = start + x.nbytes
            header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [start, end]}
            start = end
        text = json.dumps(header).encode()
        data = b"".join(x.tobytes() for x in arrays.values())
        Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)
        return type(self).load(path)

    def scores(self, features: Array) -> Array:
        """The score (..., N) of every token (..., N, D)."""
        xp = namespace(features)
        x = xp.astype(features, wide(xp))
        width = int(self.q_weight.shape[-1])
        if int(x.shape[-1]) != width:
            raise ValueError(
                f"features: expected {width} numbers a token, as the scorer was trained on, "
                f"got shape {spell(shape_of(features))}"
            )
        wq, bq, wk, bk = (self._beside(name, x) for name in _PARTS)
        key = xp.mean(x, axis=-2) @ xp.matrix_transpose(wk) + bk
        along = (key @ wq)[..., None]
        offset = xp.sum(key * bq, axis=-1)[..., None]
        return ((x @ along)[..., 0] + offset) / math.sqrt(int(bq.shape[0]))

    def _beside(self, name: str, x: Array) -> Array:
        """Weights in the library, on the device and in the dtype of `x`."""
        weight = constant(getattr(self, name))
        xp = namespace(x)
        same = type(weight) is type(x) and device(weight) == device(x)
        return xp.astype(weight if same else like(to_numpy(weight), x), x.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Where the weights are, and what they were, as plain values."""
        if self.source is None:
            raise ValueError(
                "weights: arrays have no place in JSON; Scorer.save(path) writes them to a file, "
                "and the scorer it returns is stored by that file's name"
            )
        return {"source": self.source, "digest": self.digest}

    @property
    def digest(self) -> str:
        """A number that tells these weights from others."""
        parts = [to_numpy(constant(getattr(self, name))).astype("<f4") for name in _PARTS]
        return hashlib.sha256(b"".join(x.tobytes() for x in parts)).hexdigest()[:16]

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Scorer:
        """The scorer that `to_dict` wrote; refused where the file holds other weights by now."""
        if not isinstance(stored.get("source"), str):
            raise ValueError(
                f"weights: expected a record with a file's name, 'source', got {stored}"
            )
        scorer = cls.load(stored["source"])
        if stored.get("digest", scorer.digest) != scorer.digest:
            raise ValueError(
                f"weights: {stored['source']!r} holds other weights than when this was stored"
            )
        return scorer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scorer) and all(
            np.array_equal(
                to_numpy(constant(getattr(self, name))), to_numpy(constant(getattr(other, name)))
            )
            for name in _PARTS
        )

    def __hash__(self) -> int:
        return hash(shape_of(self.q_weight))

    def __repr__(self) -> str:
        h, d = shape_of(self.q_weight)
        return f"Scorer({d} -> {h}{'' if self.source is None else f', source={self.source!r}'})"


@dataclass(frozen=True)
class VisionSelector(Method):
    r"""The k tokens of highest score under a trained scorer.

    Every token's query is compared with the keys of all tokens; see `Scorer` for the formula.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    weights
        The trained scorer; `Scorer.load` reads a published checkpoint. There is no default:
        weights belong to one model.

    Notes
    -----
    O(N D + h D + N log N) time. Equal scores (to rounding) go to the lowest index. A second
    program ranks by a sigmoid of the same scores, shifted so that their sum is a fifth of N
    (`soft_weights`); in half precision many of these are equal near 0 and 1, where ours still
    ranks by score.

    In JSON a method names the file that its weights came from, with a number to tell whether
    the file still holds them; weights that came from no file are refused there.

    References
    ----------
    J. Zhu et al., "VisionSelector: End-to-End Learnable Visual Token Compression for Efficient
    Multimodal LLMs", 2025, arXiv 2510.16598.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> from secateur.core.methods.visionselector import Scorer, VisionSelector
    >>> scorer = Scorer(np.eye(2), np.zeros(2), np.eye(2), np.zeros(2))
    >>> x = np.array([[0.0, 1.0], [3.0, 0.0], [1.0, 0.0]])
    >>> VisionSelector(keep=2, weights=scorer).select(sc.Tokens(features=x)).indices
    array([1, 2])
    """

    keep: int | float = 0.2
    weights: Scorer | None = None

    name: ClassVar[str] = "visionselector"
    complexity: ClassVar[str] = "N D + h D + N log N"
    reference: ClassVar[str] = "Zhu et al., 2025, arXiv 2510.16598"
    guarantee: ClassVar[str] = "largest total score"
    parity: ClassVar[str] = "both programs in float64: scores, picks, soft weights"
    program: ClassVar[Program | None] = Program("JulietChoo/VisionSelector", "800a70f")
    as_published: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.weights, Mapping):
            object.__setattr__(self, "weights", Scorer.from_dict(self.weights))
        if self.weights is not None and not isinstance(self.weights, Scorer):
            raise ValueError(f"weights: expected a Scorer, got {type(self.weights).__name__}")

    @property
    def needs(self) -> frozenset[str]:
        """The features, in the space that the scorer was trained on."""
        return frozenset({"features"})

    def weigh(self, tokens: Tokens) -> Array:
        """The trained score; see `Method.weigh`."""
        if self.weights is None:
            raise ValueError(
                "weights: VisionSelector ranks tokens by trained weights and has none; "
                "Scorer.load(path) reads a published checkpoint"
            )
        return self.weights.scores(constant(widened(tokens.features)))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The k highest scores; see `Method.choose`."""
        scores = self.weigh(tokens)
        xp = namespace(scores)
        scale = xp.max(xp.abs(scores), axis=-1, keepdims=True)
        ranked = settled(scores / xp.where(scale > 0, scale, xp.ones_like(scale)))
        return Selection.of(top(ranked, k), tokens.size, scores=scores)


def soft_weights(scores: Array, share: float = 0.2) -> Array:
    r"""Scores as weights in (0, 1) that add up to a share of the tokens.

    .. math:: w_i = \sigma(s_i + t) \quad\text{with } t \text{ such that }
        \textstyle\sum_i w_i = \operatorname{clip}(\text{share} \cdot N, 10^{-4}, N - 10^{-4})

    Parameters
    ----------
    scores
        Scores (..., N).
    share
        0.2 in the program, whatever it is asked to keep.

    Notes
    -----
    O(N) time a step of a bisection in t of 100 steps.

    Examples
    --------
    >>> import numpy as np
    >>> soft_weights(np.array([1.0, 1.0, 1.0, 1.0]), 0.25).round(6)
    array([0.25, 0.25, 0.25, 0.25])
    """
    xp = namespace(scores)
    x = xp.astype(scores, wide(xp))
    size = int(x.shape[-1])
    wanted = min(max(share * size, 1e-4), size - 1e-4)
    low = -xp.max(x, axis=-1, keepdims=True) - 40.0
    high = -xp.min(x, axis=-1, keepdims=True) + 40.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        more = xp.sum(_sigmoid(x + middle), axis=-1, keepdims=True) < wanted
        low, high = xp.where(more, middle, low), xp.where(more, high, middle)
    return _sigmoid(x + 0.5 * (low + high))


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + namespace(x).tanh(0.5 * x))


def _read(path: Path) -> dict[str, Numbers]:
    """The scorer's tensors of one safetensors file; nothing else of it is read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"path: {str(path)!r} is no safetensors file")
        header = {k: v for k, v in json.loads(file.read(length)).items() if k != "__metadata__"}
        own = {name for name in header if PREFIX in name} or set(header)
        if len(own) > 8 and not any(PREFIX in name for name in own):
            return {}  # Weights of a whole model have queries and keys too, but no scorer's.
        found = {}
        for name in sorted(own):
            role = _ROLE.search(name)
            if role is None:
                continue
            told = header[name]
            start, end = told["data_offsets"]
            file.seek(8 + length + start)
            found[f"{role['role']}_{role['part']}".lower()] = _decoded(
                file.read(end - start), told, name
            )
        return found


def _decoded(data: bytes, told: Mapping[str, Any], name: str) -> Numbers:
    kind = told["dtype"]
    if kind not in _DTYPES:
        raise ValueError(f"path: tensor {name!r} has dtype {kind}, no floating point")
    x = np.frombuffer(data, dtype=_DTYPES[kind])
    if kind == "BF16":  # the upper half of a float32
        x = (x.astype("<u4") << 16).view("<f4")
    return x.reshape(told["shape"]).copy()
