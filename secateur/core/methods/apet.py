"""ApET: the tokens that a few others cannot approximate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from secateur.core.acts import Cut, Cuts, Layout, Look, Sight, Stay
from secateur.core.arrays import (
    Array,
    constant,
    device,
    index_dtype,
    like,
    namespace,
    shape_of,
    spell,
    top,
    whole,
    wide,
    widened,
)
from secateur.core.folding import also, averaging
from secateur.core.inputs import Tokens
from secateur.core.methods.base import (
    Method,
    Program,
    require_one_of,
    require_positive,
    require_some,
    require_whole,
)
from secateur.core.methods.inside import halfway
from secateur.core.order import nearest, positions_like, settled
from secateur.core.selection import Selection
from secateur.core.similarity import squared_distances

RIDGE = 1e-5
"""What the program adds to the diagonal before it inverts."""


@dataclass(frozen=True)
class ApET(Method, Cuts):
    r"""Tokens with the largest error of approximation by a small basis; the rest merged in.

    The basis B are b tokens by farthest-point sampling in squared Euclidean distance. Every
    token is approximated by a combination of them, and

    .. math:: W = (B B^\top + \lambda I)^{-1} B X^\top, \qquad
        e_i = \lVert X_i - W_i^\top B \rVert

    The k tokens of largest error are kept. Every other one goes to the kept one of largest
    cosine, which becomes the plain mean of itself and those that came.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    basis
        How many tokens approximate the others, b.
    ridge
        :math:`\lambda`, above 0.
    first
        The first token of the basis; a tuple of them, one for each image of a batch; the token
        farthest from the mean when absent.
    model
        What the authors' program does beyond that, in the form it has for ``"llava"``,
        ``"qwen"``, ``"inner"`` (between layers of LLaVA's language model) or ``"video"``
        (Video-LLaVA); None for the method as above.
    inner
        How many of the prompt's tokens go on after half of the language model's layers, chosen
        and merged in the same way from its hidden states: a count, or a share of those that
        entered; a third in the authors' program for LLaVA. None for all.

    Notes
    -----
    O(N b D + k N D) time. ``selection.merge(features)`` gives the means, ``selection.scores``
    the errors. Equal errors (to rounding) go to the lowest index, equal cosines to the larger
    error.

    The program's forms for models are odd in ways that no paper explains. In ``"llava"``,
    ``"qwen"`` and ``"inner"`` only the m = k - b largest errors keep their places; the places of
    the b next are overwritten by the basis tokens, which stand where they do not belong
    (``"qwen"``: by the mean of both), while the tokens overwritten are neither kept nor merged.
    In ``"video"`` the basis tokens are kept too, b of the k, and merged into others besides. We
    do not do so unless asked. The program draws its first basis token at random, so
    that its runs differ; it fails where k <= b (here one place at least is chosen by error).
    Between layers `published` has the form ``"inner"``, and numbers positions anew.
    On LLaVA it works before the projector: there ``"llava"`` chooses from `states` where these
    are given. What is merged is what the language model reads.

    The errors say nothing about each other: several near-duplicates with a large error are
    all kept, and nothing is guaranteed.

    References
    ----------
    Q. Ma, Z. Zhang, H. Wang, J. Chen, Z. Song and H. Zheng, "ApET: Approximation-Error Guided
    Token Compression for Efficient VLMs", CVPR 2026, arXiv 2602.19870.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[4.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 1.0, 0.0]])
    >>> chosen = sc.ApET(keep=2, basis=1, first=0).select(sc.Tokens(features=x))
    >>> chosen.indices, chosen.folded
    (array([2, 3]), array([2, 2, 2, 3]))
    """

    basis: int = 10
    ridge: float = RIDGE
    first: int | tuple[int, ...] | None = None
    model: Literal["llava", "qwen", "inner", "video"] | None = None
    inner: int | float | None = None

    name: ClassVar[str] = "apet"
    complexity: ClassVar[str] = "N b D + k N D"
    reference: ClassVar[str] = "Ma et al., CVPR 2026, arXiv 2602.19870"
    in_parts: ClassVar[bool] = True
    parity: ClassVar[str] = "the authors' program in float64: basis, errors, picks, merged tokens"
    program: ClassVar[Program | None] = Program(
        "MaQianKun0/ApET", "70cc01b", "the first basis token is drawn at random there"
    )
    as_published: ClassVar[Mapping[str, Any]] = {"model": "llava", "inner": 1 / 3}
    looks: ClassVar[frozenset[Look]] = frozenset({"hidden"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("basis", self.basis, least=1)
        require_positive("ridge", self.ridge)
        firsts = self.first if isinstance(self.first, tuple) else (self.first,)
        if any(each is not None and whole(each) < 0 for each in firsts):
            raise ValueError(f"first: expected a token's index or one an image, got {self.first!r}")
        if self.model is not None:
            require_one_of("model", self.model, ("llava", "qwen", "inner", "video"))
        if self.inner is not None:
            require_some("inner", self.inner)

    @property
    def needs(self) -> frozenset[str]:
        """The features."""
        return frozenset({"features"})

    @property
    def optional(self) -> frozenset[str]:
        """The tokens before the projector, for the form that chooses there."""
        return frozenset({"states"}) if self.model == "llava" else frozenset()

    def weigh(self, tokens: Tokens) -> Array:
        """The errors; see `Method.weigh`."""
        return self._errors(tokens)[2]

    def _errors(self, tokens: Tokens) -> tuple[Array, Array, Array]:
        """The tokens it looks at, which of them are the basis, and the errors of all."""
        before = self.model == "llava" and tokens.states is not None
        x = constant(widened(tokens.states if before else tokens.features))
        basis = farthest_tokens(x, min(self.basis, tokens.size), self.first)
        return x, basis, approximation_errors(x, basis, self.ridge)

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The largest errors, the rest merged into them; see `Method.choose`."""
        size = tokens.size
        x, basis, errors = self._errors(tokens)
        xp = namespace(errors)
        # Rounding is as large as the tokens are, not as their errors.
        wide_x = xp.astype(x, errors.dtype)
        scale = xp.sqrt(xp.max(xp.sum(wide_x * wide_x, axis=-1), axis=-1, keepdims=True))
        order = top(settled(errors / xp.where(scale > 0, scale, xp.ones_like(scale))), size)
        order = xp.astype(order, index_dtype(xp))
        if k == size:
            return Selection.of(order, size, scores=errors)
        if self.model == "video":
            return _with_basis(x, errors, order, basis, k)
        chosen = Selection.of(order[..., :k], size, scores=errors)
        instead = 0 if self.model is None else min(self.basis, k - 1)
        takers = order[..., : k - instead]
        merged = averaging(chosen, nearest(x, takers))
        if not instead:
            return merged
        places = order[..., k - instead : k]
        if self.model != "inner":
            places = xp.sort(places, axis=-1)
        return _overwritten(merged, places, basis, 0.5 if self.model == "qwen" else 1.0)

    @property
    def cuts_inside(self) -> bool:
        """Where `inner` says so."""
        return self.inner is not None

    @property
    def renumbers(self) -> bool:
        """The authors' program does."""
        return self.published

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """One cut after half of the layers; see `Cuts.plan`."""
        return halfway(self, layout, self.inner)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """The largest errors of the hidden states, the rest merged into them; see `Cuts.decide`."""
        xp = namespace(sight.hidden)
        states = xp.take(sight.hidden, sight.visual, axis=0)
        form: Literal["inner"] | None = "inner" if self.published else None
        own = replace(self, model=form, first=None)
        chosen = own.choose(Tokens(features=states), cut.keep)
        return Stay(chosen.sorted(), chosen.merge(widened(states)))


def farthest_tokens(
    features: Array, count: int, first: int | tuple[int, ...] | None = None
) -> Array:
    r"""Farthest-point sampling by squared Euclidean distance.

    .. math:: b_1 = \text{first}, \qquad
        b_{t+1} = \arg\max_i \min_{s \le t} \lVert X_i - X_{b_s} \rVert^2

    Parameters
    ----------
    features
        Tokens (..., N, D).
    count
        How many, at most N.
    first
        The first one, or one for each row of the batch in a tuple; the token farthest from the
        mean when absent.

    Returns
    -------
    Array
        Indices (..., count) in the order of sampling, none twice, ties to the lowest index.

    Notes
    -----
    O(N count D) time.

    Examples
    --------
    >>> import numpy as np
    >>> farthest_tokens(np.array([[0.0], [1.0], [5.0], [9.0]]), 3, first=0)
    array([0, 3, 2])
    """
    xp = namespace(features)
    x = xp.astype(features, wide(xp))
    batch, size = shape_of(x)[:-2], int(x.shape[-2])
    if first is None:
        spread = squared_distances(x, xp.mean(x, axis=-2, keepdims=True))
        widest = xp.max(spread, axis=-1, keepdims=True)
        spread = settled(spread / xp.where(widest > 0, widest, xp.ones_like(widest)))
        pick = xp.argmax(spread, axis=-1, keepdims=True)
    else:
        pick = like(_firsts(first, batch, size), features)
    pick = xp.astype(pick, index_dtype(xp))
    picks = [pick]
    places = positions_like(pick, size)
    near = xp.full(shape_of(x)[:-1], xp.inf, dtype=x.dtype, device=device(x))
    for _ in range(count - 1):
        one = Selection.of(pick, size).gather(x, ordered=True)
        near = xp.minimum(near, squared_distances(x, one))
        near = xp.where(places == pick, xp.full_like(near, -1.0), near)
        pick = xp.astype(xp.argmax(near, axis=-1, keepdims=True), index_dtype(xp))
        picks.append(pick)
    return xp.concat(picks, axis=-1)


def approximation_errors(features: Array, basis: Array, ridge: float = RIDGE) -> Array:
    r"""How far tokens are from their approximation by a few of them.

    .. math:: e_i = \lVert X_i - B^\top (B B^\top + \lambda I)^{-1} B X_i \rVert

    Parameters
    ----------
    features
        Tokens (..., N, D).
    basis
        The tokens (..., b) that approximate the others.
    ridge
        :math:`\lambda`, above 0.

    Returns
    -------
    Array
        Errors (..., N).

    Notes
    -----
    O(N b D) time. With the singular values s and directions V of B the approximation is
    :math:`V \operatorname{diag}(s^2 / (s^2 + \lambda)) V^\top X_i`, which stays exact where
    basis tokens are equal and the inverse would not.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[3.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    >>> approximation_errors(x, np.array([0])).round(4)
    array([0., 0., 2.])
    """
    xp = namespace(features)
    x = xp.astype(features, wide(xp))
    rows = Selection.of(basis, int(x.shape[-2])).gather(x, ordered=True)
    # LAPACK may go on for ever with what is no number.
    if not bool(xp.all(xp.isfinite(rows))):
        raise ValueError("features: contains NaN or infinity, so that they have no directions")
    _, values, directions = xp.linalg.svd(rows, full_matrices=False)
    held = (values**2 / (values**2 + ridge))[..., None, :]
    along = x @ xp.matrix_transpose(directions)
    return xp.sqrt(squared_distances(x, (along * held) @ directions))


def _firsts(first: int | tuple[int, ...], batch: tuple[int, ...], size: int) -> Any:
    """The first basis token (..., 1) of every row."""
    given = np.asarray(first, dtype=np.int64)
    if given.size and int(given.max()) >= size:
        raise ValueError(f"first: expected one of {size} tokens, got {first!r}")
    if given.ndim and given.size != int(np.prod(batch)):
        raise ValueError(
            f"first: expected one token for each of the rows {spell(batch)}, got {first!r}"
        )
    given = given.reshape(batch) if given.ndim else given
    return np.broadcast_to(given, batch)[..., None].copy()


def _overwritten(merged: Selection, places: Array, basis: Array, weight: float) -> Selection:
    """The selection with basis tokens (..., b) at `places` (..., b), to the weight given."""
    xp = namespace(merged.folded)
    tokens = positions_like(merged.folded, merged.size)
    swapped = xp.any(tokens == places[..., None], axis=-2)
    own: Array = merged.fold_weights
    own = xp.where(swapped, xp.full_like(own, 1.0 - weight), own)
    basis = basis[..., : int(places.shape[-1])]
    given = xp.full(shape_of(basis), weight, dtype=own.dtype, device=device(own))
    return also(replace(merged, fold_weights=own), basis, places, given)


def _with_basis(x: Array, errors: Array, order: Array, basis: Array, k: int) -> Selection:
    """Video-LLaVA's form: the largest errors take in all others, the basis stays besides."""
    xp = namespace(errors)
    size = int(errors.shape[-1])
    count = min(int(basis.shape[-1]), k - 1)
    basis = basis[..., :count]
    # Those of the basis last: they are kept anyway.
    of_basis = xp.any(order[..., None] == basis[..., None, :], axis=-1)
    moved = xp.argsort(xp.astype(of_basis, index_dtype(xp)), axis=-1, stable=True)
    takers = xp.take_along_axis(order, moved, axis=-1)[..., : k - count]
    taken = averaging(Selection.of(takers, size, scores=errors), nearest(x, takers))
    ones = xp.ones(shape_of(basis), dtype=wide(xp), device=device(errors))
    chosen = Selection.of(xp.concat([takers, basis], axis=-1), size)
    both = also(taken, basis, basis, ones)
    return replace(both, indices=chosen.indices, count=chosen.count)
