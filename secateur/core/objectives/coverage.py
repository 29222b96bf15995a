"""How well a set of tokens stands for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    device,
    epsilon,
    is_sparse,
    like,
    namespace,
    shape_of,
    spell,
    to_numpy,
    wide,
)
from secateur.core.kernels import KINDS, Kernel, Kind, compared, norms
from secateur.core.objectives.base import ByRow, Tracker, checked_selectable
from secateur.core.objectives.blocks import SoftmaxBlock, checked_block, entries_of, shape_of_block
from secateur.core.parameters import typed
from secateur.core.similarity import (
    MatrixSimilarity,
    Similarity,
    SparseSimilarity,
    StackedSimilarity,
    at,
    blocks,
    row_positions,
)
from secateur.core.tolerances import COSINE, SUM


class FacilityLocation(ByRow):
    r"""How well a set of tokens stands for all tokens, each as heavy as its weight.

    .. math:: f(S) = \sum_i w_i \max_{j \in S} s_{ij}, \qquad f(\emptyset) = 0

    Monotone and submodular for any non-negative weights; negative similarities count as 0.

    Parameters
    ----------
    similarity
        Similarities (..., N, N): row i is served by column j. It need not be symmetric, nor
        square: (..., H, N) are H rows to stand for and N tokens to pick from. Or a SciPy sparse
        matrix (H, N), never made dense; absent entries are 0.
    weights
        Non-negative weights (..., H) of the rows; all 1 when absent.
    selectable
        False (..., N) at tokens that may not be picked; their rows count like others.
    check_finite
        Whether to refuse NaN and infinity.

    Notes
    -----
    `value` and one `gain` take O(H |S|) and O(H) time. Sums are in float64, so picks are those
    of the real-number definition but for gains closer than rounding, which count as equal.

    f is monotone and submodular whatever the rows are: each row's term is, being a maximum of
    numbers of at least 0, and non-negative sums of such are. The restriction to selectable
    tokens is the same function on fewer candidates, so that greedy and the certificate hold
    against the best set of selectable ones.

    References
    ----------
    G. Cornuejols, M. Fisher and G. Nemhauser, "Location of bank accounts to optimize float",
    Management Science, 1977.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> f = sc.FacilityLocation(np.array([[1.0, 0.2], [0.5, 1.0]]), weights=np.array([3.0, 1.0]))
    >>> float(f.value([0])), float(f.gain([0], 1))
    (3.5, 0.5)
    """

    submodular = True
    monotone = True
    arrays = (*ByRow.arrays, "matrix", "features", "weights")

    @typed
    def __init__(
        self,
        similarity: Any,
        weights: Array | None = None,
        *,
        selectable: Any = None,
        check_finite: bool = True,
    ) -> None:
        if is_sparse(similarity):
            similarity = similarity.tocsr()
            data = checked(similarity.data, "similarity", "(...)", check_finite=check_finite)
            if data is not similarity.data:
                similarity = similarity.astype(data.dtype)
        else:
            similarity = checked(similarity, "similarity", "(..., H, N)", check_finite=check_finite)
            similarity = constant(similarity)
        shape = shape_of(similarity)
        if 0 in shape[-2:]:
            raise ValueError(f"similarity: expected shape (..., H, N), got {spell(shape)}")
        self._begin(similarity, None, (), shape)
        self._given(weights, selectable, check_finite)

    @classmethod
    @typed
    def from_features(
        cls,
        features: Array,
        weights: Array | None = None,
        *,
        similarity: Kind = "cosine",
        selectable: Any = None,
        check_finite: bool = True,
    ) -> Self:
        """Facility location on similarities of features with each other.

        The N x N matrix is never built: memory stays O(N D), at the price of working
        similarities out again for the rows that a pick improves.

        Parameters
        ----------
        features
            Features (..., N, D) of the tokens.
        weights
            Non-negative weights (..., N) of the rows; all 1 when absent.
        similarity
            ``"cosine"``, (1 + cos) / 2; ``"norms"``, the same with each row as heavy as its
            norm; ``"exemplar"``, max(0, |x_i|^2 - |x_i - x_j|^2); ``"gaussian"``,
            exp(-|x_i - x_j|^2 / median); ``"softmax"``, rows of the softmax of cos / 0.2. See
            `secateur.core.kernels`.
        selectable
            False (..., N) at tokens that may not be picked.
        check_finite
            Whether to refuse NaN and infinity.

        Examples
        --------
        >>> import numpy as np, secateur as sc
        >>> x = np.array([[1.0, 0.0], [0.0, 2.0]])
        >>> float(sc.FacilityLocation.from_features(x).value([0]))
        1.5
        >>> float(sc.FacilityLocation.from_features(x, similarity="exemplar").value([1]))
        4.0
        """
        features = checked(features, "features", "(..., N, D)", check_finite=check_finite)
        if similarity not in KINDS:
            raise ValueError(f"similarity: expected one of {', '.join(KINDS)}; got {similarity!r}")
        self = cls.__new__(cls)
        shape = shape_of(features)
        self._begin(None, constant(features), (), (*shape[:-1], shape[-2]))
        self.kind = "cosine" if similarity == "norms" else similarity
        self._given(weights, selectable, check_finite)
        if similarity == "norms":
            heavy = norms(self.features)
            self.weights = heavy if self.weights is None else heavy * self.weights
        return self

    @classmethod
    @typed
    def of_blocks(
        cls,
        blocks: Sequence[Array | SoftmaxBlock],
        weights: Sequence[Any] | None = None,
        *,
        selectable: Any = None,
        check_finite: bool = True,
    ) -> Self:
        """Facility location over several blocks of rows, which the same tokens stand for.

        Parameters
        ----------
        blocks
            Similarities (..., H, N), each with rows of its own; or `SoftmaxBlock`, whose
            entries are worked out when they are asked for, so that memory stays O((H + N) D).
        weights
            One entry a block: a number for each of its rows, weights (..., H), or None for 1.
        selectable
            False (..., N) at tokens that may not be picked.
        check_finite
            Whether to refuse NaN and infinity.

        Examples
        --------
        >>> import numpy as np, secateur as sc
        >>> words, tokens = np.array([[0.9, 0.1, 0.0]]), np.eye(3)
        >>> f = sc.FacilityLocation.of_blocks([words, tokens], [1.0, 0.5])
        >>> sc.maximize(f, 2).indices, float(f.value([0, 1]))
        (array([0, 1]), 1.9)
        """
        if not len(blocks):
            raise ValueError("blocks: expected at least one block of rows, got none")
        given = [checked_block(block, check_finite) for block in blocks]
        batch, size = shape_of_block(given[0])[:-2], shape_of_block(given[0])[-1]
        shapes = [shape_of_block(block) for block in given]
        if len({(shape[:-2], shape[-1]) for shape in shapes}) > 1:
            raise ValueError(
                f"blocks: expected the same batch and tokens in each, got shapes "
                f"{', '.join(spell(shape) for shape in shapes)}"
            )
        heights = [shape[-2] for shape in shapes]
        self = cls.__new__(cls)
        self._begin(None, None, tuple(given), (*batch, sum(heights), size))
        if weights is not None:
            weights = self._joined(weights, heights, check_finite)
        self._given(weights, selectable, False)
        return self

    def _begin(
        self, matrix: Any, features: Array | None, blocks: tuple[Any, ...], shape: tuple[int, ...]
    ) -> None:
        self.matrix = matrix
        """The similarities (..., H, N) given, dense or sparse; None from features or blocks."""
        self.features: Any = features
        """The features (..., N, D) given; None from a matrix or blocks."""
        self.blocks = blocks
        """The blocks of rows given; none from a matrix or features."""
        self.kind: Kind = "cosine"
        """What features are compared by; norms are in the weights."""
        self.batch_shape = shape[:-2]
        self.rounding = 0.0
        """How far the entries of a matrix are known to be off, as far as ties go."""
        self.height, self.size = shape[-2:]
        """How many rows there are to stand for, H, and tokens to pick from, N."""
        self._settle()

    def _given(self, weights: Any, selectable: Any, check_finite: bool) -> None:
        self.weights = None if weights is None else self._checked_weights(weights, check_finite)
        """Weights (..., H) of the rows, or None for equal ones."""
        self.selectable = checked_selectable(selectable, self)

    def _settle(self) -> None:
        source: Any = self.matrix if self.features is None else self.features
        if self.blocks:
            source = self.blocks[0]
        if isinstance(source, SoftmaxBlock):
            source = source.candidates
        self.sample = source.data if is_sparse(source) else source
        self._entries: Similarity | None = None
        self._kernel: Kernel | None = None
        self._noise: float | None = None

    def with_arrays(self, change: Callable[[Any], Any]) -> Self:
        """A copy whose `arrays`, and those in its blocks, went through `change`."""
        one = super().with_arrays(change)
        one.blocks = tuple(
            block.with_arrays(change) if isinstance(block, SoftmaxBlock) else change(block)
            for block in self.blocks
        )
        one._settle()
        return one

    @property
    def form(self) -> str:
        """``"matrix"``; ``"features"`` by cosines, ``"kernel"`` by another similarity of them.

        ``"rows"``: rectangular, in blocks, or masked.
        """
        if self.selectable is not None or self.blocks or self.height != self.size:
            return "rows"
        if self.features is None:
            return "matrix"
        return "features" if self.kind == "cosine" else "kernel"

    def _joined(self, weights: Sequence[Any], heights: Sequence[int], check_finite: bool) -> Array:
        """Weights (..., H) of all rows from those of each block."""
        if len(weights) != len(heights):
            raise ValueError(
                f"weights: expected one entry for each of {len(heights)} blocks, got {len(weights)}"
            )
        xp, parts = namespace(self.sample), []
        for each, height in zip(weights, heights, strict=True):
            given = 1.0 if each is None else each
            w = checked(
                given,
                "weights",
                "(...)",
                check_finite=check_finite,
                non_negative=True,
                beside=self.sample,
            )
            if w.ndim and int(w.shape[-1]) != height:
                raise ValueError(f"weights: expected shape ({height},), got {spell(shape_of(w))}")
            parts.append(xp.broadcast_to(xp.astype(w, wide(xp)), (*self.batch_shape, height)))
        return xp.concat(parts, axis=-1)

    def _checked_weights(self, weights: Any, check_finite: bool) -> Array:
        weights = checked(
            weights,
            "weights",
            "(..., N)",
            check_finite=check_finite,
            non_negative=True,
            beside=self.sample,
        )
        xp = namespace(weights, self.sample)
        shape = shape_of(weights)
        if shape[-1] != self.height or shape[:-1] not in ((), self.batch_shape):
            each = f" or {spell((self.height,))}" if self.batch_shape else ""
            raise ValueError(
                f"weights: expected shape {spell((*self.batch_shape, self.height))}{each}, "
                f"got {spell(shape)}"
            )
        return constant(xp.broadcast_to(weights, (*self.batch_shape, self.height)))

    @property
    def similarity(self) -> Similarity:
        """The similarities of one image, entry by entry."""
        if self._entries is None:
            if self.features is not None:
                self._entries = self.kernel
            elif self.blocks:
                self._entries = StackedSimilarity([entries_of(block) for block in self.blocks])
            elif is_sparse(self.matrix):
                self._entries = SparseSimilarity(self.matrix)
            else:
                self._entries = MatrixSimilarity(self.matrix)
        return self._entries

    @property
    def kernel(self) -> Kernel:
        """How the features of one image are compared."""
        if self._kernel is None:
            self._kernel = compared(self.kind, self.features)
        return self._kernel

    def row_weights(self) -> Array:
        """The weights of one image in the dtype of sums."""
        xp = namespace(self.sample)
        if self.weights is None:
            return like(np.ones(self.height), self.sample, dtype=wide(xp))
        return xp.astype(self.weights, wide(xp))

    @property
    def noise(self) -> float:
        """How far a gain of one image may be off because its entries are; 0 from a matrix."""
        if self._noise is None:
            self._noise = 0.0
            if self.rounding:
                self._noise = self.rounding * float(to_numpy(self.row_weights()).sum())
            if self.features is not None or self.blocks:
                w = to_numpy(self.row_weights())
                eps = COSINE * self._rounding
                known = self.features is None
                self._noise = 0.0 if known else eps * self.kernel.error * float(w.sum())
            start = 0
            for block in self.blocks:
                stop = start + shape_of_block(block)[-2]
                if isinstance(block, SoftmaxBlock):
                    # A power of a cosine over a temperature is off by that much of itself.
                    self._noise += eps / min(1.0, block.temperature) * float(w[start:stop].sum())
                start = stop
        return self._noise

    def margin(self, best: float) -> float:
        """From features, entries also carry the rounding of a cosine, whatever the gain."""
        return super().margin(best) + self.noise

    def squared(self) -> tuple[FacilityLocation, Array]:
        """The same for one image from a square matrix, and which token each column stands for.

        Columns are the selectable tokens in their order, then ones that serve nobody; rows of
        weight 0 fill up the rest. Greedy picks the same: what adds nothing comes last.
        """
        xp = namespace(self.sample)
        places = np.flatnonzero(self.open())
        entries = self.similarity.columns(like(places, self.sample, dtype=at(0, self.sample).dtype))
        w = self.row_weights()
        side = max(self.height, len(places))
        right, below = side - len(places), side - self.height
        where = device(entries)
        if right:
            blank = xp.zeros((self.height, right), dtype=entries.dtype, device=where)
            entries = xp.concat([entries, blank], axis=1)
        if below:
            blank = xp.zeros((below, side), dtype=entries.dtype, device=where)
            entries = xp.concat([entries, blank])
            w = xp.concat([w, xp.zeros((below,), dtype=w.dtype, device=where)])
        one = FacilityLocation(entries, w, check_finite=False)
        total = float(xp.sum(w))
        one.rounding = self.noise / total if total > 0 else 0.0
        return one, like(np.pad(places, (0, right)), self.sample, dtype=at(0, self.sample).dtype)

    def coverage(self, picks: Array) -> Array:
        """How well each row is served: m_i = max(0, max over S of s_ij), shape (H,)."""
        xp = namespace(self.sample)
        m = like(np.zeros(self.height), self.sample, dtype=wide(xp))
        for start, stop in blocks(self.similarity, int(picks.shape[0])):
            served = xp.astype(self.similarity.columns(picks[start:stop]), m.dtype)
            m = xp.maximum(m, xp.max(served, axis=1))
        return m

    def _value(self, picks: Array) -> Array:
        return namespace(self.sample).sum(self.row_weights() * self.coverage(picks))

    def _gain(self, picks: Array, candidates: Array) -> Array:
        return self.gains_over(self.coverage(picks), candidates)

    def gains_over(self, coverage: Array, candidates: Array) -> Array:
        """Gains (M,) of candidates when rows are served as well as `coverage` (H,) says."""
        xp = namespace(self.sample)
        w, m = self.row_weights()[:, None], coverage[:, None]
        parts = [m[:0, 0]]
        for start, stop in blocks(self.similarity, int(candidates.shape[0])):
            s = xp.astype(self.similarity.columns(candidates[start:stop]), m.dtype)
            parts.append(xp.sum(w * xp.clip(s - m, 0.0, None), axis=0))
        gains = xp.concat(parts)
        # No set is worth more than all gains together, and no bound adds up twice as much.
        if not math.isfinite(4.0 * float(xp.sum(gains))):
            given = self.matrix if self.features is None else self.features
            refuse_sums(given, self.weights, "similarity" if self.features is None else "features")
        return gains

    def tracker(self) -> Tracker:
        """Every candidate's gain, by touching only the rows that a pick improves.

        A pick p raises the coverage m_i only of rows with s_ip > m_i, and only those rows
        change any gain. Over all picks that is a few times N rows where recomputing takes k N.
        """
        return _Served(self)


def refuse_sums(given: Any, weights: Array | None, name: str) -> NoReturn:
    """Say why gains, the sums of columns of `name` times the weights, are no usable numbers."""
    given = given.data if is_sparse(given) else given
    xp = namespace(given)
    if not bool(xp.all(xp.isfinite(given))):
        raise ValueError(f"{name}: contains NaN or infinity, or features do: nothing to choose by")
    if weights is not None and not bool(xp.all(xp.isfinite(weights))):
        raise ValueError(
            "weights: contain NaN or infinity, or text or features do: nothing to choose by"
        )
    largest = str(wide(xp)).rpartition(".")[2].strip("'<>")
    heavy = weights is not None and float(xp.max(weights)) > 1.0
    culprit = "weights" if heavy and float(xp.max(xp.abs(given))) <= 1.0 else name
    raise ValueError(
        f"{culprit}: sums of similarities times weights leave the range of {largest}; "
        f"scale {culprit} down, which changes no pick"
    )


class _Served:
    def __init__(self, f: FacilityLocation) -> None:
        xp = namespace(f.sample)
        self._f = f
        self._weights = f.row_weights()
        self._m = xp.zeros_like(self._weights)
        self._g = f.gains_over(self._m, row_positions(f.size, f.sample))
        self._largest = float(xp.max(self._g))
        self._noise = f.noise if f.blocks or f.kind != "cosine" else 0.0
        self._terms = f.height

    @property
    def slack(self) -> float:
        # Each of the terms ever added to a gain was rounded to the precision of the largest,
        # and so was each entry, should it be a cosine: a token serves itself by 1/2 or more.
        return SUM * epsilon(self._g) * self._terms * self._largest + self._noise

    def gains(self) -> Array:
        return self._g

    def add(self, pick: int) -> None:
        xp = namespace(self._g)
        served = self._f.similarity.columns(at(pick, self._f.sample))[:, 0]
        raised = xp.maximum(self._m, xp.astype(served, self._m.dtype))
        improved = xp.nonzero(raised > self._m)[0]
        self._terms += int(improved.shape[0])
        for start, stop in blocks(self._f.similarity, int(improved.shape[0])):
            i = improved[start:stop]
            s = xp.astype(self._f.similarity.rows(i), self._g.dtype)
            low, high = xp.take(self._m, i)[:, None], xp.take(raised, i)[:, None]
            # max(0, s - low) - max(0, s - high): what row i no longer gives to a candidate.
            lost = xp.minimum(xp.maximum(s, low), high) - low
            self._g = self._g - xp.sum(xp.take(self._weights, i)[:, None] * lost, axis=0)
        self._m = raised
