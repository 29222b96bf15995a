"""ToMe: tokens of like keys merge, some in every layer of the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from secateur.core.acts import Folds, Layer
from secateur.core.arrays import (
    Array,
    checked,
    constant,
    device,
    index_dtype,
    like,
    namespace,
    shape_of,
    spell,
    widened,
)
from secateur.core.inputs import Tokens
from secateur.core.merging import Merged, sizes_of
from secateur.core.methods.base import Method, Program, require_whole
from secateur.core.order import settled_cosine
from secateur.core.selection import Selection


class Matching(NamedTuple):
    """Which tokens of a sequence merge into which.

    The new sequence is `stay`, then `targets`.
    """

    stay: Array
    """Tokens (..., A - r) that could have merged and stay, in their new order."""
    gone: Array
    """Tokens (..., r) that merge, the most alike first."""
    into: Array
    """For each of them (..., r) its target, as a number 0 .. B - 1 among the targets."""
    targets: Array
    """Tokens (..., B) that take others in, ascending."""


def soft_matching(metric: Array, r: int, *, class_token: bool = False) -> Matching:
    r"""Match the r tokens of the first half that are most like one of the second (bipartite).

    With A the tokens 0, 2, 4, ... and B the tokens 1, 3, 5, ...,

    .. math::
        b(a) = \arg\max_{b \in B} \cos(m_a, m_b), \qquad
        \text{gone} = \text{the } r \text{ of } A \text{ with the largest } \cos(m_a, m_{b(a)})

    Parameters
    ----------
    metric
        What likeness is told from (..., t, C): a layer's keys, averaged over its heads.
    r
        How many tokens merge; at most half of those that are no class token do.
    class_token
        Whether token 0 is a class token, which never merges.

    Returns
    -------
    Matching
        Where r is 0 every token stays as it was. Without a class token those that stay come in
        descending order of their largest cosine, as the authors' program leaves them; with one,
        in ascending order. The order decides which tokens meet in the next layer.

    Notes
    -----
    O(t^2 C / 4) time. Ties go to the lowest index. The program divides by the length of the
    metric, a zero vector gives NaN there; here it is unlike every other vector.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.tome import soft_matching
    >>> m = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 2.0]])
    >>> match = soft_matching(m, 1)
    >>> match.stay, match.gone, match.targets[match.into]
    (array([0]), array([2]), array([3]))
    """
    metric = constant(checked(metric, "metric", "(..., t, C)", check_finite=False))
    require_whole("r", r)
    t = int(metric.shape[-2])
    r = min(int(r), (t - class_token) // 2)
    if r == 0:
        return _unmatched(metric)
    sources, targets = _places(metric, np.arange(0, t, 2)), _places(metric, np.arange(1, t, 2))
    closeness, best = _best(metric, sources, targets)
    xp = namespace(metric)
    if class_token:
        first = xp.arange(int(closeness.shape[-1]), device=device(closeness)) == 0
        closeness = xp.where(first, xp.full_like(closeness, -xp.inf), closeness)
    order = xp.astype(xp.argsort(-closeness, axis=-1, stable=True), sources.dtype)
    gone, stay = order[..., :r], order[..., r:]
    if class_token:
        stay = xp.sort(stay, axis=-1)
    # Sources are the even tokens: the i-th is token 2 i.
    return Matching(2 * stay, 2 * gone, xp.take_along_axis(best, gone, axis=-1), targets)


def kth_matching(metric: Array, every: int) -> Matching:
    r"""Match every token with the most like one of every k-th: one in k is left.

    The targets are the tokens k - 1, 2 k - 1, ...; every other token merges into the target of
    largest cosine.

    Parameters
    ----------
    metric
        What likeness is told from (..., t, C).
    every
        The k; with k above t there is no target, and every token stays.

    Returns
    -------
    Matching
        Nothing but the targets is left, floor(t / k) tokens.

    Notes
    -----
    O(t^2 C / k) time. Where k does not divide t, the authors' program drops the tokens behind
    the last target from the sequence; here they merge like the others.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.tome import kth_matching
    >>> m = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 0.2], [0.0, 1.0]])
    >>> match = kth_matching(m, 2)
    >>> match.gone, match.targets[match.into]
    (array([0, 2, 4]), array([3, 1, 1]))
    """
    metric = constant(checked(metric, "metric", "(..., t, C)", check_finite=False))
    require_whole("every", every, least=2)
    t = int(metric.shape[-2])
    if every > t:
        return _unmatched(metric)
    aims = np.arange(every - 1, t, every)
    rest = np.setdiff1d(np.arange(t), aims)
    sources, targets = _places(metric, rest), _places(metric, aims)
    _, best = _best(metric, sources, targets)
    return Matching(sources[..., :0], sources, best, targets)


def merge(matching: Matching, states: Array, sizes: Array | None = None) -> Merged:
    r"""Merge the tokens that a matching says, weighted by how many each stands for.

    .. math::
        X_b' = \frac{s_b X_b + \sum_{a \to b} s_a X_a}{s_b'}, \qquad
        s_b' = s_b + \sum_{a \to b} s_a

    Parameters
    ----------
    matching
        Of `soft_matching` or `kth_matching`.
    states
        The tokens (..., t, D).
    sizes
        How many each stands for (..., t); one each when absent.

    Returns
    -------
    Merged
        The tokens that stayed, then the targets, in the dtype of `states`.

    Notes
    -----
    O(r B D) time for r tokens that merge into B targets. The states carry gradients; which
    tokens merge has none.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.methods.tome import merge, soft_matching
    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 2.0]])
    >>> merged = merge(soft_matching(x, 1), x)
    >>> merged.states, merged.sizes, merged.group
    (array([[1. , 0. ],
           [1. , 0.1],
           [0. , 1.5]]), array([1., 1., 2.]), array([0, 1, 2, 2]))
    """
    t = int(matching.stay.shape[-1] + matching.gone.shape[-1] + matching.targets.shape[-1])
    if shape_of(states)[:-1] != (*shape_of(matching.stay)[:-1], t):
        raise ValueError(
            f"states: expected the {t} tokens that were matched, got {spell(shape_of(states))}"
        )
    xp = namespace(states)
    weight = sizes_of(sizes, states)
    x = widened(states)

    def rows(places: Array, of: Array, axis: int) -> Array:
        return Selection.of(places, t).gather(of, axis, ordered=True)

    aims = xp.arange(int(matching.targets.shape[-1]), dtype=matching.into.dtype, device=device(x))
    joins = xp.astype(aims[:, None] == matching.into[..., None, :], x.dtype)
    added = rows(matching.gone, weight, -1)
    kept = rows(matching.targets, weight, -1)
    total = kept + (joins @ added[..., None])[..., 0]
    summed = kept[..., None] * rows(matching.targets, x, -2)
    summed = summed + joins @ (added[..., None] * rows(matching.gone, x, -2))
    states = xp.astype(
        xp.concat([rows(matching.stay, x, -2), summed / total[..., None]], axis=-2), states.dtype
    )
    sizes = xp.concat([rows(matching.stay, weight, -1), total], axis=-1)
    return Merged(states, sizes, _group(matching))


def log_sizes(sizes: Array) -> Array:
    r"""What proportional attention adds to every query's logits for each key (..., t).

    .. math:: \operatorname{softmax}_j(\langle q, k_j \rangle / \sqrt{d} + \log s_j)

    so that a key of a token that stands for s others is attended to as s keys were.
    """
    return namespace(sizes).log(sizes)


def merging_schedule(layers: int, r: int, *, inflect: float = 0.0) -> tuple[int, ...]:
    r"""How many tokens each layer of an encoder merges.

    .. math::
        r_i = \lfloor l + i \frac{h - l}{L - 1} \rfloor, \qquad
        l = \lfloor r (1 - f) \rfloor, \quad h = 2 r - l

    for the layers i = 0 .. L - 1; f = 0 gives r to each, f = -1 begins with 2 r and ends with
    none, f = 1 the other way round: about r L in all.

    Examples
    --------
    >>> from secateur.core.methods.tome import merging_schedule
    >>> merging_schedule(5, 4), merging_schedule(5, 4, inflect=-1)
    ((4, 4, 4, 4, 4), (8, 6, 4, 2, 0))
    """
    require_whole("layers", layers, least=1)
    require_whole("r", r)
    _require_inflect(inflect)
    low = int(r * (1.0 - inflect))
    high = 2 * r - low
    step = (high - low) / (layers - 1) if layers > 1 else 0.0
    return tuple(int(low + layer * step) for layer in range(layers))


@dataclass(frozen=True)
class ToMe(Method, Folds):
    r"""Token merging: in every layer of the encoder, like tokens become one.

    Between the attention and the MLP of each layer, r of its tokens merge into others by
    `soft_matching` of the layer's keys, averaged over heads; `merge` weighs by sizes. Later
    layers add the logarithm of the sizes to their attention's logits (`log_sizes`).

    Parameters
    ----------
    keep
        How many tokens of an image leave the encoder: a count or a share. A layer merges half of
        its tokens at most; where the plan would ask more of the last ones, those before do it.
    r
        How many merge in each layer, as the authors' program is told; `keep` is then what the
        merging stops at.
    inflect
        How the merging changes with depth: 0 the same everywhere, -1 the most in the first
        layer and none in the last, 1 the other way round.
    every
        Merge all at once instead, by `kth_matching`: in the middle layer, one in so many tokens
        is left, but no fewer than `keep`.
    proportional
        Whether sizes weigh in the attention.

    Notes
    -----
    O(t^2 C / 4) time a layer of t tokens, against its attention's O(t^2 C).

    The program's schedule names r, and how many tokens are left follows; ours by default names
    what is left, and spreads the merging so that it comes out exactly. Merged tokens stand
    behind the unmerged ones, with no place in the grid: a model's later parts must do without.
    In a prompt each takes the place of the first of its tokens; the program knows no prompts.
    Crops of an image merge each by themselves, to `keep` tokens each; of those that stand for
    padding only, none goes on. Where a model joins squares of patches to a token behind the
    encoder, no square would be whole, and it is refused.

    References
    ----------
    D. Bolya, C.-Y. Fu, X. Dai, P. Zhang, C. Feichtenhofer and J. Hoffman, "Token Merging: Your
    ViT But Faster", ICLR 2023, arXiv 2210.09461.

    Examples
    --------
    >>> from secateur.core.methods.tome import ToMe
    >>> ToMe(keep=64).removed(layers=6, size=576)
    (85, 86, 85, 85, 107, 64)
    >>> ToMe(keep=1, r=8).removed(layers=6, size=576)
    (8, 8, 8, 8, 8, 8)
    """

    r: int | None = None
    inflect: float = 0.0
    every: int | None = None
    proportional: bool = True

    name: ClassVar[str] = "tome"
    complexity: ClassVar[str] = "N^2 C a layer"
    reference: ClassVar[str] = "Bolya et al., ICLR 2023, arXiv 2210.09461"
    parity: ClassVar[str] = "the authors' program: groups, sizes, merged tokens, schedule"
    prunes_before: ClassVar[bool] = False
    behind: ClassVar[bool] = False
    together: ClassVar[bool] = True
    program: ClassVar[Program | None] = Program("facebookresearch/ToMe", "af95e4b")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r is not None:
            require_whole("r", self.r)
        if self.every is not None:
            require_whole("every", self.every, least=2)
            if self.r is not None:
                raise ValueError("every: merges all at once, so r says nothing; leave one out")
        _require_inflect(self.inflect)
        if not isinstance(self.proportional, bool):
            raise ValueError(f"proportional: expected True or False, got {self.proportional!r}")

    @property
    def needs(self) -> frozenset[str]:
        """Nothing of `Tokens`: keys come from the encoder's layers."""
        return frozenset()

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Refuse: tokens merge inside the encoder, there is nothing to choose from after it."""
        raise ValueError(
            "ToMe merges inside the vision encoder: attach it to a model, or call removed() for "
            "the schedule, soft_matching() with a layer's keys and merge() with its states"
        )

    def removed(self, layers: int, size: int) -> tuple[int, ...]:
        """How many tokens each layer merges.

        Parameters
        ----------
        layers
            Layers of the encoder that merge.
        size
            Tokens of an image before any merging; a class token is not counted.
        """
        keep = self.budget(size)
        if self.every is not None:
            if size // self.every < keep:
                raise ValueError(
                    f"every: one in {self.every} of {size} tokens is fewer than keep={self.keep}"
                )
            middle = [layer == layers // 2 for layer in range(layers)]
            return tuple((size - size // self.every) * here for here in middle)
        if self.r is None:
            plan = _spread(size - keep, merging_schedule(layers, layers, inflect=self.inflect))
        else:
            plan = merging_schedule(layers, self.r, inflect=self.inflect)
        left, found = size, []
        for layer, wanted in enumerate(plan):
            if self.r is None:
                # Every later layer can halve what it gets: no more may be left to them than that.
                wanted = max(wanted, left - keep * 2 ** (layers - 1 - layer))
            gone = max(0, min(wanted, left // 2, left - keep))
            found.append(gone)
            left -= gone
        return tuple(found)

    def fold(self, layer: Layer) -> Merged | None:
        """Merge as many tokens as the layer's turn is; see `Folds.fold`."""
        gone = self.removed(layer.depth, layer.grid[0] * layer.grid[1])[layer.number]
        if not gone:
            return None
        if self.every is None:
            matching = soft_matching(layer.keys, gone, class_token=layer.class_token)
        else:
            first = int(layer.class_token)
            found = kth_matching(layer.keys[..., first:, :], self.every)
            alone = _places(layer.keys, np.arange(first))
            matching = Matching(alone, found.gone + first, found.into, found.targets + first)
        return merge(matching, layer.states, layer.sizes)


