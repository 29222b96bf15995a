"""CDPruner: diversity that listens to the instruction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from secateur.core.arrays import Array, constant, namespace, shaped, widened
from secateur.core.inputs import INPUTS, Tokens
from secateur.core.maps import min_max
from secateur.core.maximize import SQUARE, maximize
from secateur.core.methods.base import Method, Program, Reading
from secateur.core.objectives import LogDeterminant
from secateur.core.order import settled_cosine
from secateur.core.relevance import check_fit
from secateur.core.selection import Selection
from secateur.core.similarity import cosine, unit


@dataclass(frozen=True)
class CDPruner(Method):
    r"""Conditional diversity: the tokens that span most volume, relevant ones counting more.

    .. math::
        r_i &= \operatorname{minmax}(\text{sign} \cos(E_i, g)) \\
        K_{ij} &= r_i \cos(X_i, X_j) \, r_j \\
        f(S) &= \log \det K_S

    and f is maximised greedily. X are the `features`, E the `embeds` (the `features` where
    there are none), g the `text_global`.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    sign
        -1 for encoders trained like CLIP, whose relevant patches score low; +1 otherwise.

    Notes
    -----
    O(N^2 D + k^2 N) time, O(N^2) memory; of more than 4096 tokens, where that is more than D, such
    as those of a video, O(k N D) and O(N D). Several texts (a list) count with the mean of their
    relevances before min-max. `scores` holds r, `gains` the growth of the log-determinant.

    The authors' program repeats tokens once the kernel's rank is spent (k above the number of
    feature dimensions, duplicates); ours goes on with the lowest open indices, whose gains are
    minus infinity, and always keeps k distinct tokens.

    References
    ----------
    Q. Zhang, M. Liu, L. Li, M. Lu, Y. Zhang, J. Pan, Q. She and S. Zhang, "Beyond Attention or
    Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", NeurIPS 2025,
    arXiv 2506.10967. L. Chen, G. Zhang and E. Zhou, "Fast greedy MAP inference for
    determinantal point process to improve recommendation diversity", NeurIPS 2018.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    >>> tokens = sc.Tokens(features=features, text_global=np.array([1.0, 0.5]))
    >>> sc.CDPruner(keep=2, sign=1).select(tokens).indices
    array([1, 2])
    """

    sign: int = -1

    name: ClassVar[str] = "cdpruner"
    complexity: ClassVar[str] = "N^2 D + k^2 N"
    reference: ClassVar[str] = "Zhang et al., NeurIPS 2025, arXiv 2506.10967"
    guarantee: ClassVar[str] = "none: log det is submodular, but not monotone"
    in_parts: ClassVar[bool] = True
    parity: ClassVar[str] = (
        "the authors' program: kept set, on arrays and in a model, where the kernel has full rank"
    )
    program: ClassVar[Program] = Program("Theia-4869/CDPruner", "9541616c40fc")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sign not in (-1, 1):
            raise ValueError(f"sign: expected -1 or 1, got {self.sign!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The features and one embedding of the instruction."""
        return frozenset({"features", "text_global"})

    @property
    def optional(self) -> frozenset[str]:
        """The vision-text space."""
        return frozenset({"embeds"})

    @property
    def reads(self) -> Reading:
        """As published, long texts in windows that are cut by tokens."""
        return "window" if self.published else "words"

    def relevance(self, tokens: Tokens) -> Array:
        """How much each token has to do with the instruction, r (..., N)."""
        wholes = tokens.text_global
        if not isinstance(wholes, (list, tuple)):
            wholes = [wholes]
        parts = [self._towards(tokens.space, whole) for whole in wholes]
        return min_max(sum(parts[1:], parts[0]) / len(parts), check_finite=False)

    def _towards(self, space: Array, whole: Array) -> Array:
        whole = shaped(whole, "text_global", INPUTS["text_global"].layout, beside=space)
        check_fit("text_global", whole, space, 1, no_more=True)
        # Settled, as min-max makes much of what little equal ones differ by.
        return self.sign * settled_cosine(space, whole[..., None, :])[..., 0]

    def weigh(self, tokens: Tokens) -> Array:
        """Relevance; see `Method.weigh`."""
        return constant(self.relevance(tokens))

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Greedy log-determinant; see `Method.choose`."""
        r = self.weigh(tokens)
        if tokens.size > int(tokens.features.shape[-1]) and tokens.size**2 > SQUARE:
            directions = unit(constant(widened(tokens.features)))
            r = namespace(directions).astype(r, directions.dtype)
            spanning = LogDeterminant.from_span(r[..., :, None] * directions, check_finite=False)
            return replace(maximize(spanning, k), scores=r)
        kernel = constant(cosine(tokens.features, check_finite=False))
        r = namespace(kernel).astype(r, kernel.dtype)
        kernel *= r[..., :, None]
        kernel *= r[..., None, :]
        return replace(maximize(LogDeterminant(kernel, check_finite=False), k), scores=r)