def _spread(total: int, weights: tuple[int, ...]) -> tuple[int, ...]:
    """Whole numbers in proportion to the weights that add up to `total`."""
    reached = np.cumsum(weights) * total / sum(weights)
    return tuple(np.diff(np.round(reached), prepend=0.0).astype(int).tolist())


def _require_inflect(inflect: float) -> None:
    if not -1.0 <= inflect <= 1.0:
        raise ValueError(f"inflect: expected a number in [-1, 1], got {inflect!r}")


def _places(metric: Array, places: np.ndarray) -> Array:
    """The same places for every row of a batch (..., n)."""
    xp = namespace(metric)
    batch = shape_of(metric)[:-2]
    return xp.broadcast_to(like(places, metric, dtype=index_dtype(xp)), (*batch, len(places)))


def _unmatched(metric: Array) -> Matching:
    every = _places(metric, np.arange(int(metric.shape[-2])))
    return Matching(every, every[..., :0], every[..., :0], every[..., :0])


def _best(metric: Array, sources: Array, targets: Array) -> tuple[Array, Array]:
    """The largest cosine (..., A) of each source with a target, and that target's number."""
    t = int(metric.shape[-2])
    aims = Selection.of(targets, t).gather(metric, ordered=True)
    cosine = settled_cosine(Selection.of(sources, t).gather(metric, ordered=True), aims)
    xp = namespace(metric)
    best = xp.astype(xp.argmax(cosine, axis=-1), sources.dtype)
    return xp.max(cosine, axis=-1), best


def _group(matching: Matching) -> Array:
    """For every token of before its place now."""
    xp = namespace(matching.stay)
    stayed, aims = int(matching.stay.shape[-1]), int(matching.targets.shape[-1])
    now = _places(matching.stay[..., None], np.arange(stayed + aims))
    before = xp.concat([matching.stay, matching.targets, matching.gone], axis=-1)
    now = xp.concat([now, stayed + matching.into], axis=-1)
    return xp.take_along_axis(now, xp.argsort(before, axis=-1), axis=-1)
